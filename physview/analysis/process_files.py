# SPDX-License-Identifier: GPL-2.0-or-later
"""Opens the files that processes map, each once, to look them up in the page cache."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from physview.analysis.cached_files import Patterns
from physview.errors import AccessDenied, NoUserMemory, PhysviewError, ProcessGone
from physview.sources.mapped_files import Identity, MappedFile, iter_mapped_files, open_mapped
from physview.sources.page_cache import OpenFile, PageCache
from physview.sources.procfs import ProcDir

OnError = Callable[[PhysviewError], None]


class ProcessFiles:
    """The files that some processes map.

    Args:
        on_error: Called with the error of each file that could not be examined.
    """

    def __init__(self, on_error: OnError) -> None:
        self._on_error = on_error
        self._mapped: dict[Identity, tuple[MappedFile, list[int]]] = {}
        self.comms: dict[int, str] = {}
        """The names of the processes, by pid."""
        self.nr_denied = 0
        """Processes that this user may not examine."""

    def add(self, pid: int | str, *, is_given: bool) -> None:
        """Note the files that a process maps.

        Args:
            pid: The process.
            is_given: Whether the user named it. Then it is an error if it cannot be examined.

        Raises:
            PhysviewError: It was named, and cannot be examined.
        """
        try:
            with ProcDir(pid) as proc:
                comm = proc.comm()
                for mapped in iter_mapped_files(proc):
                    known = self._mapped.setdefault(mapped.identity, (mapped, []))
                    known[1].append(proc.pid)
                self.comms[proc.pid] = comm
        except (ProcessGone, NoUserMemory, AccessDenied) as error:
            if is_given:
                raise
            self.nr_denied += isinstance(error, AccessDenied)

    def iter_open(
        self, cache: PageCache, patterns: Patterns
    ) -> Iterator[tuple[OpenFile, list[int]]]:
        """Open each file once.

        Yields:
            The file, and the pids of the processes that map it.
        """
        for mapped, pids in self._mapped.values():
            if not patterns.wants_file(mapped.path):
                continue
            try:
                file = self._open(cache, mapped, pids)
            except PhysviewError as error:
                self._on_error(error)
                continue
            if file:
                with file:
                    yield file, pids

    @staticmethod
    def _open(cache: PageCache, mapped: MappedFile, pids: list[int]) -> OpenFile | None:
        """Open a file through one of its processes; None if it has no pages in the page cache."""
        last: PhysviewError | None = None
        for pid in pids:
            try:
                with ProcDir(pid) as proc:
                    fd = open_mapped(proc, mapped)
            except PhysviewError as error:
                last = error
                continue
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode) or cache.is_virtual(fd):
                    return None  # a device, or memory that is no file's
                return cache.open_by(mapped.path, fd)
            finally:
                os.close(fd)
        if last:
            raise last
        return None
