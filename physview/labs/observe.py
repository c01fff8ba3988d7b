# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers with which the labs observe memory: translations, frame flags, and words for both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from physview.labs.model import Cell, Evidence
from physview.model import PAGE_SHIFT, PAGE_SIZE, PM_FILE, Cause, Translation
from physview.process import Process
from physview.runtime import invocation
from physview.sources.kpage import KpageFile
from physview.sources.page_flags import FLAG_BITS
from physview.units import size_words

if TYPE_CHECKING:
    from physview.sources.page_cache import PageCache

OFFSET_MASK = PAGE_SIZE - 1


def translate(
    vaddrs: Iterable[int], pid: int | str = "self", *, with_vma: bool = False
) -> list[Translation]:
    """Translate virtual addresses of a process to physical addresses, as they are now.

    Args:
        vaddrs: The virtual addresses.
        pid: The process.
        with_vma: Whether to look up the mapping of each address, too.

    Returns:
        One translation per address. A translation without a physical address has a cause.
    """
    with Process(pid) as process:
        return process.translate_many(vaddrs, with_vma=with_vma)


def paddr_cell(translation: Translation) -> Cell:
    """Return a table's cell: the physical address, or the cause why there is no such address."""
    return translation.cause if translation.paddr is None else translation.paddr


def are_hidden(translations: Iterable[Translation]) -> bool:
    """Whether the kernel hides frame numbers from this user."""
    return any(one.cause in (Cause.HIDDEN, Cause.SWAP_HIDDEN) for one in translations)


def note_hidden(evidence: Evidence) -> None:
    """Add a note to the evidence: physical addresses are missing; with the remedy."""
    remedy = "run as root" if os.geteuid() else "give root CAP_SYS_ADMIN, which a container lacks"
    evidence.note(
        "frame numbers are hidden from this user, so this lab measured virtual addresses only:"
        f" {remedy}, or {invocation.in_vm(f'lab {evidence.lab}')}"
    )


class FrameFlags:
    """Reads the flags of frames from /proc/kpageflags. A context manager. Only root may use it."""

    def __enter__(self) -> FrameFlags:
        self._file = KpageFile("kpageflags")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def flags(self, pfn: int) -> int:
        """Return the flags of one frame, or NO_ENTRY if the frame does not exist."""
        return next(iter(self._file.count_range(pfn, 1)))

    def has(self, pfn: int, name: str) -> bool:
        """Whether a frame has the flag with this name."""
        return bool(self.flags(pfn) >> FLAG_BITS[name] & 1)


def count_runs(pfns: Sequence[int]) -> int:
    """Count the runs of contiguous frames in a sequence of frame numbers.

    >>> count_runs([7, 8, 9, 3, 4])
    2
    """
    return bool(pfns) + sum(second != first + 1 for first, second in pairwise(pfns))


def cached_frames(cache: PageCache, path: str) -> dict[int, int]:
    """Map each cached page of a file (its index) to its frame in the page cache."""
    with cache.open(path) as file:
        return {
            first + i: pfn + i
            for runs in file.iter_cached()
            for first, pfn, nr, _ in runs.tolist()
            for i in range(nr)
            if pfn
        }


def mapping_name(translation: Translation) -> str:
    """Return the short name of the mapping that contains the address."""
    vma = translation.vma
    if vma is None:
        return "nothing"
    return os.path.basename(vma.path) or "[anonymous]"


def is_file_page(translation: Translation) -> bool:
    """Whether the page is a page of the file itself, not a private copy of such a page."""
    vma, entry = translation.vma, translation.entry
    return bool(vma and vma.inode and entry and entry.raw & PM_FILE)


def file_page_index(translation: Translation) -> int:
    """Return the index, within the mapped file, of the page that contains the address."""
    assert translation.vma
    return (translation.vaddr - translation.vma.start + translation.vma.offset) >> PAGE_SHIFT


def count_words(nr: int, one: str, many: str = "") -> str:
    """Return a number with its noun, in the singular or in the plural.

    >>> count_words(1, "page"), count_words(3, "page"), count_words(2, "copy", "copies")
    ('1 page', '3 pages', '2 copies')
    """
    return f"{nr} {one if nr == 1 else many or one + 's'}"


def align_words(address: int) -> str:
    """Return the alignment of an address, the largest power of two that divides it, as a size.

    >>> align_words(0x200000), align_words(0x3000), align_words(1 << 48)
    ('2 MiB', '4 KiB', '256 TiB')
    """
    return size_words(address & -address)
