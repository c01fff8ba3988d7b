# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages a process has written: the soft-dirty bits.

The kernel sets a page's bit when the page is written, after all bits of the process were cleared.
To notice that, the kernel makes all pages read-only when it clears the bits: the first write to
each page costs a page fault. Bit 55 of a pagemap entry is also set for all pages of a mapping that
grew, or is new.

Source: Documentation/admin-guide/mm/soft-dirty.rst, pte_to_pagemap_entry() in fs/proc/task_mmu.c
"""

from __future__ import annotations

import errno
import mmap
import os

from physview.errors import PhysviewError, Unsupported
from physview.model import PAGE_SIZE, PM_PRESENT, PM_SOFT_DIRTY, PagemapEntry
from physview.runtime import invocation
from physview.sources.procfs import ProcDir

CLEAR_SOFT_DIRTY = b"4"


def own_entry() -> PagemapEntry:
    """Read the pagemap entry of a page of this process that was just written.

    Raises:
        OSError: pagemap cannot be opened.
        PhysviewError: The page is not in it.
    """
    with mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[0] = 1
        vaddr = _address_of(page)
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entry = int.from_bytes(os.pread(pagemap.fileno(), 8, vaddr // PAGE_SIZE * 8), "little")
    if not entry & PM_PRESENT:
        raise PhysviewError("cannot check pagemap", "a page that was just written is not in it")
    return PagemapEntry(entry)


def _address_of(page: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(page))


def is_supported() -> bool:
    """Whether this kernel has soft-dirty bits. A page that was just written shows it."""
    try:
        return bool(own_entry().raw & PM_SOFT_DIRTY)
    except OSError:
        return False


def check_supported() -> None:
    """Check that this kernel has soft-dirty bits.

    Raises:
        Unsupported: The kernel has none.
    """
    if not is_supported():
        raise Unsupported(
            "cannot track writes",
            "this kernel has no soft-dirty bits",
            "boot a kernel with CONFIG_MEM_SOFT_DIRTY=y (x86-64), or try it in a VM:"
            f" {invocation.in_vm('watch --track-writes PID', '--kernel 6.1')}",
        )


def clear(proc: ProcDir) -> None:
    """Clear the soft-dirty bits of all pages of a process, and flush the TLB.

    Raises:
        As `write_clear_refs()`.
    """
    write_clear_refs(proc, CLEAR_SOFT_DIRTY)


def write_clear_refs(proc: ProcDir, what: bytes) -> None:
    """Write to clear_refs of a process.

    Args:
        proc: The process.
        what: A number, which says what is cleared.

    Raises:
        Unsupported: This kernel does not know the number.
        PhysviewError: As in `ProcDir.open()`.

    Source: clear_refs_write() in fs/proc/task_mmu.c
    """
    fd = proc.open("clear_refs", os.O_WRONLY)
    try:
        os.write(fd, what)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            path = f"{proc.path}/clear_refs"
            raise Unsupported(f"cannot write to {path}", "this kernel refuses it") from None
        raise proc.error(error, "clear_refs") from None
    finally:
        os.close(fd)
