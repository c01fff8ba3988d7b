# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to show an answer. They only render."""
