# SPDX-License-Identifier: GPL-2.0-or-later
"""The accessed and the dirty bits of page-table entries, as the processor sets them.

The processor sets the accessed bit of an entry when it uses the entry to find a page, and the dirty
bit when it writes to the page. It does not do so again while its TLB holds the entry. Nothing here
changes a bit.

Source: Intel SDM volume 3A, 4.8; csrc/bpf_bits.c
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview.errors import AccessDenied
from physview.model import PAGE_SHIFT, PageKind
from physview.runtime.privileges import root_remedy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.sources.page_tables import PageTables

PAGES_IN_BLOCK = 512
WORDS = PAGES_IN_BLOCK // 64
BLOCK_SHIFT = PAGE_SHIFT + 9

BITS_DTYPE: list[Any] = [
    ("vaddr", "u8"),
    ("shift", "u4"),
    ("is_unstable", "u4"),
    ("present", "u8", WORDS),
    ("accessed", "u8", WORDS),
    ("written", "u8", WORDS),
]
"""`struct pv_bits` of csrc/cdef.h. A block is 512 pages, each with its bit; or, if `shift` is that
of a huge page, one huge page with the first bit. Of a block with `is_unstable` nothing is known."""

# Entries of x86-64 and arm64: csrc/x86_entry.h, csrc/arm64_entry.h
_X86_ACCESSED, _X86_DIRTY, _X86_SOFT_DIRTY = 1 << 5, 1 << 6 | 1 << 58, 1 << 11
_NR_EXTENTS = 1024
_NR_PAGES = 1 << 15


def empty_bits() -> npt.NDArray[Any]:
    """No blocks."""
    import numpy as np

    return np.empty(0, dtype=BITS_DTYPE)


def set_bits(
    blocks: npt.NDArray[Any], name: str, vaddrs: npt.NDArray[np.uint64], chosen: Any = None
) -> None:
    """Set the bits of pages in blocks of base pages.

    Args:
        blocks: Structured array of BITS_DTYPE, in address order. Each page must have a block.
        name: "present", "accessed" or "written".
        vaddrs: The addresses of the pages.
        chosen: Bool array: which of them; None for all.
    """
    import numpy as np

    if chosen is not None:
        vaddrs = vaddrs[chosen]
    bits = (vaddrs >> np.uint64(PAGE_SHIFT)) & np.uint64(PAGES_IN_BLOCK - 1)
    which = np.searchsorted(blocks["vaddr"], vaddrs >> BLOCK_SHIFT << BLOCK_SHIFT)
    words = np.uint64(1) << (bits & np.uint64(63))
    np.bitwise_or.at(blocks[name], (which, (bits >> np.uint64(6)).astype(np.intp)), words)


def blocks_of(vaddrs: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
    """Make the blocks of base pages, in address order, in which no bit is set."""
    import numpy as np

    starts = np.unique(vaddrs >> BLOCK_SHIFT << BLOCK_SHIFT)
    blocks = np.zeros(len(starts), dtype=BITS_DTYPE)
    blocks["vaddr"], blocks["shift"] = starts, PAGE_SHIFT
    return blocks


def join_blocks(pieces: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Join arrays of blocks, of which the last of one may be the first of the next."""
    import numpy as np

    blocks = np.concatenate(pieces) if pieces else empty_bits()
    blocks = blocks[np.argsort(blocks["vaddr"], kind="stable")]
    again = (blocks["vaddr"][1:] == blocks["vaddr"][:-1]) & (
        blocks["shift"][1:] == blocks["shift"][:-1]
    )
    for i in np.flatnonzero(again):
        for name in ("present", "accessed", "written"):
            blocks[name][i + 1] |= blocks[name][i]
    return blocks[np.concatenate([~again, [True]])] if len(blocks) else blocks


def read_each_page(tables: PageTables, *, soft_dirty: bool = False) -> npt.NDArray[Any]:
    """Read the bits by a walk to each page: for a source that has no faster way.

    Args:
        tables: The page tables of a process.
        soft_dirty: As in `PageTables.read_bits()`.

    Raises:
        As `PageTables.read_bits()`.
    """
    import numpy as np

    pieces = []
    for extents in tables.iter_extents(0, tables.user_end(), nr=_NR_EXTENTS):
        kinds = extents["kind"]
        with_pages = extents[(kinds == PageKind.PRESENT) | (kinds == PageKind.PROT_NONE)]
        for shift in np.unique(with_pages["page_shift"]).tolist():
            some = with_pages[with_pages["page_shift"] == shift]
            for vaddrs in _addresses(some["vaddr"], some["length"], shift):
                pieces.append(_bits_of_pages(tables, vaddrs, shift, soft_dirty=soft_dirty))
    tables.check_alive()
    return join_blocks(pieces)


def _addresses(
    starts: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64], shift: int
) -> Iterator[npt.NDArray[np.uint64]]:
    """Yield the address of each page of 2**shift bytes of extents, in bounded pieces."""
    import numpy as np

    firsts = starts >> shift << shift
    sizes = ((starts + lengths - firsts + np.uint64((1 << shift) - 1)) >> shift).astype(np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    for at in range(0, total, _NR_PAGES):
        pages = np.arange(at, min(total, at + _NR_PAGES))
        of = np.searchsorted(ends, pages, side="right")
        within = (pages - (ends[of] - sizes[of])).astype(np.uint64)
        yield firsts[of] + (within << shift)


def _bits_of_pages(
    tables: PageTables, vaddrs: npt.NDArray[np.uint64], shift: int, *, soft_dirty: bool
) -> npt.NDArray[Any]:
    import numpy as np

    pages = tables.pages(vaddrs)
    has_page = (pages["kind"] == PageKind.PRESENT) | (pages["kind"] == PageKind.PROT_NONE)
    here = has_page & (pages["page_shift"] == shift)  # the tables may have changed meanwhile
    if (here & (pages["entry"] == 0)).any():
        why = "the kernel module hides the entries of page tables from this user"
        raise AccessDenied("cannot read accessed bits", why, root_remedy("SYS_ADMIN"))
    accessed, written = _decode(pages["entry"], soft_dirty=soft_dirty)
    if shift == PAGE_SHIFT:
        blocks = blocks_of(vaddrs)
        for name, chosen in (("present", here), ("accessed", accessed), ("written", written)):
            set_bits(blocks, name, vaddrs, here & chosen)
        return blocks
    blocks = np.zeros(len(vaddrs), dtype=BITS_DTYPE)
    blocks["vaddr"], blocks["shift"], blocks["is_unstable"] = vaddrs, shift, ~here
    blocks["present"][:, 0] = here
    blocks["accessed"][:, 0], blocks["written"][:, 0] = here & accessed, here & written
    return blocks


def _decode(
    entries: npt.NDArray[np.uint64], *, soft_dirty: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which entries are accessed, and which are written."""
    import numpy as np

    def has(bits: int) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = entries & np.uint64(bits) != 0
        return found

    if os.uname().machine == "aarch64":
        return has(1 << 10), has(1 << 55) | (has(1 << 51) & ~has(1 << 7))
    return has(_X86_ACCESSED), has(_X86_SOFT_DIRTY if soft_dirty else _X86_DIRTY)
