# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a process as extents and arrays, read in constant memory."""
