# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine over time: reads groups of processes, zones and counters, and keeps them in files."""
