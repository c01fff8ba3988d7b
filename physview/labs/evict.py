# SPDX-License-Identifier: GPL-2.0-or-later
"""Getting files out of the page cache: one's own, or with the whole machine's."""

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


def let_go(path: str) -> int:
    """Unmap from this process the clean pages of a file that it has mapped, and count them.

    What is mapped is not evicted. The mapping itself stays, and the next touch finds the page
    again; private copies are left alone, as they hold what was written. Of the compiled core that
    next touch is any call of it: until then, nothing may be asked of it.
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
    """Which pages of a file are in the page cache. Does without the core, which may be that file.

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
    """Whether some process has a frame in its page tables. Does without the core as well."""
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        flags = os.pread(file.fileno(), 8, pfn * 8)
    return bool(int.from_bytes(flags, "little") >> FLAG_BITS["mmap"] & 1)


def evict(path: str) -> None:
    """Ask the kernel to drop a file from the page cache. What others map, it keeps.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)  # what is not yet written is not dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def check_may_drop_caches() -> None:
    """Find out, without dropping any, whether we may.

    Raises:
        AccessDenied: It is root's.
        Unsupported: There is no such file, or it can't be written, as in a container.
    """
    try:
        os.close(_open_drop_caches())
    except OSError as error:
        raise _refused(error) from None


def drop_caches() -> tuple[int, int, float]:
    """sync, and drop all of the machine's clean page cache, dentries and inodes.

    Returns:
        Bytes in the page cache before and after, and the seconds that it took.

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
        f"{invocation.in_vm('lab cache --machine')}; without --machine only physview's own file is"
        " dropped"
    )
    if os.geteuid():
        return AccessDenied(what, "that is root's", f"run as root, or {elsewhere}")
    why = f"{DROP_CACHES}: {error.strerror}, as in a container"
    return Unsupported(what, why, elsewhere)


def _cached_bytes() -> int:
    with open("/proc/meminfo", "rb") as file:
        sizes = proctext.fields_by_name(file.read())
    return int(sizes[b"Cached"].removesuffix(b" kB")) * 1024
