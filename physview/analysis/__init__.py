# SPDX-License-Identifier: GPL-2.0-or-later
"""Analyses: they compare, count and summarize what the sources say."""
