# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes snapshots of a process to Parquet files, and reads such files without trusting them."""
