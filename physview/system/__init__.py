# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks of the system for `physview doctor`, and management of the kernel module."""
