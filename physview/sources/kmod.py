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
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.errors import AbiMismatch, AccessDenied, ModuleUnavailable, Unsupported
from physview.model import (
    PAGE_SHIFT,
    PageKind,
)
from physview.runtime import invocation
from physview.runtime.privileges import root_remedy
from physview.sources.page_tables import (
    WALK,
    PageTables,
)
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
BATCH = struct.Struct("=iIQQQ")
RANGE = struct.Struct("=iIQQQQQ")

_IOC_WRITE, _IOC_READ = 1, 2


def _ioc(direction: int, number: int, layout: struct.Struct) -> int:
    """Make the request number of an ioctl. Source: include/uapi/asm-generic/ioctl.h"""
    return direction << 30 | layout.size << 16 | ord("k") << 8 | number


IOCTL_TRANSLATE = _ioc(_IOC_READ | _IOC_WRITE, 1, TRANSLATE)
IOCTL_INFO = _ioc(_IOC_READ, 2, INFO)
IOCTL_WALK = _ioc(_IOC_READ | _IOC_WRITE, 3, WALK)
IOCTL_BATCH = _ioc(_IOC_READ | _IOC_WRITE, 4, BATCH)
IOCTL_RANGE = _ioc(_IOC_READ | _IOC_WRITE, 5, RANGE)


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


class Kmod(PageTables):
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
                    root_remedy("SYS_ADMIN", "SYS_PTRACE"),
                    pid=self._proc.pid,
                    path=DEVICE,
                ) from None
            if error.errno == errno.ESRCH:
                raise self._proc.error(error, "maps") from None
            raise

    @property
    def _pid(self) -> int:
        # Not only at the start: after fork() this goes on showing the parent.
        return 0 if self._proc.pid == os.getpid() else self._proc.pid

    def _walk_pages(self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any]) -> None:
        if self.info is None:
            self._translate_one_by_one(vaddrs, pages)
        else:
            self._batch(vaddrs, pages, self.info.max_batch)

    def user_end(self) -> int:
        """See `PageTables.user_end()`."""
        if self.info is None:
            raise self.only_the_course("all of a process")
        return self.info.user_end

    def nr_levels(self) -> int:
        """See `PageTables.nr_levels()`."""
        if self.info is None:
            raise self.only_the_course("level by level")
        return self.info.nr_levels

    def _batch(
        self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any], max_batch: int
    ) -> None:
        for at in range(0, len(vaddrs), max_batch):
            part = vaddrs[at : at + max_batch]
            addresses = part.ctypes.data, pages[at:].ctypes.data
            self._ioctl(IOCTL_BATCH, bytearray(BATCH.pack(self._pid, len(part), *addresses, 0)))
        self.check_alive()

    def _translate_one_by_one(
        self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any]
    ) -> None:
        """Look up addresses with the course's module, which takes one address per call."""
        for at, vaddr in enumerate(vaddrs.tolist()):
            buffer = bytearray(TRANSLATE.pack(vaddr, 0))
            self._ioctl(IOCTL_TRANSLATE, buffer)
            paddr = TRANSLATE.unpack(buffer)[1]
            pages[at] = paddr, 0, 0, PageKind.PRESENT if paddr else PageKind.NONE, PAGE_SHIFT

    def read_extents(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        """See `PageTables.read_extents()`."""
        if self.info is None:
            raise self.only_the_course("a range")
        return super().read_extents(start, end, extents)

    def _walk_range(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        arg = RANGE.pack(self._pid, len(extents), start, end, extents.ctypes.data, 0, 0)
        buffer = bytearray(arg)
        self._ioctl(IOCTL_RANGE, buffer)
        _, found, _, _, _, start, _ = RANGE.unpack(buffer)
        return found, start

    def check_alive(self) -> None:
        """Raise ProcessGone if the process has ended: the answer may be about a reused pid."""
        if self._pid and self._proc.stat() is None:
            raise self._proc.gone()

    def _walk_levels(self, buffer: bytearray) -> None:
        if self.info is None:
            raise self.only_the_course("level by level")
        self._ioctl(IOCTL_WALK, buffer)


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        raise AccessDenied(
            f"cannot open {DEVICE}",
            "only root may use the module",
            root_remedy("SYS_ADMIN"),
            path=DEVICE,
        ) from None
    except OSError as error:
        why = "the module is not loaded" if error.errno == errno.ENOENT else str(error.strerror)
        raise ModuleUnavailable(
            f"cannot open {DEVICE}",
            why,
            invocation.module_or_vm("…"),
            path=DEVICE,
        ) from None
