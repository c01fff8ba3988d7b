# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages were used between two looks at their accessed and dirty bits.

A look is an array of blocks (`page_bits.BITS_DTYPE`). All sums are made of whole words: memory
grows with the populated page tables, not with the address space.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.sources.page_bits import PAGES_IN_BLOCK, WORDS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

_BLOCKS_AT_ONCE = 1024


@dataclasses.dataclass
class Sums:
    """Sizes in bytes.

    Args:
        resident: Pages in the page tables at the last look.
        touched: Of these, pages that were certainly used.
        written: Of the touched ones, pages that were certainly written.
        untouched: Of the resident ones, pages whose bit was clear all the time.
        unknown: The rest of the resident ones.
        new: Of the resident ones, pages that were not there at the first look.
        huge: Of the touched ones, those in huge pages, which have one bit each.
        gone: Pages of the first look that were not there at the last.
        lost: Pages whose bit somebody else cleared meanwhile.
    """

    resident: int = 0
    touched: int = 0
    written: int = 0
    untouched: int = 0
    unknown: int = 0
    new: int = 0
    huge: int = 0
    gone: int = 0
    lost: int = 0


class Uses(NamedTuple):
    """What was found between two looks.

    Args:
        blocks: The blocks of the last look, of BITS_DTYPE; `vaddr` and `shift` are used.
        present: Words of bits, shape (n, WORDS): pages that are there.
        touched: Certainly used.
        written: Certainly written.
        unknown: Nobody can tell whether they were used.
        new: Not there at the first look.
        gone: Pages of the first look that were not there at the last.
        lost: Pages whose bit was set at the first look, and not at the last.
    """

    blocks: npt.NDArray[Any]
    present: Words
    touched: Words
    written: Words
    unknown: Words
    new: Words
    gone: int
    lost: int


def count_bits(words: Words) -> npt.NDArray[np.int64]:
    """The number of set bits in each row of words."""
    import numpy as np

    if hasattr(np, "bitwise_count"):  # NumPy 2
        counts = np.bitwise_count(words)
    else:
        counts = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1)
    sums: npt.NDArray[np.int64] = counts.sum(axis=-1, dtype=np.int64)
    return sums


def pages_per_bit(blocks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The number of base pages that one bit of each block is for."""
    import numpy as np

    pages: npt.NDArray[np.int64] = np.int64(1) << (blocks["shift"].astype(np.int64) - PAGE_SHIFT)
    return pages


def ends_of(blocks: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The first address after each block."""
    import numpy as np

    small = blocks["shift"] == PAGE_SHIFT
    shifts = blocks["shift"].astype(np.uint64)
    sizes = np.where(small, np.uint64(PAGES_IN_BLOCK * PAGE_SIZE), np.uint64(1) << shifts)
    ends: npt.NDArray[np.uint64] = blocks["vaddr"] + sizes
    return ends


def nr_pages_before(
    blocks: npt.NDArray[Any], words: Words, addresses: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """For each address: how many base pages with a set bit are below it.

    The difference of two of them is the number of pages in a range.
    """
    import numpy as np

    per_bit = pages_per_bit(blocks)
    sums = np.concatenate([[0], np.cumsum(count_bits(words) * per_bit)])
    found = np.searchsorted(blocks["vaddr"], addresses, side="right")
    totals: npt.NDArray[np.int64] = sums[found].astype(np.int64)
    inside = found > 0
    last = np.maximum(found - 1, 0)
    if not len(blocks):
        return totals
    inside &= addresses < ends_of(blocks)[last]
    last = last[inside]
    pages = ((addresses[inside] - blocks["vaddr"][last]) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    small = blocks["shift"][last] == PAGE_SHIFT
    masks = low_masks()[np.minimum(pages, PAGES_IN_BLOCK)]
    within = np.where(
        small, count_bits(words[last] & masks), np.minimum(pages, per_bit[last]) * words[last, 0]
    )
    totals[inside] = sums[found[inside] - 1] + within
    return totals


def low_masks() -> Words:
    """Row i has the lowest i bits of a block set; shape (PAGES_IN_BLOCK + 1, WORDS)."""
    import numpy as np

    bits = np.tri(PAGES_IN_BLOCK + 1, PAGES_IN_BLOCK, -1, dtype=np.uint8)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def compare(before: npt.NDArray[Any], after: npt.NDArray[Any], *, cleared: bool) -> Uses:
    """Find out which pages were used between two looks.

    Args:
        before: The first look.
        after: The last look.
        cleared: All accessed bits were cleared after the first look.
    """
    import numpy as np

    after_is_clear = after["is_unstable"] == 0
    doubts = [before[before["is_unstable"] != 0], after[~after_is_clear]]
    before, after = before[before["is_unstable"] == 0], after[after_is_clear]
    same, at = _same_blocks(before, after)
    old_present, old_accessed, old_written = (
        np.where(same[:, None], before[name][at], np.uint64(0)) if len(before) else 0 * after[name]
        for name in ("present", "accessed", "written")
    )
    # A huge page became small pages or the other way round: its bits are of other pages.
    doubtful = _overlaps(before, after) & ~same
    for ranges in doubts:
        doubtful |= _overlaps(ranges, after)
    if cleared:
        lost = 0
        old_accessed = np.zeros_like(old_accessed)
    else:
        lost = int(
            (
                count_bits(old_accessed & after["present"] & ~after["accessed"])
                * pages_per_bit(after)
            )[~doubtful].sum()
        )
    present, accessed, dirty = after["present"], after["accessed"], after["written"]
    certain = np.where(doubtful, np.uint64(0), ~np.uint64(0))[:, None]
    new = present & ~old_present & certain
    written = dirty & ~old_written & present & certain
    touched = (accessed & ~old_accessed & present & certain) | written
    unknown = present & ~touched & (old_accessed | (~certain & accessed))
    gone = int((count_bits(before["present"]) * pages_per_bit(before)).sum())
    gone -= int((count_bits(old_present & present) * pages_per_bit(after)).sum())
    gone -= int((count_bits(present) * pages_per_bit(after))[doubtful].sum())
    return Uses(after, present, touched, written, unknown, new, max(gone, 0), lost)


def _same_blocks(
    before: npt.NDArray[Any], after: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
    """For each block of `after`: whether `before` has the same one, and where."""
    import numpy as np

    if not len(before):
        return np.zeros(len(after), dtype=np.bool_), np.zeros(len(after), dtype=np.intp)
    at = np.minimum(np.searchsorted(before["vaddr"], after["vaddr"]), len(before) - 1)
    same = (before["vaddr"][at] == after["vaddr"]) & (before["shift"][at] == after["shift"])
    return same, at


def _overlaps(some: npt.NDArray[Any], blocks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """For each block: whether one of `some`, which are in address order, has an address in it."""
    import numpy as np

    if not len(some):
        return np.zeros(len(blocks), dtype=np.bool_)
    # The blocks that begin before the end: the last of them must not end before the start.
    nr = np.searchsorted(some["vaddr"], ends_of(blocks), side="left")
    last_ends = np.concatenate([[0], np.maximum.accumulate(ends_of(some))]).astype(np.uint64)
    overlap: npt.NDArray[np.bool_] = last_ends[nr] > blocks["vaddr"]
    return overlap


class History:
    """What was found in all intervals so far, for each page.

    Args:
        counts: Whether to count the intervals in which each page was used, for heat.
    """

    def __init__(self, *, counts: bool) -> None:
        self._counts = counts
        self.nr = 0
        self.uses: Uses | None = None
        self.heat: npt.NDArray[np.uint16] | None = None
        self.gone = self.lost = 0

    def add(self, uses: Uses) -> None:
        """Add an interval. Pages that are gone at its end are forgotten."""
        import numpy as np

        self.nr += 1
        self.gone += uses.gone
        self.lost += uses.lost
        before, heat_before = self.uses, self.heat
        touched, written, unknown, new = uses.touched, uses.written, uses.unknown, uses.new
        heat = unpack(uses.touched).astype(np.uint16) if self._counts else None
        if before is not None and len(before.blocks):
            same, at = _same_blocks(before.blocks, uses.blocks)
            stays = np.where(same[:, None], uses.present & ~uses.new, np.uint64(0))
            touched = touched | (before.touched[at] & stays)
            written = written | (before.written[at] & stays)
            new = new | (before.new[at] & stays)
            # Not known at any time, and so for as long as the page was there.
            known = ~uses.unknown | (stays & ~before.unknown[at])
            unknown = uses.present & ~known & ~touched
            if heat is not None and heat_before is not None:
                heat += heat_before[at] * unpack(stays)
        self.heat = heat
        self.uses = uses._replace(
            touched=touched,
            written=written,
            unknown=unknown,
            new=new,
            gone=self.gone,
            lost=self.lost,
        )

    def sums(self, starts: Any, ends: Any) -> list[Sums]:
        """The sums of each range of addresses, as of mappings."""
        import numpy as np

        assert self.uses
        return sums_of(
            self.uses, np.array(starts, dtype=np.uint64), np.array(ends, dtype=np.uint64)
        )

    def total(self) -> Sums:
        """The sums of all pages."""
        assert self.uses
        return total_of(self.uses)


def total_of(uses: Uses) -> Sums:
    """The sums of all pages of an interval."""
    import numpy as np

    ends = np.array([0, np.iinfo(np.uint64).max], dtype=np.uint64)
    (sums,) = sums_of(uses, ends[:1], ends[1:])
    sums.gone, sums.lost = uses.gone * PAGE_SIZE, uses.lost * PAGE_SIZE
    return sums


def sums_of(uses: Uses, starts: npt.NDArray[np.uint64], ends: npt.NDArray[np.uint64]) -> list[Sums]:
    """The sums of each range of addresses. `gone` and `lost` are left 0."""
    import numpy as np

    is_huge = (uses.blocks["shift"] != PAGE_SHIFT)[:, None]
    zero = np.uint64(0)
    words = {
        "resident": uses.present,
        "touched": uses.touched,
        "written": uses.written,
        "unknown": uses.unknown,
        "new": uses.new,
        "huge": np.where(is_huge, uses.touched, zero),
    }
    columns = {}
    for name, bits in words.items():
        until, since = (nr_pages_before(uses.blocks, bits, each) for each in (ends, starts))
        columns[name] = ((until - since) * PAGE_SIZE).tolist()
    rows = (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )
    return [
        Sums(**row, untouched=row["resident"] - row["touched"] - row["unknown"]) for row in rows
    ]


def unpack(words: Words) -> npt.NDArray[np.uint8]:
    """The bits of blocks, each as a number; shape (n, PAGES_IN_BLOCK)."""
    import numpy as np

    as_bytes = np.ascontiguousarray(words, dtype="<u8").view(np.uint8)
    return np.unpackbits(as_bytes.reshape(-1, WORDS * 8), axis=1, bitorder="little")


class PageRun(NamedTuple):
    """Contiguous pages of one mapping with one answer.

    Args:
        start: The first address.
        end: The first address after them.
        page_bytes: What one bit is for.
        times: In how many intervals they were certainly used.
        state: "written", "touched", "untouched" or "unknown".
    """

    start: int
    end: int
    page_bytes: int
    times: int
    state: str


STATES = ("untouched", "unknown", "touched", "written")


def iter_runs(history: History, cuts: npt.NDArray[np.uint64]) -> Iterator[PageRun]:
    """Yield the pages that are there, in address order, joined where they are alike.

    Args:
        history: What was found.
        cuts: The addresses at which mappings begin and end, in ascending order.
    """
    held: PageRun | None = None
    borders = set(cuts.tolist())
    for start, end, page_bytes, times, state in _iter_pieces(history):
        for low, high in _split(start, end, cuts):
            run = PageRun(low, high, page_bytes, times, STATES[state])
            if held and held.end == low and held[2:] == run[2:] and low not in borders:
                held = held._replace(end=high)
                continue
            if held:
                yield held
            held = run
    if held:
        yield held


def _split(start: int, end: int, cuts: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    import numpy as np

    first, last = np.searchsorted(cuts, np.array([start + 1, end], dtype=np.uint64))
    edges = [start, *cuts[first:last].tolist(), end]
    yield from itertools.pairwise(edges)


def _iter_pieces(history: History) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield pages of one block that are alike: start, end, size of a page, times, state."""
    import numpy as np

    uses = history.uses
    assert uses
    for at in range(0, len(uses.blocks), _BLOCKS_AT_ONCE):
        part = slice(at, at + _BLOCKS_AT_ONCE)
        present = unpack(uses.present[part]) != 0
        touched = unpack(uses.touched[part])
        states = np.where(touched != 0, 2, unpack(uses.unknown[part])).astype(np.int64)
        states[unpack(uses.written[part]) != 0] = 3
        times = touched if history.heat is None else history.heat[part]
        codes = np.where(present, states | times.astype(np.int64) << 2, -1)
        for block, row in zip(uses.blocks[part], codes, strict=True):
            shift, vaddr = int(block["shift"]), int(block["vaddr"])
            changes = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1]])).tolist()
            for first, last in zip(changes, [*changes[1:], len(row)], strict=True):
                code = int(row[first])
                if code >= 0:
                    start, end = vaddr + (first << shift), vaddr + (last << shift)
                    yield start, end, 1 << shift, code >> 2, code & 3
