# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds which pages of a file are in the page cache, their frames, and their state.

cachestat() counts cached pages, and touches nothing. mincore() does that where cachestat() does
not tell: before Linux 6.5, and through file systems that hand a file through to another. Frames
and states are found by mapping the cached pages, and no others, for a moment. A page that is
evicted between the two steps is read back in, and is counted. The mapping does not mark pages as
recently used in the kernel's LRU lists. Only files that have pages in the page cache are mapped:
csrc/filesystems.c.

Source: cachestat(2), mincore(2), lseek(2), /proc/self/pagemap, /proc/kpageflags
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, PhysviewError, Unsupported, of_path
from physview.files.descriptor import Closable, Descriptor
from physview.model import PAGE_SHIFT, PAGE_SIZE, printable
from physview.runtime import invocation
from physview.sources.file_tree import Folder
from physview.sources.kpage import KpageFile

if TYPE_CHECKING:
    import numpy.typing as npt

CACHED_DTYPE = [("page", "u8"), ("pfn", "u8"), ("nr", "u8"), ("flags", "u8")]
"""Cached pages that are contiguous in the file and in physical memory.

page: index in the file of the first page. pfn: its frame number; 0 if it is unknown. nr: the number
of pages. flags: their value in kpageflags; NO_ENTRY if it is unknown.
"""


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
        nr_evicted: Pages that were evicted, and of which the kernel still knows that. Of a file in
            tmpfs they are swapped out.
        nr_recently_evicted: Evicted pages that would become active if they were read again soon.
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
    nr_evicted: int | None = None
    nr_recently_evicted: int | None = None


# A row: struct pv_file of csrc/cdef.h. COUNTS are the members of CachedFile after its path.
Row = tuple[int, ...]
PROBLEM, CODE, DEVICE, INODE, NR_LINKS, MODE, FS_TYPE, KNOWN = range(8)
COUNTS = slice(8, 21)
_ROW = struct.Struct("=27Q")
# The index in a row of counts that are known only if some bit of KNOWN is set.
_BY_CACHESTAT = range(19, 21)
_BY_EITHER = range(12, 14)
_BY_FRAMES = range(14, 18)
NR_CACHED = 11

KNOWS_CACHESTAT, KNOWS_FRAMES, SKIPPED_HOLES = 1, 2, 4
_KNOWS_ALL = KNOWS_CACHESTAT | KNOWS_FRAMES

# Names of file systems for messages: those without a page cache that users meet.
_FILE_SYSTEMS = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
}

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def known_counts(row: Row, known: int) -> list[int | None]:
    """The counts of a row, with None for those that are not known.

    Args:
        row: The row.
        known: Bits: KNOWS_CACHESTAT, KNOWS_FRAMES.
    """
    counts: list[int | None] = list(row[COUNTS])
    first = COUNTS.start
    hidden = [] if known & KNOWS_CACHESTAT else [*_BY_CACHESTAT]
    if not known & KNOWS_FRAMES:
        hidden += _BY_FRAMES
        hidden += [] if known & KNOWS_CACHESTAT else _BY_EITHER
    for at in hidden:
        counts[at - first] = None
    return counts


def to_cached_file(path: str, row: Row) -> CachedFile:
    """Make the result for a file of its row."""
    if row[KNOWN] & _KNOWS_ALL == _KNOWS_ALL:
        return CachedFile(path, *row[COUNTS])
    return CachedFile(path, *known_counts(row, row[KNOWN]))  # type: ignore[arg-type]


class PageCache(Closable):
    """Looks files up in the page cache.

    Args:
        with_frames: Whether to find frames and the counts that depend on them, which only root may
            do. None finds them if possible.
        pages: The pages of each file to look at: the index of the first, and of the first one after
            them; None for the second means up to the end of the file.
        with_cachestat: False to do without cachestat(), as on a kernel before 6.5.

    Raises:
        AccessDenied: `with_frames` is True, and frames are hidden from this user.
        Unsupported: `with_frames` is True, and the kernel was built without kpageflags.
        CoreUnavailable: The core is not built.
    """

    def __init__(
        self,
        *,
        with_frames: bool | None = None,
        pages: tuple[int, int | None] = (0, None),
        with_cachestat: bool = True,
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        self._pagemap = -1
        self.flags: KpageFile | None = None
        """The kpageflags file; None if frames are unknown."""
        self.why_no_frames = ""
        """Why frames are unknown; empty if they are known."""
        self._query = self._ffi.new("struct pv_file_query *")
        self._query.page_shift = PAGE_SHIFT
        self._query.pagemap_fd = self._query.kpageflags_fd = -1
        self._query.no_cachestat = not with_cachestat
        first, end = pages
        self._query.first_page, self._query.end_page = first, (1 << 64) - 1 if end is None else end
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
        self._query.pagemap_fd, self._query.kpageflags_fd = self._pagemap, self.flags.fd

    def close(self) -> None:
        """Let go of the kernel's files. Closing twice is harmless."""
        self._query.pagemap_fd = self._query.kpageflags_fd = -1
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
        return OpenFile(self, path, _open(path))

    def open_in(self, folder: Folder, name: str) -> OpenFile:
        """Open a file of a folder, which is no link. Raises as `open()` does."""
        path = folder.path + name
        try:
            fd = os.open(name, _OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=folder.fd)
        except OSError as error:
            raise of_path(cannot_look_up(path), error, path) from None
        return OpenFile(self, path, fd)

    def open_by(self, path: str, path_fd: int) -> OpenFile:
        """Open a file by a descriptor that names it (O_PATH). Raises as `open()` does.

        Args:
            path: The path to show.
            path_fd: The descriptor; it stays open.
        """
        try:
            return OpenFile(self, path, _reopen(path, path_fd))
        except OSError as error:
            raise of_path(cannot_look_up(path), error, path) from None

    def look_at(self, path: str) -> CachedFile:
        """Find how much of a file is cached, and in which state. Raises as `open()` does."""
        with self.open(path) as file:
            return file.summary()

    def count_folder(self, folder: Folder) -> list[Row]:
        """Count the files of a folder.

        Returns:
            A row per name. Its PROBLEM is not 0 if the file could not be counted: see `error()`.
        """
        names = os.fsencode("\0".join(folder.names) + "\0")
        files = self._ffi.new("struct pv_file[]", len(folder.names))
        found = self._lib.pv_count_files(self._query, folder.fd, names, len(folder.names), files)
        _ffi.check(found, folder.path)
        return list(_ROW.iter_unpack(self._ffi.buffer(files)))

    def error(self, path: str, row: Row) -> PhysviewError | None:
        """Return why a file could not be counted; None if it was.

        For a file that is to be opened by itself (PV_FILE_LARGE), there is no error.
        """
        lib = self._lib
        what = cannot_look_up(path)
        code = row[CODE]
        why = os.strerror(code) if code else ""
        problem = row[PROBLEM]
        if problem == lib.PV_FILE_CANNOT_OPEN:
            return of_path(what, OSError(code, why), path)
        if problem == lib.PV_FILE_NO_FILE:
            return PhysviewError(what, f"it is {_kind(row[MODE])}", path=path)
        if problem == lib.PV_FILE_NO_PAGES:
            return _no_pages(path, row[FS_TYPE])
        if problem == lib.PV_FILE_HUGETLB:
            # mincore() knows only pages that this process maps, and cachestat() is refused.
            remedy = f"look at a process that maps it: {invocation.physview_as_root('maps PID')}"
            reason = "it is in hugetlbfs, whose cached pages the kernel does not show"
            return PhysviewError(what, reason, remedy, path=path)
        if problem == lib.PV_FILE_DENIED:
            # Both calls refuse it: can_do_mincore() in mm/mincore.c, Linux 5.2, and
            # can_do_cachestat() in mm/filemap.c, Linux 6.13 (5f537664e705).
            reason = "only the file's owner, and users who may write to it, may see that"
            remedy = "run as root" if os.geteuid() else "root lacks CAP_FOWNER here"
            return AccessDenied(what, reason, remedy, path=path)
        if problem == lib.PV_FILE_CANNOT_MAP:
            return PhysviewError(what, why, path=path)
        return None

    def is_virtual(self, fd: int) -> bool:
        """Whether a descriptor names something in a file system that has no page cache."""
        return _virtual_type(fd) is not None

    def is_large(self, row: Row) -> bool:
        """Whether a file was not counted because that takes long: open it by itself."""
        return bool(row[PROBLEM] == self._lib.PV_FILE_LARGE)

    def has_gone(self, row: Row) -> bool:
        """Whether there is no such file any more: it was removed or replaced after the listing."""
        if row[PROBLEM] == self._lib.PV_FILE_NO_FILE:
            return True
        gone = (errno.ENOENT, errno.ELOOP, errno.ENXIO)
        return row[PROBLEM] == self._lib.PV_FILE_CANNOT_OPEN and row[CODE] in gone


class OpenFile(Descriptor):
    """An open file whose pages are looked up in the page cache; made by `PageCache.open()`.

    Args:
        cache: The page cache.
        path: The path to show.
        fd: The descriptor; it is closed with the object.
    """

    def __init__(self, cache: PageCache, path: str, fd: int) -> None:
        self._cache = cache
        self._ffi, self._lib = cache._ffi, cache._lib
        self.path = path
        self._fd = fd
        self._file = self._ffi.new("struct pv_file *")
        self._is_used = False
        try:
            self._begin(cache._query)
        except BaseException:
            self.close()
            raise
        self.identity = (self._file.device, self._file.inode)
        """Device and inode."""
        self.size_bytes = self._file.size_bytes
        """Size of the file, when it was opened."""

    def _begin(self, query: Any) -> None:
        self._lib.pv_file_begin(query, self._fd, self._file)
        self._check()

    def _check(self) -> None:
        if self._file.problem:
            error = self._cache.error(self.path, self.row)
            if error:
                raise error

    @property
    def row(self) -> Row:
        """What is known of the file so far."""
        return _ROW.unpack(self._ffi.buffer(self._file))

    @property
    def nr_pages(self) -> int:
        """Pages that the file fills; the last page may be only partly filled."""
        return int(-(-self.size_bytes // PAGE_SIZE))

    @property
    def nr_pages_in_range(self) -> int:
        """Pages of the file that are looked at."""
        return int(self._file.nr_pages)

    @property
    def nr_read(self) -> int:
        """Pages that the look-up itself has read back into the cache."""
        return int(self._file.nr_read)

    def nr_holes(self) -> int:
        """The number of pages that are entirely in holes; 0 if the file system reports no holes."""
        return int(self._file.nr_holes)

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

        query = self._ffi.new("struct pv_file_query *", self._cache._query[0])
        query.needs_runs = 1
        self._is_used = True
        self._begin(query)
        runs = self._ffi.new("struct pv_cached_run[]", self._lib.PV_FILE_WINDOW)
        while nr := self._continue(query, runs):
            yield np.frombuffer(self._ffi.buffer(runs), dtype=CACHED_DTYPE, count=nr).copy()

    def _continue(self, query: Any, runs: Any) -> int:
        """Look at the next pages; return the number of runs, 0 at the end. Raises an error."""
        nr = self._lib.pv_file_continue(query, self._fd, self._file, runs)
        self._check()
        return _ffi.check(nr, self.path)

    def _finish(self, query: Any) -> None:
        if self._file.at < self._file.end:
            runs = self._ffi.new("struct pv_cached_run[]", self._lib.PV_FILE_WINDOW)
            while self._continue(query, runs):
                pass

    def count(self, visit: Callable[[npt.NDArray[Any]], None] | None = None) -> Row:
        """Do as `summary()`, and return the row."""
        if visit:
            for found in self.iter_cached():
                visit(found)
            return self.row
        if self._is_used:
            self._begin(self._cache._query)
        self._is_used = True
        self._finish(self._cache._query)
        return self.row

    def summary(self, visit: Callable[[npt.NDArray[Any]], None] | None = None) -> CachedFile:
        """Count how much of the file is cached, and in which state. Raises as `iter_cached()` does.

        Args:
            visit: Called with each array that `iter_cached()` yields.
        """
        return to_cached_file(self.path, self.count(visit))

    def histogram(self, nr_buckets: int) -> list[int]:
        """Count the cached pages in parts of the file.

        Args:
            nr_buckets: The number of parts. Part i of n begins at page i*nr_pages//n.

        Returns:
            The number of cached pages in each part. Raises as `iter_cached()` does.
        """
        query = self._ffi.new("struct pv_file_query *", self._cache._query[0])
        query.pagemap_fd = query.kpageflags_fd = -1
        first, nr_pages = query.first_page, self._file.nr_pages
        self._is_used = True
        counts = []
        for bucket in range(nr_buckets):
            query.first_page = first + nr_pages * bucket // nr_buckets
            query.end_page = first + nr_pages * (bucket + 1) // nr_buckets
            self._begin(query)
            self._finish(query)
            counts.append(int(self._file.nr_cached))
        return counts


def _open(path: str) -> int:
    what = cannot_look_up(path)
    try:
        path_fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise of_path(what, error, path) from None
    except ValueError as error:  # a NUL in the path
        raise PhysviewError(what, str(error), path=path) from None
    try:
        return _reopen(path, path_fd)
    except OSError as error:
        raise of_path(what, error, path) from None
    finally:
        os.close(path_fd)


def _reopen(path: str, path_fd: int) -> int:
    """Open for reading what a descriptor names, if that is a regular file or a block device.

    Opening a FIFO could block, and opening a device can have side effects. O_PATH opens neither,
    and what it names cannot be exchanged any more.
    """
    mode = os.fstat(path_fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise PhysviewError(cannot_look_up(path), f"it is {_kind(mode)}", path=path)
    virtual = _virtual_type(path_fd)
    if virtual is not None:
        raise _no_pages(path, virtual)
    try:
        return os.open(f"/proc/self/fd/{path_fd}", _OPEN_FLAGS)
    except FileNotFoundError:  # without /proc
        return os.open(path, _OPEN_FLAGS)


def _virtual_type(fd: int) -> int | None:
    """The type of the file system of what a descriptor names, if it has no page cache."""
    ffi, lib = _ffi.load()
    fs_type = ffi.new("uint64_t *")
    device = os.fstat(fd).st_dev
    kind = _ffi.check(lib.pv_file_system(fd, os.major(device), fs_type), "")
    return int(fs_type[0]) if kind == lib.PV_FS_VIRTUAL else None


def _no_pages(path: str, fs_type: int) -> PhysviewError:
    name = _FILE_SYSTEMS.get(fs_type, f"of type {fs_type:#x}")
    why = f"its file system ({name}) keeps no pages of it there"
    return PhysviewError(cannot_look_up(path), why, path=path)


def cannot_look_up(path: str) -> str:
    """The beginning of the error of a file that cannot be looked up."""
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
