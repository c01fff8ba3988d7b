# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes files so that other users cannot redirect or replace them."""
