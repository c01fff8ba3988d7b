# SPDX-License-Identifier: GPL-2.0-or-later
"""How this program runs here: its command lines, packages, limits and child processes."""
