# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of the machine and of groups of processes, for Prometheus."""
