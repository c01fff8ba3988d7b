# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the machine's counters, and what identifies the machine and the moment."""

from __future__ import annotations

from typing import Any

from physview.recording.schema import Columns


def read_counters() -> Columns:
    """Read the columns of schema.MACHINE that are in schema.MEMINFO and schema.VMSTAT: one row."""
    raise NotImplementedError


def read_moment() -> dict[str, Any]:
    """Read the columns of schema.MOMENT as they are now: time (datetime), machine, boot, …"""
    raise NotImplementedError
