# SPDX-License-Identifier: GPL-2.0-or-later
"""Referenced of smaps as a way to see how much of each mapping was used. It needs no root."""

from __future__ import annotations

from physview.analysis.page_uses import Sums
from physview.analysis.page_way import CHANGES_NOTHING
from physview.analysis.touched_ways import (
    AROUND_FAULTS,
    BITS_ARE_SHARED,
    CLEARED,
    NO_FLUSH,
    clear_accessed,
)
from physview.errors import AccessDenied, Unsupported
from physview.model import Vma
from physview.sources import soft_dirty
from physview.sources.mappings import MappingReader
from physview.sources.procfs import ProcDir

_OF_FILES = "pages of files also count when another process used them or read the file"


class Referenced:
    """What smaps says of each mapping.

    Args:
        proc: The process.
        clears: Whether to clear the accessed bits first, by clear_refs.
        why_not_accessed: Why a better way was not available.
    """

    name = "referenced"
    source = "smaps"
    knows_reads = True
    knows_writes = False

    def __init__(
        self,
        proc: ProcDir,
        *,
        clears: bool,
        why_not_accessed: AccessDenied | Unsupported | None = None,
    ) -> None:
        self.proc = proc
        self.clears = clears
        self.why_not_accessed = why_not_accessed
        self._flushes = clears and not soft_dirty.is_supported()
        self._before: dict[tuple[int, int], int] = {}
        self.influence = CLEARED if clears else CHANGES_NOTHING
        first = () if self._flushes else (NO_FLUSH,)
        if not clears:
            first = (
                "the growth of a mapping's Referenced counts, which is the least that was used;"
                " --clear tells the rest",
            )
        self.limits = (*first, _OF_FILES, BITS_ARE_SHARED, AROUND_FAULTS)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Referenced:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self) -> list[tuple[Vma, int, int]]:
        """Each mapping, with Rss and Referenced in bytes."""
        found = []
        with MappingReader(self.proc, "smaps") as reader:
            for chunk in reader.iter_chunks():
                sizes = (chunk.sizes("Rss"), chunk.sizes("Referenced"))
                found += [
                    (vma, rss or 0, referenced or 0)
                    for vma, rss, referenced in zip(chunk.vmas(), *sizes, strict=True)
                ]
        if self.proc.has_ended():
            raise self.proc.gone()
        return found

    def begin(self) -> None:
        """Begin an interval.

        Raises:
            PhysviewError: The process is gone, or this user may not.
        """
        self._before = {vma[:2]: referenced for vma, _, referenced in self._look()}
        if self.clears:
            flushed = clear_accessed(self.proc, flush=self._flushes)
            if self._flushes and not flushed:
                self._flushes, self.limits = False, (NO_FLUSH, *self.limits)

    def end(self) -> list[tuple[Vma, Sums]]:
        """End it; return the sums of each mapping with resident memory. Raises as `begin()`."""
        found = []
        for vma, rss, referenced in self._look():
            if not rss:
                continue
            before = 0 if self.clears else self._before.get(vma[:2], 0)
            touched = max(0, min(referenced, rss) - before)
            unknown = 0 if self.clears else min(referenced, rss) - touched
            sums = Sums(resident=rss, touched=touched, unknown=unknown)
            sums.untouched = rss - touched - unknown
            found.append((vma, sums))
        return found
