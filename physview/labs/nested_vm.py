# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM of the lab nested: boots it, runs the report in it, and visits it while it runs."""

from __future__ import annotations

import ctypes
import json
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from physview.analysis.guest_memory import GuestMemory
from physview.errors import PhysviewError, Unsupported
from physview.labs.memory import MADV_COLLAPSE, libc
from physview.labs.migrate import COMPACT
from physview.labs.observe import count_words
from physview.runtime import child_python
from physview.sources.folio_sizes import huge_page_size
from physview.sources.qmp import Qmp

MEMORY_MIB = 256
REPORT_SECONDS = 300.0
"""The longest time of the report in the guest. Emulated on a busy machine, Python starts slowly."""
SYS_PROCESS_MADVISE = 440  # the same number on all architectures
T = TypeVar("T")


class GuestReport(NamedTuple):
    """What the guest says of itself: nested_guest.py.

    Args:
        secret: The first bytes of the page with the label SECRET.
        page_size_bytes: The size of a base page.
        nr_levels: The number of levels of its page tables; None if unknown.
        entries: (label, guest virtual address, guest-physical address) of each probe.
    """

    secret: bytes
    page_size_bytes: int
    nr_levels: int | None
    entries: list[tuple[str, int, int]]


class _Visited(Exception):
    """The visit is over: the VM is ended by leaving it."""


class _ReportReader:
    """Takes the guest's output. Once the report is there, it visits the VM."""

    def __init__(self, visit: Callable[[GuestReport], None]) -> None:
        self._visit = visit
        self._received = b""

    def write(self, data: bytes) -> int:
        """Take a piece of output."""
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if newline:
            self._visit(_parse(line))
            raise _Visited
        return len(data)

    def flush(self) -> None:
        """Do nothing."""


def _parse(line: bytes) -> GuestReport:
    try:
        found = json.loads(line)
        entries = [(label, vaddr, paddr) for label, vaddr, paddr in found["entries"] if paddr]
        secret = bytes.fromhex(found["secret"])
        return GuestReport(secret, found["page_size_bytes"], found["nr_levels"], entries)
    except (ValueError, KeyError, TypeError):
        raise PhysviewError("the report in the VM failed", "its output is not valid") from None


def visit_vm(visit: Callable[[GuestReport, GuestMemory], T]) -> T:
    """Boot a VM, run the report in it, call `visit` while it runs, and end it.

    Args:
        visit: Called with the guest's report, and with the guest's memory on this host.

    Returns:
        What `visit` returned.

    Raises:
        PhysviewError: There is no VM, or the report in it failed.
    """
    from physview import vm

    outcome: list[T] = []
    ours, qemus = socket.socketpair()
    with ours, qemus:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

        def enter(report: GuestReport) -> None:
            with Qmp("the VM of this lab", ours.dup()) as qmp, GuestMemory(qmp) as memory:
                outcome.append(visit(report, memory))

        try:
            ended = vm.run(
                _find_kernel(),
                child_python.command("physview.labs.nested_guest"),
                memory_mib=MEMORY_MIB,
                timeout=REPORT_SECONDS,
                cwd="/",
                env=child_python.environment(),
                qmp_fd=qemus.fileno(),
                stdout=cast(BinaryIO, _ReportReader(enter)),
            )
        except _Visited:
            return outcome[0]
    raise PhysviewError("the report in the VM failed", f"it ended with exit code {ended.exit_code}")


def _find_kernel() -> Any:
    """Find a kernel to boot: the running one, or else a distribution's, as physview vm does."""
    from physview import kernels, vm

    try:
        kernel = kernels.running_kernel() or kernels.fetch_own_image(lambda message: None)
    except Unsupported:
        kernel = None
    if kernel and not vm.why_unbootable(kernel):
        return kernel
    return kernels.find_kernel(kernels.fallback_version()[1], lambda message: None)


def read_memory(pid: int, hva: int, size: int) -> bytes:
    """Read the memory of a process; empty if the kernel refuses it."""
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, hva)
    except OSError:
        return b""
    finally:
        os.close(fd)


def make_host_move(pid: int, hvas: Iterable[int]) -> list[str]:
    """Make the host's kernel move pages of QEMU, as it does by itself when it has reason to.

    Args:
        pid: QEMU's process.
        hvas: Addresses of pages in it.

    Returns:
        What the kernel has done, or found done already, in words.
    """
    size = huge_page_size()
    done = []
    if nr := _collapse(pid, sorted({hva // size * size for hva in hvas}), size):
        blocks = count_words(nr, "block")
        done.append(f"collapse {blocks} into huge pages (MADV_COLLAPSE)")
    try:
        with open(COMPACT, "w", encoding="ascii") as file:
            file.write("1\n")
        done.append("compact its memory")
    except OSError:
        pass  # a kernel without compaction, or a container
    return done


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _collapse(pid: int, blocks: list[int], size: int) -> int:
    """Collapse blocks of another process, and return for how many the kernel did it.

    Source: process_madvise(2); MADV_COLLAPSE since Linux 6.1
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return 0
    try:
        return sum(
            libc.syscall(
                ctypes.c_long(SYS_PROCESS_MADVISE),
                pidfd,
                ctypes.byref(_Iovec(block, size)),
                ctypes.c_size_t(1),
                MADV_COLLAPSE,
                0,
            )
            == size
            for block in blocks
        )
    finally:
        os.close(pidfd)
