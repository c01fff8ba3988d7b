# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents as rows of a structured NumPy array: advanced, cut, joined and expanded to pages.

Nothing here reads a process: rows may come of one that lives, or of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from physview.entry_rules import PM_PFRAME_MASK, has_frame, has_slot, step_of
from physview.model import NO_ENTRY, PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.void]

BASE_DTYPE = [
    ("vaddr", "u8"),
    ("nr_pages", "u8"),
    ("entry", "u8"),
    ("pfn", "u8"),
    ("swap", "u8"),
    ("vma", "u4"),
]
"""What every row has.

vaddr: of the first page. nr_pages: base pages in the row. entry: pagemap's of the first page.
pfn: the first page's frame; NO_ENTRY where there is none or it is hidden. swap: type in bits 0 to
4, offset above; NO_ENTRY where it is no swap entry. vma: index in the mappings.
"""

COLUMNS = {"flags": "u8", "mapcount": "u8", "cgroup": "u8", "node": "i4"}
"""What can be asked for besides, the same for all pages of a row; NO_ENTRY, and node -1, where
there is no frame. cgroup is an inode number, see `topology.cgroup_paths()`."""

# How many pages are looked up at once: what this takes of memory is the most that a batch takes.
CHUNK_PAGES = 1 << 16


def from_extents(extents: Any, spans: Any, dtype: list[tuple[str, str]]) -> Rows:
    """Rows of what the core found; other columns than those of BASE_DTYPE are left unset.

    Args:
        extents: Structured array of `extents.EXTENT_DTYPE`.
        spans: uint64 array, shape (n, 2): where mappings begin and end, in address order.
        dtype: BASE_DTYPE, and what else the rows are to have.
    """
    import numpy as np

    vma = np.searchsorted(spans[:, 0], extents["vaddr"], side="right") - 1
    inside = (vma >= 0) & (extents["vaddr"] < spans[vma, 1])
    if not inside.all():  # mapped since the mappings were read
        extents, vma = extents[inside], vma[inside]
    rows = np.empty(len(extents), dtype=dtype)
    for name in ("vaddr", "nr_pages", "entry"):
        rows[name] = extents[name]
    rows["pfn"], rows["swap"] = places(extents["entry"])
    rows["vma"] = vma
    return rows


def places(
    entries: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Frames and swap slots that entries name, as in BASE_DTYPE."""
    import numpy as np

    value, none = entries & np.uint64(PM_PFRAME_MASK), np.uint64(NO_ENTRY)
    frames = np.where(has_frame(entries), value, none)
    return frames, np.where(has_slot(entries), value, none)


def ends(rows: Rows) -> npt.NDArray[np.uint64]:
    """The first address after each row."""
    import numpy as np

    after: npt.NDArray[np.uint64] = rows["vaddr"] + rows["nr_pages"] * np.uint64(PAGE_SIZE)
    return after


def steps(rows: Rows, zero_pfn: int) -> npt.NDArray[np.uint64]:
    """How the entry changes from one page of each row to the next: `entry_rules.step_of()`.

    Args:
        rows: Rows.
        zero_pfn: The zero page's frame number where the rows were read.
    """
    import numpy as np

    changes: npt.NDArray[np.uint64] = step_of(rows["entry"], zero_pfn).astype(np.uint64)
    return changes


def advance(rows: Rows, nr_pages: npt.NDArray[np.uint64], zero_pfn: int) -> None:
    """Take pages away from the front of each row, in place.

    Args:
        rows: Rows.
        nr_pages: uint64 array, shape of rows: how many, fewer than the row has.
        zero_pfn: As in `steps()`.
    """
    import numpy as np

    none = np.uint64(NO_ENTRY)
    change = nr_pages * steps(rows, zero_pfn)
    rows["vaddr"] += nr_pages * np.uint64(PAGE_SIZE)
    rows["entry"] += change
    for name in {"pfn", "swap"} & set(rows.dtype.names or ()):
        rows[name] = np.where(rows[name] == none, none, rows[name] + change)
    rows["nr_pages"] -= nr_pages


def cut(rows: Rows, vaddr: int, zero_pfn: int) -> tuple[Rows, Rows]:
    """What of rows lies below an address, and the rest; a row across it is in both, in part.

    Args:
        rows: Rows in address order.
        vaddr: Where to cut, page-aligned.
        zero_pfn: As in `steps()`.
    """
    import numpy as np

    at = int(np.searchsorted(rows["vaddr"], np.uint64(vaddr)))
    if at == 0 or int(ends(rows[at - 1 : at])[0]) <= vaddr:
        return rows[:at], rows[at:]
    below, above = rows[:at].copy(), rows[at - 1 :].copy()
    nr_below = np.uint64((vaddr - int(below["vaddr"][-1])) // PAGE_SIZE)
    below["nr_pages"][-1] = nr_below
    advance(above[:1], np.array([nr_below], dtype=np.uint64), zero_pfn)
    return below, above


def join(rows: Rows, zero_pfn: int) -> Rows:
    """Make one of rows that go on in each other."""
    import numpy as np

    if len(rows) < 2:
        return rows
    goes_on = rows["vaddr"][1:] == ends(rows)[:-1]
    goes_on &= rows["entry"][1:] == (rows["entry"] + rows["nr_pages"] * steps(rows, zero_pfn))[:-1]
    for name in {"vma", *COLUMNS} & set(rows.dtype.names or ()):
        goes_on &= rows[name][1:] == rows[name][:-1]
    if not goes_on.any():
        return rows
    firsts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    joined = rows[firsts]
    joined["nr_pages"] = np.add.reduceat(rows["nr_pages"], firsts)
    return joined


def split_at(
    first: npt.NDArray[Any], nr: npt.NDArray[Any], step: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut runs of numbers at the multiples of `step`.

    Args:
        first: Shape (n,): the first number of each.
        nr: Shape (n,): how many, at least 1.
        step: At least 1.

    Returns:
        Of each piece, in order, the index of its run, its first number, and how many it has.

    >>> import numpy as np
    >>> [column.tolist() for column in split_at(np.array([3, 9]), np.array([6, 1]), 4)]
    [[0, 0, 0, 1], [3, 4, 8, 9], [1, 4, 1, 1]]
    """
    import numpy as np

    first, nr = first.astype(np.int64), nr.astype(np.int64)
    nr_pieces = (first + nr - 1) // step - first // step + 1
    index = np.repeat(np.arange(len(first)), nr_pieces)
    number = np.arange(len(index)) - np.repeat(np.cumsum(nr_pieces) - nr_pieces, nr_pieces)
    start = np.where(number, (first[index] // step + number) * step, first[index])
    end = np.minimum((start // step + 1) * step, (first + nr)[index])
    return index, start, end - start


def iter_chunks(batches: Iterable[Rows], zero_pfn: int) -> Iterator[Any]:
    """Split batches of rows so that none has more pages than CHUNK_PAGES."""
    import numpy as np

    for batch in batches:
        left = batch
        while len(left):
            done = np.cumsum(left["nr_pages"].astype(np.int64))
            if done[-1] <= CHUNK_PAGES:
                yield left
                break
            last = int(np.searchsorted(done, CHUNK_PAGES))
            over = int(done[last]) - CHUNK_PAGES
            chunk, left = cut(
                left, int(ends(left[last : last + 1])[0]) - over * PAGE_SIZE, zero_pfn
            )
            yield chunk


def iter_each(rows: Rows, zero_pfn: int | None = None) -> Iterator[Rows]:
    """Expand extents to pages.

    Args:
        rows: What `Snapshot.iter_extents()` yields.
        zero_pfn: As in `steps()`; by default this machine's.

    Yields:
        Arrays of the same type with nr_pages 1, of up to CHUNK_PAGES.
    """
    import numpy as np

    if zero_pfn is None:
        from physview.memory.extents import find_zero_pfn

        zero_pfn = find_zero_pfn()
    for chunk in iter_chunks([rows], zero_pfn):
        nr_pages = chunk["nr_pages"].astype(np.int64)
        pages = np.repeat(chunk, nr_pages)
        firsts = np.repeat(np.cumsum(nr_pages) - nr_pages, nr_pages)
        advance(pages, (np.arange(len(pages)) - firsts).astype(np.uint64), zero_pfn)
        pages["nr_pages"] = 1
        yield pages
