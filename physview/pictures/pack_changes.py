# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page says of changed pages: each combination of properties is packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from physview.analysis.changes import CHANGES, IS_FRAME, WAS_FRAME, Change
from physview.entry_rules import is_in_area
from physview.model import NO_ENTRY
from physview.pictures.kinds import NO_KIND
from physview.pictures.page_changes import SIDES, PageChanges

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# What was or is at an address. A frame of its own has no words: the page shows its number.
_OWN, _ZERO, _HIDDEN, _SLOT, _MARKER, _NOTHING = range(6)
_WORDS = ("", "the zero page, which all processes share", "in memory, in a frame that is hidden",
          "in swap", "a marker, or in migration", "no page")  # fmt: skip
_SWAPPED = {
    "before": (Change.SWAPPED_IN, Change.STILL_SWAPPED, Change.RESWAPPED),
    "after": (Change.SWAPPED_OUT, Change.STILL_SWAPPED, Change.RESWAPPED),
}
_ABSENT = {"before": (Change.APPEARED, Change.MAPPED), "after": (Change.WENT, Change.UNMAPPED)}


def change_states(changes: PageChanges) -> tuple[list[Any], npt.NDArray[Any]]:
    """The properties of runs of pages without their addresses: each combination is a state.

    Returns:
        For each state [kind, kind of the frames that the pages had before, change, its meaning,
        what was there, what is there now]; and for each row the index of its state. What was or is
        there is "" for a frame of its own.
    """
    rows = changes.rows
    past = changes.past_kinds
    places = [_places(changes, name) for name in SIDES]
    firsts, state = distinct_rows([changes.kinds, past, rows["change"], *places])
    states = []
    for i in firsts.tolist():
        change = CHANGES[rows["change"][i]]
        words = [
            _word(name, change, int(place[i]), knows_frames=changes.knows_frames)
            for name, place in zip(SIDES, places, strict=True)
        ]
        kinds = [None if kind == NO_KIND else int(kind) for kind in (changes.kinds[i], past[i])]
        states.append([*kinds, change.value.replace("_", " "), change.text, *words])
    return states, state


def _places(changes: PageChanges, name: str) -> npt.NDArray[np.uint8]:
    """What was or is at the addresses of each row: _OWN, _ZERO and so on."""
    import numpy as np

    rows, values = changes.rows, changes.rows[name]
    is_frame = rows["frames"] & (WAS_FRAME, IS_FRAME)[SIDES.index(name)] != 0
    hidden = values == np.uint64(NO_ENTRY)
    places = np.where(is_in_area(values), _SLOT, _MARKER)
    places[hidden] = _NOTHING
    places[is_frame] = _ZERO
    places[is_frame & hidden] = _HIDDEN
    places[changes.has_frame(name)] = _OWN
    return places.astype(np.uint8)


def _word(name: str, change: Change, place: int, *, knows_frames: bool) -> str:
    if place != _NOTHING or change in _ABSENT[name]:
        return _WORDS[place]
    if change in _SWAPPED[name]:
        return "in swap, in a slot that is hidden"
    return "a guard" if knows_frames else "a swap entry or a guard: it is hidden which"


def distinct_rows(parts: list[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first row of each combination of values, and the index of each row's combination."""
    import numpy as np

    key = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        distinct, where = np.unique(part, return_inverse=True)
        key = key * len(distinct) + where
    _, firsts, state = np.unique(key, return_index=True, return_inverse=True)
    return firsts, state
