# SPDX-License-Identifier: GPL-2.0-or-later
"""The source kmod: the kernel module, which walks the page tables.

physview calls the module through fcntl.ioctl on /dev/3000physicalview. The course's own module uses
the same device. It supports only the first ioctl, and only for addresses of the calling process.

Source: csrc/kmod/uapi/physicalview.h
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.entry_rules import swap_offset, swap_type
from physview.errors import AbiMismatch, AccessDenied, ModuleUnavailable, PhysviewError, Unsupported
from physview.files.descriptor import Descriptor
from physview.model import (
    NO_ENTRY,
    NO_PADDR,
    PAGE_SHIFT,
    PM_PRESENT,
    PM_SWAP,
    Level,
    PageKind,
    Walk,
)
from physview.runtime import invocation
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAME = "3000physicalview"
"""The kernel module's name, and that of its device."""

DEVICE = f"/dev/{NAME}"
ABI_VERSION = 1

# The ABI structures. They have no padding. Byte order is native: both sides are one machine.
TRANSLATE = struct.Struct("=QQ")
INFO = struct.Struct("=IIIIQQ")
PAGE = struct.Struct("=QQQII")
LEVEL = struct.Struct("=QQII")
WALK = struct.Struct("=iIQ" + PAGE.format[1:] + LEVEL.format[1:] * 5 + "Q")
BATCH = struct.Struct("=iIQQQ")
EXTENT = struct.Struct("=QQQQQII")
RANGE = struct.Struct("=iIQQQQQ")

PAGE_DTYPE = [(n, "u8") for n in ("paddr", "entry", "swap")] + [
    ("kind", "u4"),
    ("page_shift", "u4"),
]
WALK_EXTENT_DTYPE = [(n, "u8") for n in ("vaddr", "paddr", "length", "entry", "swap")] + [
    ("kind", "u4"),
    ("page_shift", "u4"),
]

_IOC_WRITE, _IOC_READ = 1, 2


def _ioc(direction: int, number: int, layout: struct.Struct) -> int:
    """Make the request number of an ioctl. Source: include/uapi/asm-generic/ioctl.h"""
    return direction << 30 | layout.size << 16 | ord("k") << 8 | number


IOCTL_TRANSLATE = _ioc(_IOC_READ | _IOC_WRITE, 1, TRANSLATE)
IOCTL_INFO = _ioc(_IOC_READ, 2, INFO)
IOCTL_WALK = _ioc(_IOC_READ | _IOC_WRITE, 3, WALK)
IOCTL_BATCH = _ioc(_IOC_READ | _IOC_WRITE, 4, BATCH)
IOCTL_RANGE = _ioc(_IOC_READ | _IOC_WRITE, 5, RANGE)

LEVEL_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
_FOLDED, _LEAF, _HIDDEN = 1, 2, 4
_NR_EXTENTS = 4096


class Info(NamedTuple):
    """What the module reports about itself and this machine.

    Args:
        abi_version: Version of the ABI.
        nr_levels: Levels of page tables: 4 or 5.
        page_shift: log2 of the size of a base page, in bytes.
        max_batch: The maximum number of addresses in one call.
        user_end: The end of user space: the module walks only addresses below it.
    """

    abi_version: int
    nr_levels: int
    page_shift: int
    max_batch: int
    user_end: int


class Kmod(Descriptor):
    """Walks the page tables of a process.

    Args:
        proc: The process.

    Raises:
        ModuleUnavailable: The module is not loaded.
        AccessDenied: Only root may open the device.
        AbiMismatch: The loaded module has another ABI version, or is the course's own and the
            process is not this one.
        Unsupported: /proc belongs to another pid namespace, where a pid names another process.
    """

    name = "kmod"
    sees_pfnmaps = True

    def __init__(self, proc: ProcDir) -> None:
        self._proc = proc
        self._fd = _open_device()
        try:
            self._check_namespace()
            self.info = self._ask_info()
            if self.info is None and proc.pid != os.getpid():
                raise self.only_the_course("another process's memory")
            # The course's module knows only base pages.
            self.names_every_page = self.info is not None
        except BaseException:
            self.close()
            raise

    def _check_namespace(self) -> None:
        """Refuse a /proc of another pid namespace.

        The module looks up a pid in the pid namespace of this process. /proc uses the pid
        namespace of the process that mounted it.
        """
        if self._proc.path == "/proc/self" or os.readlink("/proc/self") == str(os.getpid()):
            return
        raise Unsupported(
            f"cannot walk process {self._proc.pid}",
            "/proc belongs to another pid namespace, where this pid may name another process",
            "mount /proc for this namespace: unshare --mount-proc, or mount -t proc proc /proc",
            pid=self._proc.pid,
            path=DEVICE,
        )

    def _ask_info(self) -> Info | None:
        buffer = bytearray(INFO.size)
        try:
            fcntl.ioctl(self._fd, IOCTL_INFO, buffer)
        except OSError as error:
            # The course's module answers an unknown ioctl with one of these two errors.
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        info = Info(*INFO.unpack(buffer)[:5])
        if info.abi_version != ABI_VERSION:
            raise AbiMismatch(
                f"cannot talk to {DEVICE}",
                f"the module speaks version {info.abi_version} of the ABI, not {ABI_VERSION}",
                invocation.load_own_module(),
                path=DEVICE,
            )
        return info

    def only_the_course(self, what: str) -> AbiMismatch:
        """The error for a request that the course's module cannot answer.

        The course's module is recognized by `info`, which is None for it.

        Args:
            what: What cannot be walked, for the message.
        """
        return AbiMismatch(
            f"cannot walk {what}",
            "the loaded module is the course's, which translates only a caller's own addresses",
            invocation.load_own_module(),
            path=DEVICE,
        )

    def _ioctl(self, request: int, buffer: bytearray) -> None:
        try:
            while True:
                try:
                    fcntl.ioctl(self._fd, request, buffer)
                except InterruptedError:  # Python runs its signal handlers before the next try
                    continue
                return
        except OSError as error:
            if error.errno == errno.EPERM:
                raise AccessDenied(
                    f"cannot walk the page tables of process {self._proc.pid}",
                    "the module requires CAP_SYS_ADMIN and CAP_SYS_PTRACE",
                    "run as root",
                    pid=self._proc.pid,
                    path=DEVICE,
                ) from None
            if error.errno == errno.ESRCH:
                raise self._proc.error(error, "maps") from None
            raise

    @property
    def _pid(self) -> int:
        return 0 if self._proc.pid == os.getpid() else self._proc.pid

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int:
        """Look up virtual addresses. Arguments and result are those of `pagemap.Pagemap.fill()`.

        The entries have the format of pagemap, but only the bits that a walk finds: present and
        frame number, or swap type and offset.
        """
        import numpy as np

        pages = self.pages(vaddrs)
        np.asarray(entries)[:], np.asarray(paddrs)[:] = as_pagemap(vaddrs, pages)
        return int((pages["kind"] == PageKind.BEYOND).sum())

    def pages(self, vaddrs: Any) -> npt.NDArray[Any]:
        """Look up virtual addresses in any order.

        Args:
            vaddrs: Buffer of uint64, shape (n,).

        Returns:
            Structured array of PAGE_DTYPE, shape (n,).

        Raises:
            PhysviewError: The process is gone, or this user may not examine it.
        """
        import numpy as np

        column = np.ascontiguousarray(vaddrs, dtype=np.uint64)
        pages = np.empty(len(column), dtype=PAGE_DTYPE)
        if self.info is None:
            self._translate_one_by_one(column, pages)
        else:
            self._batch(column, pages, self.info.max_batch)
        return pages

    def _batch(
        self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any], max_batch: int
    ) -> None:
        for at in range(0, len(vaddrs), max_batch):
            part = vaddrs[at : at + max_batch]
            addresses = part.ctypes.data, pages[at:].ctypes.data
            self._ioctl(IOCTL_BATCH, bytearray(BATCH.pack(self._pid, len(part), *addresses, 0)))
        self._check_alive()

    def _translate_one_by_one(
        self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any]
    ) -> None:
        """Look up addresses with the course's module, which takes one address per call."""
        for at, vaddr in enumerate(vaddrs.tolist()):
            buffer = bytearray(TRANSLATE.pack(vaddr, 0))
            self._ioctl(IOCTL_TRANSLATE, buffer)
            paddr = TRANSLATE.unpack(buffer)[1]
            pages[at] = paddr, 0, 0, PageKind.PRESENT if paddr else PageKind.NONE, PAGE_SHIFT

    def next_populated(self, start: int, end: int) -> int:
        """The first address at or after `start` whose entry is not empty; `end` if there is none.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
        """
        for extents in self.iter_extents(start, end, nr=1):
            return int(extents["vaddr"][0])
        return end

    def iter_extents(
        self, start: int, end: int, *, nr: int = _NR_EXTENTS
    ) -> Iterator[npt.NDArray[Any]]:
        """Yield the extents of a range: pages that are contiguous in both address spaces.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
            nr: The maximum number of extents per call of the module.

        Yields:
            Structured arrays of WALK_EXTENT_DTYPE. The next array overwrites the previous one.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        import numpy as np

        extents = np.empty(nr, dtype=WALK_EXTENT_DTYPE)
        while start < end:
            found, start = self.read_extents(start, end, extents)
            if found:
                yield extents[:found]
        self._check_alive()

    def read_extents(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        """Walk a range by one call of the module, until `extents` is full.

        If the process ends, another process may get its pid. So the caller must check afterwards
        that the process is still alive, as `iter_extents()` does.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned.
            extents: Structured array of WALK_EXTENT_DTYPE, written.

        Returns:
            The number of extents, and the address at which to continue.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        if self.info is None:
            raise self.only_the_course("a range")
        stop = min(end, self.info.user_end)
        if start >= stop:
            return 0, end
        arg = RANGE.pack(self._pid, len(extents), start, stop, extents.ctypes.data, 0, 0)
        buffer = bytearray(arg)
        self._ioctl(IOCTL_RANGE, buffer)
        _, found, _, _, _, start, _ = RANGE.unpack(buffer)
        return found, end if start == stop else start

    def _check_alive(self) -> None:
        """Raise ProcessGone if the process has ended: the answer may be about a reused pid."""
        if self._pid and self._proc.stat() is None:
            raise self._proc.gone()

    def walk(self, vaddr: int) -> Walk:
        """Walk the page tables for one address, and return the entry of every level.

        Args:
            vaddr: Virtual address.

        Raises:
            AbiMismatch: The loaded module is the course's.
            PhysviewError: The process is gone, or this user may not examine it.
        """
        if self.info is None:
            raise self.only_the_course("level by level")
        page = (0,) * 5
        buffer = bytearray(WALK.pack(self._pid, 0, vaddr, *page, *[0] * 20, 0))
        self._ioctl(IOCTL_WALK, buffer)
        return decode_walk(buffer)


def decode_walk(buffer: bytearray) -> Walk:
    """What a `struct physicalview_walk` says.

    Args:
        buffer: The structure, filled in.
    """
    fields = WALK.unpack(buffer)
    nr_levels = fields[1]
    _, paddr, _, swap, kind, page_shift = fields[2:8]
    levels = [_level(LEVEL_NAMES[i], *fields[8 + 4 * i : 12 + 4 * i]) for i in range(nr_levels)]
    kind = PageKind(kind)
    in_swap = kind not in (PageKind.NONE, PageKind.BEYOND, PageKind.BAD) and not kind.has_page
    return Walk(
        fields[2],
        paddr if kind.has_page else None,
        kind,
        1 << page_shift,
        (swap_type(swap), swap_offset(swap)) if in_swap else None,
        levels,
    )


def as_pagemap(
    vaddrs: Any, pages: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Convert pages of the module to the format of pagemap.

    Args:
        vaddrs: Buffer of uint64, shape (n,): the virtual addresses, for messages.
        pages: Structured array of PAGE_DTYPE, shape (n,).

    Returns:
        Two uint64 arrays, shape (n,): entries, NO_ENTRY past the end of user space; and physical
        addresses in bytes, NO_PADDR for an address without a page.

    Raises:
        PhysviewError: The page tables have an invalid entry.
    """
    import numpy as np

    kind = pages["kind"]
    if (kind == PageKind.BAD).any():
        first = int(np.argmax(kind == PageKind.BAD))
        raise PhysviewError(
            f"the page tables are broken at {vaddrs[first]:#x}",
            f"the entry {pages['entry'][first]:#x} is not valid",
            f"see the kernel's log: {invocation.as_root('dmesg')}",
        )
    has_page = (kind == PageKind.PRESENT) | (kind == PageKind.PROT_NONE)
    in_swap = (kind >= PageKind.SWAP) & (kind <= PageKind.MARKER)
    frames = (pages["paddr"] >> np.uint64(PAGE_SHIFT)) | np.uint64(PM_PRESENT)
    entries = np.where(has_page, frames, np.where(in_swap, pages["swap"] | np.uint64(PM_SWAP), 0))
    entries[kind == PageKind.BEYOND] = NO_ENTRY
    return entries.astype(np.uint64), np.where(has_page, pages["paddr"], np.uint64(NO_PADDR))


def _level(name: str, address: int, entry: int, shift: int, flags: int) -> Level:
    folded, hidden = bool(flags & _FOLDED), bool(flags & _HIDDEN)
    return Level(
        name,
        None if folded or hidden else address,
        None if hidden else entry,
        1 << shift,
        folded,
        bool(flags & _LEAF),
    )


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise AccessDenied(
            f"cannot open {DEVICE}", "only root may use the module", "run as root", path=DEVICE
        ) from None
    except OSError as error:
        why = "the module is not loaded" if error.errno == errno.ENOENT else str(error.strerror)
        raise ModuleUnavailable(
            f"cannot open {DEVICE}",
            why,
            invocation.module_or_vm("…"),
            path=DEVICE,
        ) from None
