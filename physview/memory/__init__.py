# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the memory of a process as extents in NumPy arrays, in batches of bounded size."""
