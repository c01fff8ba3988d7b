# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers made of what the witnesses say."""
