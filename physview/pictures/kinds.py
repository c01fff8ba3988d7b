# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of frames and pages in pictures, and their colours.

The colours are those of Okabe and Ito or close to them, so that colour-blind people can tell them
apart. Their lightness differs, so that they differ in grey, too. The subject of a picture has
colour. Other frames are grey: the lighter, the less they are in use (on light paper).
"""

from __future__ import annotations

from typing import NamedTuple

from physview.frames.machine import MAPPED, Use, use_of
from physview.model import NO_ENTRY
from physview.sources.page_flags import FLAG_BITS

# All flags that `use_of()` and the functions below look at.
TELLING = sum(
    1 << bit
    for name, bit in FLAG_BITS.items()
    if name
    in {use.rule for use in Use} | {"nopage", "swapbacked", "lru", "thp", "uptodate", "mmap"}
)
LARGE = 1 << FLAG_BITS["thp"] | 1 << FLAG_BITS["huge"]


NO_KIND = 255
"""In arrays of kinds: a page that is not drawn, such as a guard or a marker."""


class Kind(NamedTuple):
    """A kind of frames, or of pages that have no frame.

    Args:
        slug: Its name in JSON, CSS and code.
        label: Its name in the legend.
        light: Its colour on light paper, "#rrggbb".
        dark: Its colour on dark paper.
        group: Its heading in the legend.
        is_subject: Whether the picture is about it. Then each cell that has such a frame shows it.
        has_frame: Whether it is a kind of frames; otherwise of pages without a frame of their own.
        is_past: Whether it tells what a frame was before, and not what it is now.
    """

    slug: str
    label: str
    light: str
    dark: str
    group: str
    is_subject: bool = False
    has_frame: bool = True
    is_past: bool = False


BLUE, SKY = ("#0072b2", "#3b9bdc"), ("#7cc7f2", "#a8dcf8")
ORANGE, PURPLE, VERMILLION = ("#e69f00", "#eeae2e"), ("#7b2fb0", "#a050e0"), ("#d55e00", "#f08850")
BROWN = ("#7a2e00", "#a04a10")
SLATE = ("#8b96a1", "#7d8994")
# The step from free frames to the page cache is the largest: most of RAM is one or the other.
GREYS = [
    ("#eceff2", "#242a31"),
    ("#bfc7cf", "#48525d"),
    ("#a3adb7", "#616c78"),
    ("#87929d", "#7d8994"),
    ("#5a6570", "#b4bec7"),
]

OWN, REST, PAGES = "This process", "All other memory", "Pages without a frame of their own"
USED, IDLE = "Processes and files", "The rest of memory"

PROCESS_KINDS = (
    Kind("own_anon", "anonymous", *BLUE, OWN, is_subject=True),
    Kind("own_huge", "anonymous, in large folios", *SKY, OWN, is_subject=True),
    Kind("own_file", "files", *ORANGE, OWN, is_subject=True),
    Kind("own_shared", "shared memory", *PURPLE, OWN, is_subject=True),
    Kind("page_tables", "all page tables", *VERMILLION, REST),
    Kind("reserved", "reserved", *GREYS[4], REST),
    Kind("kernel", "kernel", *GREYS[3], REST),
    Kind("others", "other anonymous, shared", *GREYS[2], REST),
    Kind("page_cache", "page cache", *GREYS[1], REST),
    Kind("free", "free", *GREYS[0], REST),
    Kind("swapped", "swapped out", *GREYS[3], PAGES, has_frame=False),
    Kind("zero", "zero page", *GREYS[1], PAGES, has_frame=False),
)
"""The kinds in the picture of a process."""

MACHINE_KINDS = (
    Kind("anon", "anonymous", *BLUE, USED),
    Kind("huge", "anonymous, in large folios", *SKY, USED),
    Kind("mapped_file", "files, mapped", *ORANGE, USED),
    Kind("shared", "shared memory, tmpfs", *PURPLE, USED),
    Kind("page_tables", "page tables", *VERMILLION, USED),
    Kind("reserved", "reserved", *GREYS[4], IDLE),
    Kind("kernel", "kernel, or held back", *GREYS[3], IDLE),
    Kind("slab", "kernel: slab", *GREYS[2], IDLE),
    Kind("page_cache", "page cache, not mapped", *GREYS[1], IDLE),
    Kind("free", "free", *GREYS[0], IDLE),
)
"""The kinds in the picture of the machine."""

NOW, BEFORE = "In the frame now", "In the frame before"
MACHINE = "The rest of RAM"

DIFF_KINDS = (
    Kind("stayed", "stayed in its frame", *SLATE, NOW, is_subject=True),
    Kind("moved", "moved, copied, collapsed", *BLUE, NOW, is_subject=True),
    Kind("new", "touched or mapped since", *SKY, NOW, is_subject=True),
    Kind("swapped_in", "swapped in", *PURPLE, NOW, is_subject=True),
    Kind("left", "left: its page has moved", *ORANGE, BEFORE, is_subject=True, is_past=True),
    Kind("gone", "given back, unmapped", *VERMILLION, BEFORE, is_subject=True, is_past=True),
    Kind("swapped_out", "swapped out", *BROWN, BEFORE, is_subject=True, is_past=True),
    Kind("swapped", "swapped out both times", *GREYS[2], PAGES, has_frame=False),
    Kind("untold", "in memory both times", *GREYS[3], PAGES, has_frame=False),
    Kind("zero", "zero page", *GREYS[1], PAGES, has_frame=False),
    Kind("other", "not this process's", *GREYS[0], MACHINE),
)
"""The kinds in the picture of a difference. Grey: unchanged. Blue and purple: new in its frame.
Orange to brown: no longer in its frame."""

_RESERVED = (Use.RESERVED, Use.ZERO_PAGE, Use.POISONED, Use.OFFLINE, Use.NO_FRAME)
_REST = {
    Use.FREE: "free",
    Use.SLAB: "kernel",
    Use.OTHER: "kernel",
    Use.PAGE_TABLES: "page_tables",
    Use.PAGE_CACHE: "page_cache",
} | dict.fromkeys(_RESERVED, "reserved")
_MACHINE = {
    Use.FREE: "free",
    Use.SLAB: "slab",
    Use.OTHER: "kernel",
    Use.PAGE_TABLES: "page_tables",
    Use.SHMEM: "shared",
    Use.HUGETLB: "huge",
} | dict.fromkeys(_RESERVED, "reserved")


def index_of(kinds: tuple[Kind, ...], slug: str) -> int:
    """The index of a kind."""
    return next(i for i, kind in enumerate(kinds) if kind.slug == slug)


def rest_kind(flags: int) -> int:
    """The kind of a frame in the picture of a process that does not map it.

    Args:
        flags: From /proc/kpageflags.

    Returns:
        The index in PROCESS_KINDS.

    >>> PROCESS_KINDS[rest_kind(1 << 10)].slug, PROCESS_KINDS[rest_kind(1 << 12)].slug
    ('free', 'others')
    """
    return index_of(PROCESS_KINDS, _REST.get(use_of(flags), "others"))


def own_kind(flags: int, *, is_file: bool) -> int:
    """The kind of a frame in the picture of a process that maps it.

    Args:
        flags: From /proc/kpageflags; NO_ENTRY if they are hidden.
        is_file: Bit 61 of the pagemap entry: a page of a file or of shared memory.

    Returns:
        The index in PROCESS_KINDS.

    >>> PROCESS_KINDS[own_kind(1 << 12 | 1 << 22, is_file=False)].slug
    'own_huge'
    """
    use = use_of(flags)
    if flags == NO_ENTRY:
        slug = "own_file" if is_file else "own_anon"
    elif use is Use.ZERO_PAGE:
        slug = "zero"
    elif use is Use.SHMEM:
        slug = "own_shared"
    elif use in (Use.ANON, Use.KSM, Use.HUGETLB):
        slug = "own_huge" if flags & LARGE else "own_anon"
    else:  # page cache, or the kernel's own pages such as the vdso, which belong to no file
        slug = "own_file" if is_file else "own_anon"
    return index_of(PROCESS_KINDS, slug)


def machine_kind(flags: int) -> int:
    """The kind of a frame in the picture of the machine: the index in MACHINE_KINDS.

    >>> MACHINE_KINDS[machine_kind(1 << 5 | 1 << 11)].slug
    'mapped_file'
    """
    use = use_of(flags)
    if use in (Use.ANON, Use.KSM):
        slug = "huge" if flags & LARGE else "anon"
    elif use is Use.PAGE_CACHE:
        slug = "mapped_file" if flags & MAPPED else "page_cache"
    else:
        slug = _MACHINE[use]
    return index_of(MACHINE_KINDS, slug)
