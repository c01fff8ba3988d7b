# SPDX-License-Identifier: GPL-2.0-or-later
"""Eviction of pages from the page cache: of one file, or of the whole machine."""

from __future__ import annotations

import ctypes
import mmap
import os
import time

from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.labs.memory import libc
from physview.model import PAGE_SIZE, PM_FILE
from physview.process import Process
from physview.runtime import invocation
from physview.sources.page_flags import FLAG_BITS
from physview.text import proctext

DROP_CACHES = "/proc/sys/vm/drop_caches"
MADV_DONTNEED = 4


def unmap_clean_pages(path: str) -> int:
    """Drop a file's clean pages from this process's page tables, so that they can be evicted.

    The kernel does not evict mapped pages. The mapping itself stays: the next access faults the
    page in again. Private copies stay as well, because they hold written data. Any call of the
    compiled core is an access to the core's own file: do not call the core until the eviction is
    done.

    Returns:
        The number of pages dropped.
    """
    with Process("self") as process:
        found = [
            page.vaddr
            for vma in list(process.iter_vmas())
            if vma.path == path and "s" not in vma.perms
            for page in process.translate_many(range(vma.start, vma.end, PAGE_SIZE))
            if page.entry and page.entry.raw & PM_FILE and page.entry.present
        ]
    size = ctypes.c_size_t(PAGE_SIZE)
    return sum(not libc.madvise(ctypes.c_void_p(page), size, MADV_DONTNEED) for page in found)


def cached_pages(path: str) -> list[int]:
    """Return the indexes of a file's pages that are in the page cache.

    This function does not call the compiled core, because the core itself may be the file.

    Source: mincore(2)
    """
    with open(path, "rb") as file:
        nr = -(-os.fstat(file.fileno()).st_size // PAGE_SIZE)
        resident = (ctypes.c_ubyte * nr)()
        address = libc.mmap(None, nr * PAGE_SIZE, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        try:
            result = libc.mincore(
                ctypes.c_void_p(address), ctypes.c_size_t(nr * PAGE_SIZE), resident
            )
            if result:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), path)
        finally:
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(nr * PAGE_SIZE))
    return [page for page in range(nr) if resident[page] & 1]


def is_mapped(pfn: int) -> bool:
    """Whether any process maps a frame. This function does not call the compiled core either."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        flags = os.pread(file.fileno(), 8, pfn * 8)
    return bool(int.from_bytes(flags, "little") >> FLAG_BITS["mmap"] & 1)


def evict(path: str) -> None:
    """Ask the kernel to drop a file from the page cache. It keeps the pages that processes map.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # dirty pages are not dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def check_may_drop_caches() -> None:
    """Check, without dropping anything, whether this user may drop the machine's caches.

    Raises:
        AccessDenied: Only root may.
        Unsupported: The kernel's file is missing or read-only, as in a container.
    """
    try:
        os.close(_open_drop_caches())
    except OSError as error:
        raise _refused(error) from None


def drop_caches() -> tuple[int, int, float]:
    """Write dirty pages to disk, then drop the machine's clean page cache, dentries and inodes.

    Returns:
        The page cache's size in bytes before, its size after, and the duration in seconds.

    Raises:
        AccessDenied, Unsupported: As `check_may_drop_caches()`.

    Source: Documentation/admin-guide/sysctl/vm.rst
    """
    start = time.monotonic()
    before = _cached_bytes()
    try:
        fd = _open_drop_caches()
        try:
            os.sync()
            os.write(fd, b"3\n")
        finally:
            os.close(fd)
    except OSError as error:
        raise _refused(error) from None
    return before, _cached_bytes(), time.monotonic() - start


def _open_drop_caches() -> int:
    return os.open(DROP_CACHES, os.O_WRONLY | os.O_CLOEXEC)


def _refused(error: OSError) -> PhysviewError:
    what = "cannot drop the machine's caches"
    elsewhere = (
        f"{invocation.in_vm('lab cache --machine')}; without --machine the lab drops only"
        " physview's own file"
    )
    if os.geteuid():
        return AccessDenied(what, "only root may", f"run as root, or {elsewhere}")
    why = f"{DROP_CACHES}: {error.strerror}, as in a container"
    return Unsupported(what, why, elsewhere)


def _cached_bytes() -> int:
    with open("/proc/meminfo", "rb") as file:
        sizes = proctext.fields_by_name(file.read())
    return int(sizes[b"Cached"].removesuffix(b" kB")) * 1024
