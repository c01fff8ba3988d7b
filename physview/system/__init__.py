# SPDX-License-Identifier: GPL-2.0-or-later
"""This system: what physview can do on it, and the kernel module's state."""
