# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of physview, for those modules that print or write it."""

__version__ = "0.1.0"
