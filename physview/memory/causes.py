# SPDX-License-Identifier: GPL-2.0-or-later
"""The causes of many pages at once, as far as their pagemap entries tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from physview.entry_rules import PM_PFRAME_MASK, has_frame, has_slot, is_in_area, swap_slot
from physview.model import PagemapEntry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def alike(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Remove the bits of pagemap entries that do not affect the cause.

    Few distinct values remain, so that `cause_word()` is called for each of them only.

    Args:
        entries: uint64 array, shape (n,): pagemap entries.

    Returns:
        uint64 array, shape (n,): entries with the same causes.
    """
    import numpy as np

    result: npt.NDArray[np.uint64] = entries.copy()
    # The swap type affects the cause only if it is a special type.
    in_area = has_slot(entries) & is_in_area(entries)
    known = has_frame(entries)
    result[in_area | known] &= np.uint64(~PM_PFRAME_MASK & ((1 << 64) - 1))
    result[in_area] |= np.uint64(swap_slot(0, 1))
    result[known] |= np.uint64(1)
    return result


def cause_word(entry: int) -> str | None:
    """The name of the cause that an entry tells; None if it has a frame."""
    cause = PagemapEntry(entry).cause
    return cause.value if cause else None
