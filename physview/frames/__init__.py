# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of the whole machine: what they are used for, and which processes map them."""
