# SPDX-License-Identifier: GPL-2.0-or-later
"""Real memory for the tests, and plain reads of it that are independent of physview."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator

PAGE = mmap.PAGESIZE
# What one table's entries map: 2 MiB on x86-64; 2, 32 or 512 MiB on arm64.
HUGE = PAGE * PAGE // 8
# Where user space ends, unless a process asks for more.
USER_END = 1 << (47 if os.uname().machine == "x86_64" else 48)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

RW = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
NORESERVE = 0x4000
HUGETLB = 0x40000
MREMAP_MAYMOVE = 1
MPOL_INTERLEAVE = 3
# glibc has no functions for these.
MBIND, MOVE_PAGES = (237, 279) if os.uname().machine == "x86_64" else (235, 239)

# How a process waits so that it can be stopped with SIGSTOP.
WAIT = "import signal; signal.pause()"

# A process that runs this has memory of every kind that the kernel supports.
KINDS = """
import mmap, os, random, tempfile
from memory import HUGE, HUGETLB, NORESERVE, PAGE, PRIVATE, Region, SHARED, libc
dense = Region(3000).touch()
fragmented = Region(3000).touch(*range(0, 3000, 2))
sparse = Region(1 << 21, flags=PRIVATE | NORESERVE)
sparse.touch(*random.Random(5).sample(range(1 << 21), 1000))
outer = Region.huge(2)
huge = outer.__enter__()
huge.madvise(Region.MADV_HUGEPAGE, check=False)
huge.touch()
libc.mprotect(huge.start + 100 * PAGE, 50 * PAGE, mmap.PROT_READ)  # borders within a folio
shared = Region(500, flags=SHARED).touch()
file = tempfile.TemporaryFile()
file.truncate(300 * PAGE)
mapped = Region(300, flags=mmap.MAP_SHARED, fd=file.fileno()).touch(*range(0, 300, 3))
private = Region(300, flags=mmap.MAP_PRIVATE, fd=file.fileno()).touch(1, 2, 3)
[private.read(i) for i in range(100, 200)]
zero = Region(700)
[zero.read(i) for i in range(700)]
guard = Region(50).touch()
guard.madvise(Region.MADV_GUARD_INSTALL, check=False)
locked = Region(200).touch()
locked.mprotect(0)
interleaved = Region(400)
interleaved.bind(0, 1, check=False)
interleaved.touch()
swapped = Region(600).touch()
swapped.madvise(Region.MADV_PAGEOUT, check=False)
try:
    hugetlb = Region(2 * HUGE // PAGE, flags=PRIVATE | HUGETLB)
    shared_hugetlb = Region(HUGE // PAGE, flags=SHARED | HUGETLB)
except OSError:
    pass
else:
    hugetlb.touch(3)
    shared_hugetlb.touch(4)
"""


def _check(result: int | None) -> int:
    if result in (None, -1, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)  # type: ignore[arg-type]


def pages_within(nr_pages: int, mib: int) -> int:
    """A number of pages, but no more than fit into so many MiB, however large a page is."""
    return min(nr_pages, (mib << 20) // PAGE)


def every_second_page(nr_pages: int, mib: int) -> str:
    """Code of a process that touches every second page, so that no two are one extent."""
    nr = pages_within(nr_pages, mib)
    return f"from memory import Region; region = Region({nr}).touch(*range(0, {nr}, 2))"


class Region:
    """Pages from mmap(). They are unmapped when the object is freed."""

    MADV_DONTNEED = 4
    MADV_HUGEPAGE = 14
    MADV_NOHUGEPAGE = 15
    MADV_PAGEOUT = 21
    MADV_GUARD_INSTALL = 102

    outer: Region | None = None
    """The region around this one, which lives as long."""
    start = 0
    """The first address; 0 if the kernel gave none."""

    def __init__(
        self, nr_pages: int, *, flags: int = PRIVATE, fd: int = -1, prot: int = RW, offset: int = 0
    ) -> None:
        self.size = nr_pages * PAGE
        self.start = _check(libc.mmap(None, self.size, prot, flags, fd, offset))
        if fd < 0 and flags & mmap.MAP_PRIVATE:
            self.madvise(self.MADV_NOHUGEPAGE, check=False)

    def __del__(self) -> None:
        if self.start:
            libc.munmap(self.start, self.size)

    @classmethod
    @contextlib.contextmanager
    def huge(cls, nr_huge: int) -> Iterator[Region]:
        """A region of aligned huge pages within a larger mapping, if the kernel provides them."""
        outer = cls((nr_huge + 1) * HUGE // PAGE)
        inner = cls.__new__(cls)
        inner.start = outer.start + -outer.start % HUGE
        inner.size = nr_huge * HUGE
        inner.madvise(cls.MADV_HUGEPAGE, check=False)
        try:
            yield inner
        finally:
            inner.size = 0  # the outer region unmaps it

    def is_huge(self) -> bool:
        """Whether smaps counts the whole region as huge pages."""
        inside = False
        with open("/proc/self/smaps") as smaps:
            for line in smaps:
                first = line.split()[0]
                if not first.endswith(":"):
                    start, end = (int(x, 16) for x in first.split("-"))
                    inside = start <= self.start < end
                elif inside and first == "AnonHugePages:":
                    return int(line.split()[1]) * 1024 >= self.size
        return False

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def pages(self) -> range:
        """The address of each page."""
        return range(self.start, self.end, PAGE)

    def touch(self, *indices: int, value: int = 1) -> Region:
        """Write to the pages with these indices, or to all pages."""
        for index in indices or range(self.size // PAGE):
            ctypes.memset(self.start + index * PAGE, value, 1)
        return self

    def read(self, index: int = 0) -> bytes:
        """Read the first byte of a page."""
        return ctypes.string_at(self.start + index * PAGE, 1)

    def madvise(self, advice: int, *, check: bool = True) -> bool:
        result = libc.madvise(self.start, self.size, advice)
        if check:
            _check(result)
        return result == 0

    def bind(self, *nodes: int, check: bool = True) -> None:
        """Interleave the region's new pages over these NUMA nodes."""
        mask = ctypes.c_ulong(sum(1 << node for node in nodes))
        numbers = [ctypes.c_long(n) for n in (MBIND, self.start, self.size, MPOL_INTERLEAVE)]
        result = libc.syscall(*numbers, ctypes.byref(mask), ctypes.c_long(64), ctypes.c_long(0))
        if check:
            _check(result)

    def nodes(self) -> list[int]:
        """The node of each page from move_pages(), or -errno for a page that is not there."""
        nr = self.size // PAGE
        pages = (ctypes.c_void_p * nr)(*self.pages)
        found = (ctypes.c_int * nr)()
        numbers = [ctypes.c_long(n) for n in (MOVE_PAGES, 0, nr)]
        _check(libc.syscall(*numbers, pages, None, found, ctypes.c_long(0)))
        return list(found)

    def mprotect(self, prot: int) -> None:
        _check(libc.mprotect(self.start, self.size, prot))

    def move(self) -> None:
        """Move the region to other addresses: mremap() enlarges it, and a page is in its way."""
        blocked = Region.at(self.end)  # the region cannot grow in place
        new = libc.mremap(self.start, self.size, self.size + 64 * PAGE, MREMAP_MAYMOVE)
        self.start = _check(new)
        self.size += 64 * PAGE
        del blocked

    @classmethod
    def at(cls, address: int) -> Region | None:
        """One page at an address, or None if the address is in use."""
        fixed_noreplace = 0x100000
        result = libc.mmap(address, PAGE, 0, PRIVATE | fixed_noreplace, -1, 0)
        if result == ctypes.c_void_p(-1).value:
            return None
        region = cls.__new__(cls)
        region.start, region.size = result, PAGE
        return region


def raw_entry(vaddr: int, pid: int | str = "self") -> int:
    """The pagemap entry of an address, read with open, seek and read only."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(vaddr // PAGE * 8)
        return int.from_bytes(pagemap.read(8), "little")


def raw_entries(region: Region) -> dict[int, int]:
    """The pagemap entries of a region of this process by address, read with one read."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(region.start // PAGE * 8)
        data = pagemap.read(region.size // PAGE * 8)
    return dict(zip(region.pages, memoryview(data).cast("Q"), strict=True))


def kpageflags(pfn: int) -> int:
    """The flags of a frame from /proc/kpageflags."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        file.seek(pfn * 8)
        return int.from_bytes(file.read(8), "little")


def pfnmap_ranges(pid: int | str = "self") -> list[range]:
    """The [vvar] mappings of a process with VM_PFNMAP. From 7.x on, [vvar] has ordinary pages."""
    found = []
    here, name = range(0), ""
    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            first, *rest = line.split()
            if first == "VmFlags:" and "pf" in rest and name == "[vvar]":
                found.append(here)
            elif not first.endswith(":"):
                start, end = (int(x, 16) for x in first.split("-"))
                here, name = range(start, end), rest[-1]
    return found


def resident(path: str | os.PathLike[str]) -> set[int]:
    """The numbers of a file's pages that are in the page cache, from mincore() through ctypes."""
    size = os.path.getsize(path)
    nr = -(-size // PAGE)
    with open(path, "rb") as file:
        region = Region(nr, flags=mmap.MAP_SHARED, fd=file.fileno(), prot=mmap.PROT_READ)
    vec = (ctypes.c_ubyte * nr)()
    assert libc.mincore(ctypes.c_void_p(region.start), ctypes.c_size_t(size), vec) == 0
    return {page for page in range(nr) if vec[page] & 1}
