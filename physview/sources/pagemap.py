# SPDX-License-Identifier: GPL-2.0-or-later
"""The source pagemap: /proc/PID/pagemap, read in bulk by the compiled core, and PAGEMAP_SCAN.

Source: fs/proc/task_mmu.c, Documentation/admin-guide/mm/pagemap.rst
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array
from typing import Any

from physview import _ffi
from physview.files.descriptor import Descriptor
from physview.model import PAGE_SHIFT
from physview.sources.procfs import ProcDir

# ioctl on a pagemap descriptor, Linux 6.7 and later (52526ca7fdb9). Source: include/uapi/linux/fs.h
PAGEMAP_SCAN = 0xC0606610
PAGE_IS: dict[str, int] = {
    "wpallowed": 1 << 0,
    "written": 1 << 1,
    "file": 1 << 2,
    "present": 1 << 3,
    "swapped": 1 << 4,
    "pfnzero": 1 << 5,
    "huge": 1 << 6,
    "soft_dirty": 1 << 7,
    "guard": 1 << 8,
}
"""The PAGE_IS_* categories by their names in the kernel, in lower case."""

_SCAN_ARG = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
# If one call returns more than 512 regions, walk_end can be before the end of the last region (seen
# on 6.18). A loop that continues at walk_end then sees pages twice.
_MAX_REGIONS = 512


def scan(
    fd: int, start: int, end: int, anyof: int, *, returned: int = 0, max_pages: int = 0
) -> tuple[int, list[tuple[int, int, int]]]:
    """Call PAGEMAP_SCAN once.

    Args:
        fd: Descriptor of a pagemap.
        start: First address, page-aligned.
        end: First address after the range, page-aligned.
        anyof: A page is reported if it has at least one of these categories.
        returned: The categories to return for each region.
        max_pages: Stop after this many pages; 0 means no limit.

    Returns:
        The address at which to continue, and the regions as (start, end, categories).

    Raises:
        OSError: ENOTTY before Linux 6.7; EINVAL for a category that this kernel does not know.
    """
    nr_regions = min(max_pages, _MAX_REGIONS) or _MAX_REGIONS
    vec = array("Q", bytes(_REGION.size * nr_regions))
    vec_address, _ = vec.buffer_info()
    # size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
    # category_mask, category_anyof_mask, return_mask
    fields = (start, end, 0, vec_address, nr_regions, max_pages, 0, 0, anyof, returned)
    arg = bytearray(_SCAN_ARG.pack(_SCAN_ARG.size, 0, *fields))
    try:
        nr = fcntl.ioctl(fd, PAGEMAP_SCAN, arg)
    except OSError as error:
        # qemu-user, in which containers of other architectures run, says this of any unknown one.
        if error.errno == errno.ENOSYS:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY)) from None
        raise
    regions: list[tuple[int, int, int]] = list(_REGION.iter_unpack(vec[: nr * 3]))
    walk_end: int = _SCAN_ARG.unpack(arg)[4]
    return max([walk_end, *(region[1] for region in regions[-1:])]), regions


class Pagemap(Descriptor):
    """Reads the pagemap of a process through the compiled core.

    The kernel checks the privileges of the process when it opens the file. So a Pagemap that root
    opened still shows frame numbers after setuid(). A Pagemap that was opened before fork() still
    shows the memory of the parent.

    Args:
        proc: The process.

    Raises:
        CoreUnavailable: The core is not built.
        PhysviewError: The pagemap cannot be opened.
    """

    name = "pagemap"
    sees_pfnmaps = False
    names_every_page = True

    def __init__(self, proc: ProcDir) -> None:
        self._ffi, self._lib = _ffi.load()
        self._path = f"{proc.path}/pagemap"
        self._fd = proc.open_pagemap()

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int:
        """Look up virtual addresses in any order; contiguous pages are fastest.

        Args:
            vaddrs: Buffer of uint64, shape (n,): virtual addresses.
            entries: Buffer of uint64, shape (n,), written: pagemap entries or NO_ENTRY.
            paddrs: Buffer of uint64, shape (n,), written: physical addresses or NO_PADDR.

        Returns:
            The number of addresses without an entry.

        Raises:
            OSError: The kernel reports an error.
        """
        buffer = self._ffi.from_buffer
        without = self._lib.pv_translate(
            self._fd,
            PAGE_SHIFT,
            buffer("uint64_t[]", vaddrs),
            len(vaddrs),
            buffer("uint64_t[]", entries, require_writable=True),
            buffer("uint64_t[]", paddrs, require_writable=True),
        )
        return _ffi.check(without, self._path)

    def read(self, start: int, entries: Any) -> int:
        """Read the entries of contiguous pages.

        Args:
            start: First address, page-aligned.
            entries: Buffer of uint64, shape (n,), written.

        Returns:
            The number of entries that were read: fewer than n at the end of the user address space,
            and 0 if the address space is gone.

        Raises:
            OSError: The kernel reports an error.
        """
        buffer = self._ffi.from_buffer("uint64_t[]", entries, require_writable=True)
        got = self._lib.pv_pagemap_read(self._fd, start >> PAGE_SHIFT, len(entries), buffer)
        return _ffi.check(got, self._path)

    def next_populated(self, start: int, end: int) -> int:
        """The first address at or after `start` with a page or swap entry; `end` if there is none.

        The cost depends on the size of the page tables, not of the range. A kernel without
        PAGEMAP_SCAN cannot answer: then the result is `start`, so the caller skips nothing.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
        """
        while start < end:
            try:
                start, regions = scan(
                    self._fd, start, end, PAGE_IS["present"] | PAGE_IS["swapped"], max_pages=1
                )
            except OSError as error:
                if error.errno == errno.ENOTTY:
                    return start
                raise
            if regions:
                return regions[0][0]
        return end
