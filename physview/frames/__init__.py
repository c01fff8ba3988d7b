# SPDX-License-Identifier: GPL-2.0-or-later
"""Page frames: their flags, and what all frames of the machine are used for."""
