# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of a process in Parquet files, which anybody can make."""
