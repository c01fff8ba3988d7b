# SPDX-License-Identifier: GPL-2.0-or-later
"""The environment that physview runs in: command lines, packages, limits, child processes."""
