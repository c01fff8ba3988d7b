# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to the recordings of many machines."""
