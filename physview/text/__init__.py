# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that enters or leaves physview: parsing /proc, quoting names, printing safely."""
