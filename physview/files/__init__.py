# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders that other users cannot turn against the caller."""
