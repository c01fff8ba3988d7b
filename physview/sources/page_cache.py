# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds which pages of a file are in the page cache, their frames, and their state.

Best effort is made not to read anything into the cache. mincore() tells first which pages are
cached. Only these pages are mapped for a moment, to find their frames. A page that is evicted
between the two steps is read back in, and is counted. The mapping does not mark pages as recently
used in the kernel's LRU lists.

Source: mincore(2), cachestat(2), lseek(2), /proc/self/pagemap, /proc/kpageflags
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.files.descriptor import Closable, Descriptor
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE, PM_PFRAME_MASK, PM_PRESENT, printable
from physview.runtime import invocation
from physview.sources.kpage import FRAMES_DTYPE, KpageFile
from physview.sources.page_flags import FLAG_BITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CACHED_DTYPE = [("page", "u8"), ("pfn", "u8"), ("nr", "u8"), ("flags", "u8")]
"""Cached pages that are contiguous in the file and in physical memory.

page: index in the file of the first page. pfn: its frame number; 0 if it is unknown. nr: the number
of pages. flags: their value in kpageflags; NO_ENTRY if it is unknown.
"""

# Pages per step. A smaller window leaves less time for changes between mincore() and mmap().
WINDOW = 4096

DIRTY = 1 << FLAG_BITS["dirty"]
WRITEBACK = 1 << FLAG_BITS["writeback"]
ACTIVE = 1 << FLAG_BITS["active"]
MAPPED = 1 << FLAG_BITS["mmap"]
LARGE = 1 << FLAG_BITS["thp"] | 1 << FLAG_BITS["huge"]


class CachedFile(NamedTuple):
    """How much of a file is in the page cache, in pages. Unknown counts are None.

    Args:
        path: The file.
        size_bytes: Size of the file.
        nr_pages: Pages that the whole file would fill.
        nr_holes: Pages in holes, which have no blocks on the disk.
        nr_cached: Pages in the page cache.
        nr_dirty: Cached pages that are dirty: changed, and not yet written to the disk.
        nr_writeback: Cached pages that are being written to the disk.
        nr_mapped: Cached pages that are in the page tables of some process.
        nr_active: Cached pages on the kernel's active list: those that were used repeatedly.
        nr_large: Cached pages in folios of more than one page.
        nr_runs: Runs of contiguous frames that the cached pages form.
        nr_read: Pages that were evicted during the look-up, and that the look-up read back in.
    """

    path: str
    size_bytes: int
    nr_pages: int
    nr_holes: int
    nr_cached: int
    nr_dirty: int | None
    nr_writeback: int | None
    nr_mapped: int | None
    nr_active: int | None
    nr_large: int | None
    nr_runs: int | None
    nr_read: int


class PageCache(Closable):
    """Looks files up in the page cache.

    Args:
        with_frames: Whether to find frames and the counts that depend on them, which only root may
            do. None finds them if possible.

    Raises:
        AccessDenied: `with_frames` is True, and frames are hidden from this user.
        Unsupported: `with_frames` is True, and the kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """

    def __init__(self, *, with_frames: bool | None = None) -> None:
        self._ffi, self._lib = _ffi.load()
        self._pagemap = -1
        self.flags: KpageFile | None = None
        """The kpageflags file; None if frames are unknown."""
        self.why_no_frames = ""
        """Why frames are unknown; empty if they are known."""
        if with_frames is False:
            self.why_no_frames = "not asked for"
            return
        try:
            self.flags = KpageFile("kpageflags")
        except (AccessDenied, Unsupported) as error:
            if with_frames:
                raise
            self.why_no_frames = str(error)
            return
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the kernel's files. Closing twice is harmless."""
        if self.flags:
            self.flags.close()
            self.flags = None
        if self._pagemap >= 0:
            os.close(self._pagemap)
            self._pagemap = -1

    def open(self, path: str) -> OpenFile:
        """Open a regular file or a block device.

        Raises:
            PhysviewError: It is neither, or it cannot be opened.
        """
        return OpenFile(self, path)

    def look_at(self, path: str) -> CachedFile:
        """Find how much of a file is cached, and in which state. Raises as `open()` does."""
        with self.open(path) as file:
            return file.summary()

    def is_hugetlbfs(self, fd: int) -> int:
        """Whether an open file is in hugetlbfs: 0, 1 or -errno."""
        return self._lib.pv_is_hugetlbfs(fd)

    def cachestat(self, fd: int) -> list[int] | None:
        """Call cachestat() for an open file; the result is that of `OpenFile.cachestat()`."""
        counts = self._ffi.new("uint64_t[5]")
        if self._lib.pv_cachestat(fd, counts):
            return None
        return [int(count) for count in counts]

    def read_window(
        self,
        fd: int,
        first: int,
        resident: npt.NDArray[np.uint8],
        entries: npt.NDArray[np.uint64],
    ) -> tuple[int, int]:
        """Look up contiguous pages of an open file.

        Args:
            fd: The file.
            first: Index of the first page.
            resident: Array, shape (n,), written: 1 for a page that is cached, otherwise 0.
            entries: Array, shape (n,), written if frames are known: the pagemap entry of each
                cached page.

        Returns:
            The number of cached pages, or -errno; and the number of pages that were evicted during
            the look-up, and read back in.
        """
        nr_read = self._ffi.new("uint64_t *")
        nr_resident = self._lib.pv_cached_pages(
            fd,
            self._pagemap,
            PAGE_SHIFT,
            first << PAGE_SHIFT,
            len(resident),
            self._ffi.from_buffer("uint8_t[]", resident),
            self._ffi.from_buffer("uint64_t[]", entries),
            nr_read,
        )
        return nr_resident, int(nr_read[0])


class OpenFile(Descriptor):
    """An open file whose pages are looked up in the page cache; made by `PageCache.open()`."""

    def __init__(self, cache: PageCache, path: str) -> None:
        self._cache = cache
        self.path = path
        self.nr_read = 0
        """Pages that the look-up itself has read back into the cache."""
        self._fd = _open(path)
        try:
            info = os.fstat(self._fd)
            if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
                raise PhysviewError(_cannot(path), f"it is {_kind(info.st_mode)}", path=path)
            self.identity = (info.st_dev, info.st_ino)
            if _ffi.check(cache.is_hugetlbfs(self._fd), path):
                # For hugetlbfs, mincore() knows only pages that this process maps, and cachestat()
                # is refused.
                why = "it is in hugetlbfs, whose cached pages the kernel does not show"
                remedy = (
                    f"look at a process that maps it: {invocation.physview_as_root('maps PID')}"
                )
                raise PhysviewError(_cannot(path), why, remedy, path=path)
            self.size_bytes = info.st_size
            if stat.S_ISBLK(info.st_mode):
                self.size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    @property
    def nr_pages(self) -> int:
        """Pages that the file fills; the last page may be only partly filled."""
        return -(-self.size_bytes // PAGE_SIZE)

    def nr_holes(self) -> int:
        """The number of pages that are entirely in holes; 0 if the file system reports no holes."""
        nr = 0
        # A file whose blocks are all allocated has no holes. st_blocks has units of 512 bytes.
        at = 0 if os.fstat(self._fd).st_blocks * 512 < self.size_bytes else self.size_bytes
        while at < self.size_bytes:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    return nr
                data = self.nr_pages * PAGE_SIZE  # there is no data after `at`
            nr += max(0, data // PAGE_SIZE - -(-at // PAGE_SIZE))
            if data >= self.size_bytes:
                break
            try:
                at = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError:  # the file was truncated meanwhile
                break
        return nr

    def iter_cached(self) -> Iterator[npt.NDArray[Any]]:
        """Look up the pages of the file, in constant memory.

        Pages that the look-up reads back into the cache are counted in `nr_read`.

        Yields:
            Structured arrays of CACHED_DTYPE, in the order of the file.

        Raises:
            AccessDenied: This user neither owns the file nor may write to it. Since Linux 5.2
                mincore() reports every page as cached to such users.
            PhysviewError: The file cannot be mapped.
        """
        import numpy as np

        self._check_may_ask()
        resident = np.empty(WINDOW, dtype=np.uint8)
        entries = np.zeros(WINDOW, dtype=np.uint64)
        self.nr_read = 0
        for first in range(0, self.nr_pages, WINDOW):
            nr = min(WINDOW, self.nr_pages - first)
            nr_resident, nr_read = self._cache.read_window(
                self._fd, first, resident[:nr], entries[:nr]
            )
            if nr_resident < 0:
                why = os.strerror(-nr_resident)
                if nr_resident == -errno.ENODEV:
                    why = "its file system does not support mmap()"
                raise PhysviewError(_cannot(self.path), why, path=self.path)
            self.nr_read += nr_read
            if nr_resident:
                yield self._runs(first, resident[:nr], entries[:nr])

    def _check_may_ask(self) -> None:
        # For other users mincore() reports every page as cached. Source: can_do_mincore() in
        # mm/mincore.c
        owner = os.fstat(self._fd).st_uid
        is_owner = os.geteuid() in (owner, 0)
        path = f"/proc/self/fd/{self._fd}"
        if not is_owner and not os.access(path, os.W_OK, effective_ids=True):
            raise AccessDenied(
                _cannot(self.path),
                "only the file's owner, and users who may write to it, may see that",
                "run as root",
                path=self.path,
            )

    def _runs(
        self, first: int, resident: npt.NDArray[np.uint8], entries: npt.NDArray[np.uint64]
    ) -> npt.NDArray[Any]:
        import numpy as np

        pages = np.flatnonzero(resident)
        here = entries[pages]
        pfns = np.where(here & np.uint64(PM_PRESENT) != 0, here & np.uint64(PM_PFRAME_MASK), 0)
        if self._cache.flags is None:
            pfns[:] = 0
        is_known = pfns != 0
        continues = (np.diff(pages) == 1) & (is_known[1:] == is_known[:-1])
        continues &= ~is_known[1:] | (pfns[1:] == pfns[:-1] + np.uint64(1))
        starts = np.flatnonzero(np.concatenate(([True], ~continues)))
        runs = np.empty(len(starts), dtype=CACHED_DTYPE)
        runs["page"] = pages[starts] + first
        runs["pfn"] = pfns[starts]
        runs["nr"] = np.diff(np.append(starts, len(pages)))
        runs["flags"] = NO_ENTRY
        return runs if self._cache.flags is None else self._with_flags(runs, self._cache.flags)

    @staticmethod
    def _with_flags(runs: npt.NDArray[Any], kpage: KpageFile) -> npt.NDArray[Any]:
        """Add the flags, and split runs where the flags change.

        physview has unmapped the file before, so the flag mmap means: mapped by another process.
        """
        import numpy as np

        known = runs[runs["pfn"] != 0]
        frames = np.empty(len(known), dtype=FRAMES_DTYPE)
        frames["pfn"], frames["nr"] = known["pfn"], known["nr"]
        pieces = kpage.split(frames)
        of = known[pieces["run"].astype(np.intp)]
        split = np.empty(len(pieces), dtype=CACHED_DTYPE)
        split["page"] = of["page"] + (pieces["pfn"] - of["pfn"])
        split["pfn"], split["nr"], split["flags"] = pieces["pfn"], pieces["nr"], pieces["value"]
        split = np.concatenate([runs[runs["pfn"] == 0], split])
        return split[np.argsort(split["page"], kind="stable")]

    def summary(self, visit: Callable[[npt.NDArray[Any]], None] | None = None) -> CachedFile:
        """Count how much of the file is cached, and in which state. Raises as `iter_cached()` does.

        Args:
            visit: Called with each array that `iter_cached()` yields.
        """
        summary = Summary()
        try:
            for found in self.iter_cached():
                summary.add(found)
                if visit:
                    visit(found)
        except AccessDenied:
            counts = self.cachestat()
            if counts is None:  # cachestat() has the same restriction since 6.13 (5f537664e705)
                raise
            summary.nr_cached = counts[0]
        return summary.of(self)

    def cachestat(self) -> list[int] | None:
        """Call cachestat().

        Returns:
            Pages that are cached, dirty, in writeback, evicted, and recently evicted; None if the
            kernel refuses or has no cachestat().
        """
        return self._cache.cachestat(self._fd)

    @property
    def tells_frames(self) -> bool:
        """Whether frames, and the counts that depend on them, are known."""
        return not self._cache.why_no_frames


class Summary:
    """Adds up the arrays that `OpenFile.iter_cached()` yields."""

    def __init__(self) -> None:
        self.nr_cached = self.nr_known = self.nr_runs = 0
        self._nr_by_bits = dict.fromkeys((DIRTY, WRITEBACK, MAPPED, ACTIVE, LARGE), 0)
        self._next = (0, 0)

    def add(self, found: npt.NDArray[Any]) -> None:
        """Add one array of CACHED_DTYPE. Arrays must be added in the order of the file."""
        import numpy as np

        self.nr_cached += int(found["nr"].sum())
        known = found[found["flags"] != NO_ENTRY]
        if not len(known):
            return
        self.nr_known += int(known["nr"].sum())
        for bits in self._nr_by_bits:
            has = known["flags"] & np.uint64(bits) != 0
            self._nr_by_bits[bits] += int(known["nr"][has].sum())
        ends = known["page"] + known["nr"], known["pfn"] + known["nr"]
        continues = (known["page"][1:] == ends[0][:-1]) & (known["pfn"][1:] == ends[1][:-1])
        joins = (int(known["page"][0]), int(known["pfn"][0])) == self._next
        self.nr_runs += len(known) - int(continues.sum()) - joins
        self._next = int(ends[0][-1]), int(ends[1][-1])

    def of(self, file: OpenFile) -> CachedFile:
        """The result for a file. If frames are unknown, cachestat() may know some counts."""
        has_frames = self.nr_known > 0 or (not self.nr_cached and file.tells_frames)
        counts = None if has_frames else file.cachestat()
        numbers = self._nr_by_bits
        return CachedFile(
            path=file.path,
            size_bytes=file.size_bytes,
            nr_pages=file.nr_pages,
            nr_holes=file.nr_holes(),
            nr_cached=self.nr_cached,
            nr_dirty=numbers[DIRTY] if has_frames else (counts[1] if counts else None),
            nr_writeback=numbers[WRITEBACK] if has_frames else (counts[2] if counts else None),
            nr_mapped=numbers[MAPPED] if has_frames else None,
            nr_active=numbers[ACTIVE] if has_frames else None,
            nr_large=numbers[LARGE] if has_frames else None,
            nr_runs=self.nr_runs if has_frames else None,
            nr_read=file.nr_read,
        )


def iter_files(path: str, on_error: Callable[[PhysviewError], None]) -> Iterator[str]:
    """Yield the path itself if it is not a folder, otherwise all regular files below it.

    `path` itself may be a symbolic link. Below it, symbolic links and special files are left out.
    A folder that is reached a second time, through a mount, is skipped.

    Args:
        path: A file or a folder.
        on_error: Called with the error of a folder that cannot be listed; the others are still
            listed.
    """
    if not os.path.isdir(path):
        yield path
        return
    seen = set()
    left = [path]
    while left:
        folder = left.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            on_error(_error(f"cannot list {printable(folder)}", error, folder))
            continue
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.path
        left += [e.path for e in reversed(entries) if e.is_dir(follow_symlinks=False)]


def _error(what: str, error: OSError, path: str) -> PhysviewError:
    why = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDenied(what, why, "run as root" if os.geteuid() else "", path=path)
    return PhysviewError(what, why, path=path)


def _open(path: str) -> int:
    what = _cannot(path)
    try:
        # Opening a FIFO could block, and opening a device can have side effects. So check the type
        # first; O_NONBLOCK covers the race between stat() and open().
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise PhysviewError(what, f"it is {_kind(mode)}", path=path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _error(what, error, path) from None
    except ValueError as error:  # a NUL in the path
        raise PhysviewError(_cannot(path), str(error), path=path) from None


def _cannot(path: str) -> str:
    return f"cannot look up {printable(path)} in the page cache"


def _kind(mode: int) -> str:
    """The type of a file that has no pages in the page cache, for messages."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a character device, which has no pages there",
        stat.S_IFIFO: "a FIFO, which has no pages there",
        stat.S_IFSOCK: "a socket, which has no pages there",
    }
    return kinds.get(stat.S_IFMT(mode), "no regular file")
