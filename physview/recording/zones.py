# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the zones of memory: what is free, in which blocks, and what the frames are used for."""

from __future__ import annotations

from physview.recording.schema import Columns


def read_zones(*, with_frames: bool = False) -> Columns:
    """Read all zones once.

    Args:
        with_frames: Whether to read all frames of the machine, which needs root and takes longer.
            Without it, the columns about frames are None.

    Returns:
        The columns of schema.ZONES without those of schema.MOMENT.
    """
    raise NotImplementedError
