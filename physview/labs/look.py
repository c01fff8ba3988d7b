# SPDX-License-Identifier: GPL-2.0-or-later
"""How the labs look at memory: translations with the cause of each gap, and what frames are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from physview.frames.machine import Use, use_of
from physview.labs.base import Cell, Evidence
from physview.model import PAGE_SHIFT, PAGE_SIZE, PM_FILE, Cause, Translation
from physview.process import Process
from physview.runtime import invocation
from physview.sources.kpage import KpageFile
from physview.sources.page_flags import FLAG_BITS
from physview.units import size_words

if TYPE_CHECKING:
    from physview.sources.page_cache import PageCache

OFFSET_MASK = PAGE_SIZE - 1


def look_at(
    vaddrs: Iterable[int], pid: int | str = "self", *, with_vma: bool = False
) -> list[Translation]:
    """Translate addresses of a process as they are now."""
    with Process(pid) as process:
        return process.translate_many(vaddrs, with_vma=with_vma)


def where(translation: Translation) -> Cell:
    """The cell of a physical address: it, or the cause why there is none."""
    return translation.cause if translation.paddr is None else translation.paddr


def are_hidden(translations: Iterable[Translation]) -> bool:
    """Whether the kernel hides frame numbers from us."""
    return any(one.cause in (Cause.HIDDEN, Cause.SWAP_HIDDEN) for one in translations)


def note_hidden(evidence: Evidence) -> None:
    """Say that the physical half is missing, and how to get it."""
    remedy = "run as root" if os.geteuid() else "give root CAP_SYS_ADMIN, which a container lacks"
    evidence.note(
        "frame numbers are hidden from this user, so that only the virtual half could be looked"
        f" at: {remedy}, or {invocation.in_vm(f'lab {evidence.lab}')}"
    )


class Frames:
    """What the kernel says of frames. A context manager; root's."""

    def __enter__(self) -> Frames:
        self._file = KpageFile("kpageflags")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def flags(self, pfn: int) -> int:
        """The flags of one frame; NO_ENTRY where there is none."""
        return next(iter(self._file.count_range(pfn, 1)))

    def use(self, pfn: int) -> Use:
        """What a frame is used for."""
        return use_of(self.flags(pfn))

    def has(self, pfn: int, name: str) -> bool:
        """Whether a frame has the flag of that name."""
        return bool(self.flags(pfn) >> FLAG_BITS[name] & 1)


def nr_runs(pfns: Sequence[int]) -> int:
    """How many runs of frames in a row these are, in this order.

    >>> nr_runs([7, 8, 9, 3, 4])
    2
    """
    return bool(pfns) + sum(second != first + 1 for first, second in pairwise(pfns))


def cached_frames(cache: PageCache, path: str) -> dict[int, int]:
    """The frame of each page of a file that the page cache has."""
    with cache.open(path) as file:
        return {
            first + i: pfn + i
            for runs in file.iter_cached()
            for first, pfn, nr, _ in runs.tolist()
            for i in range(nr)
            if pfn
        }


def name_of(translation: Translation) -> str:
    """The mapping an address lies in, by the last part of its name."""
    vma = translation.vma
    if vma is None:
        return "nothing"
    return os.path.basename(vma.path) or "[anonymous]"


def is_of_file(translation: Translation) -> bool:
    """Whether the page is the file's own, not a private copy of it."""
    vma, entry = translation.vma, translation.entry
    return bool(vma and vma.inode and entry and entry.raw & PM_FILE)


def page_of_file(translation: Translation) -> int:
    """Which page of the mapped file an address shows."""
    assert translation.vma
    return (translation.vaddr - translation.vma.start + translation.vma.offset) >> PAGE_SHIFT


def count(nr: int, one: str, many: str = "") -> str:
    """A number and its noun.

    >>> count(1, "page"), count(3, "page"), count(2, "copy", "copies")
    ('1 page', '3 pages', '2 copies')
    """
    return f"{nr} {one if nr == 1 else many or one + 's'}"


def log2_aligned(address: int) -> int:
    """Of what power of two an address is a multiple.

    >>> log2_aligned(0x200000), log2_aligned(0x3000)
    (21, 12)
    """
    return (address & -address).bit_length() - 1


def align_words(address: int) -> str:
    """The largest power of two that an address is a multiple of, as a size.

    >>> align_words(0x200000), align_words(0x3000), align_words(1 << 48)
    ('2 MiB', '4 KiB', '256 TiB')
    """
    return size_words(address & -address)
