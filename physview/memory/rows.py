# SPDX-License-Identifier: GPL-2.0-or-later
"""Works on extents as rows of a structured NumPy array: advances, cuts, joins and expands them.

This module reads no process. The rows may come from a living process or from a file.
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
"""The columns that every row has.

vaddr: address of the first page. nr_pages: base pages in the row. entry: pagemap entry of the first
page. pfn: frame number of the first page; NO_ENTRY if there is no frame or it is hidden. swap: swap
entry of the first page, with the type in bits 0 to 4 and the offset above; NO_ENTRY if it is not a
swap entry. vma: index of the mapping.
"""

COLUMNS = {"flags": "u8", "mapcount": "u8", "cgroup": "u8", "node": "i4"}
"""The optional columns. All pages of a row have the same value. A row without a frame has NO_ENTRY,
and -1 in the column node. cgroup is an inode number, see `cgroups.cgroup_paths()`."""

# The maximum number of pages per batch. It limits the memory that a batch needs.
CHUNK_PAGES = 1 << 16


def from_extents(extents: Any, spans: Any, dtype: list[tuple[str, str]]) -> Rows:
    """Make rows from extents of the core. Only the columns of BASE_DTYPE are set.

    Args:
        extents: Structured array of `extents.EXTENT_DTYPE`.
        spans: uint64 array, shape (n, 2): start and end of each mapping, in address order.
        dtype: BASE_DTYPE, and the optional columns of the rows.

    Returns:
        The rows. An extent outside of all mappings is left out: it was mapped after the mappings
        were read.
    """
    import numpy as np

    vma = np.searchsorted(spans[:, 0], extents["vaddr"], side="right") - 1
    inside = (vma >= 0) & (extents["vaddr"] < spans[vma, 1])
    if not inside.all():  # some were mapped after the mappings were read
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
    """The frame numbers and swap entries in pagemap entries: pfn and swap of BASE_DTYPE.

    Args:
        entries: uint64 array, shape (n,): pagemap entries.

    Returns:
        Two uint64 arrays, shape (n,): pfn and swap.
    """
    import numpy as np

    value, none = entries & np.uint64(PM_PFRAME_MASK), np.uint64(NO_ENTRY)
    frames = np.where(has_frame(entries), value, none)
    return frames, np.where(has_slot(entries), value, none)


def ends(rows: Rows) -> npt.NDArray[np.uint64]:
    """The first address after each row: uint64 array, shape of `rows`."""
    import numpy as np

    after: npt.NDArray[np.uint64] = rows["vaddr"] + rows["nr_pages"] * np.uint64(PAGE_SIZE)
    return after


def steps(rows: Rows, zero_pfn: int) -> npt.NDArray[np.uint64]:
    """The difference between the entries of two successive pages in each row.

    It is `entry_rules.step_of()` for arrays.

    Args:
        rows: Rows.
        zero_pfn: Frame number of the zero page on the machine where the rows were read.

    Returns:
        uint64 array, shape of `rows`.
    """
    import numpy as np

    changes: npt.NDArray[np.uint64] = step_of(rows["entry"], zero_pfn).astype(np.uint64)
    return changes


def advance(rows: Rows, nr_pages: npt.NDArray[np.uint64], zero_pfn: int) -> None:
    """Remove pages from the front of each row, in place.

    Args:
        rows: Rows.
        nr_pages: uint64 array, shape of `rows`: the number of pages to remove, less than the
            nr_pages of the row.
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
    """Split rows into those below an address and the rest. A row that crosses it is split.

    Args:
        rows: Rows in address order.
        vaddr: The address, page-aligned.
        zero_pfn: As in `steps()`.

    Returns:
        The rows below the address, and the rows at or above it.
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
    """Merge successive rows that form one extent and have the same values in all columns.

    Args:
        rows: Rows in address order.
        zero_pfn: As in `steps()`.
    """
    import numpy as np

    if len(rows) < 2:
        return rows
    step = steps(rows, zero_pfn)
    continues = rows["vaddr"][1:] == ends(rows)[:-1]
    continues &= rows["entry"][1:] == (rows["entry"] + rows["nr_pages"] * step)[:-1]
    continues &= step[1:] == step[:-1]
    for name in {"vma", *COLUMNS} & set(rows.dtype.names or ()):
        continues &= rows[name][1:] == rows[name][:-1]
    if not continues.any():
        return rows
    firsts = np.flatnonzero(np.concatenate([[True], ~continues]))
    joined = rows[firsts]
    joined["nr_pages"] = np.add.reduceat(rows["nr_pages"], firsts)
    return joined


def split_at(
    first: npt.NDArray[Any], nr: npt.NDArray[Any], step: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut runs of contiguous numbers at the multiples of `step`.

    Args:
        first: Integer array, shape (n,): the first number of each run.
        nr: Integer array, shape (n,): the length of each run, at least 1.
        step: At least 1.

    Returns:
        Three arrays with one item per piece, in order: index of the run, first number, length.

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
    """Split batches of rows, so that no batch has more than CHUNK_PAGES pages.

    Args:
        batches: Arrays of rows.
        zero_pfn: As in `steps()`.
    """
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
    """Expand rows, so that each page is a row of its own.

    Args:
        rows: An array that `Snapshot.iter_extents()` yields.
        zero_pfn: As in `steps()`; by default that of this machine.

    Yields:
        Arrays of the same type, of up to CHUNK_PAGES rows. nr_pages is 1 in each row.
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
