# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables themselves, walked by a BPF program: no module, no headers, no reboot.

The core loads the program (csrc/bpf/walk.bpf.c) when the first process is opened. The program
copies page tables into memory that the core reads, and the core decodes them. Nothing stays loaded:
the kernel removes the program when its last descriptor is closed, however this process ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.runtime import privileges, resource_limits
from physview.sources.page_tables import PageTables
from physview.sources.procfs import ProcDir
from physview.sources.table_geometry import EntryUse, TableEntries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LOG_BYTES = 1 << 16
_LOG_LINES = 5
_NR_BLOCKS = 4096
_BPF_LOOP = (5, 17)  # the first release with bpf_loop()
_MACHINES = ("x86_64", "aarch64")


class Info(NamedTuple):
    """What the program found out about this machine.

    Args:
        nr_levels: Levels of page tables: 4 or 5; 2 to 5 on arm64.
        user_end: First address that is never walked.
    """

    nr_levels: int
    user_end: int


class _Program:
    """The loaded program and the memory that it shares with the core, for one thread at a time."""

    idle: ClassVar[list[_Program]] = []
    first: ClassVar[_Program | None] = None  # what it knows of the kernel, the others copy

    def __init__(self) -> None:
        self.ffi, self.lib = _ffi.load()
        opened, stage = self.ffi.new("struct pv_bpf **"), self.ffi.new("int *")
        log = self.ffi.new("char[]", _LOG_BYTES)
        like: Any = self.first.handle if self.first else self.ffi.NULL
        nr_levels = self.lib.pv_bpf_open(opened, like, stage, log, _LOG_BYTES)
        if nr_levels < 0:
            text = self.ffi.string(log).decode("ascii", "backslashreplace")
            raise _why(-nr_levels, stage[0], self.lib, text)
        self.handle: Any = self.ffi.gc(opened[0], self.lib.pv_bpf_close)
        self.info = Info(nr_levels, self.lib.pv_bpf_user_end(self.handle))
        type(self).first = self.first or self

    @classmethod
    def take(cls) -> _Program:
        """Return a program that no object uses, or load one, which takes longer than most walks."""
        _check_machine()
        try:
            return cls.idle.pop()
        except IndexError:
            return cls()

    def give_back(self) -> None:
        """Let others use it."""
        self.idle.append(self)


def load() -> None:
    """Load the program, unless this process has it already.

    Raises:
        As `Bpf`.
    """
    _Program.take().give_back()


def load_for_frames() -> None:
    """Load the program, and find the kernel's descriptions of frames (struct page).

    Raises:
        As `Bpf`; Unsupported: what this kernel's descriptions look like is not known.
    """
    with borrowed_program() as program:
        _, lib = _ffi.load()
        if lib.pv_bpf_find_frames(program):
            why = "what this kernel's descriptions of frames (struct page) look like is not known"
            raise Unsupported("cannot read the flags of frames by BPF", why)


@contextlib.contextmanager
def borrowed_program() -> Iterator[Any]:
    """Lend a loaded program, a `struct pv_bpf *`, to one thread.

    Raises:
        As `Bpf`.
    """
    program = _Program.take()
    try:
        yield program.handle
    finally:
        program.give_back()


class Place(NamedTuple):
    """Where a process maps some of the frames that are searched for.

    Args:
        error: A number of errno if the process could not be searched; else 0.
        start: The address of the first such page.
        end: The first address after the last such page; 0 if there is none.
    """

    error: int
    start: int
    end: int


def find_frames(pids: Sequence[int], runs: npt.NDArray[Any]) -> list[Place]:
    """Search processes for frames by a walk of their page tables.

    It may find too much, such as a device mapping, which pagemap does not show.

    Args:
        pids: The processes.
        runs: Structured array of `kpage.FRAMES_DTYPE`, at least one, sorted by pfn.

    Returns:
        A place for each process.

    Raises:
        As `Bpf`.
    """
    ffi, lib = _ffi.load()
    places = ffi.new("struct pv_place[]", len(pids))
    with borrowed_program() as program:
        lib.pv_bpf_find(
            program,
            ffi.new("int32_t[]", pids),
            len(pids),
            ffi.cast("struct pv_frames *", runs.ctypes.data),
            len(runs),
            places,
        )
    return [Place(-place.error, place.start, place.end) for place in places]


class Bpf(PageTables):
    """Walks the page tables of a process.

    Args:
        proc: The process.

    Raises:
        AccessDenied: This user may not load BPF programs.
        Unsupported: This kernel has no BPF, no BTF, or is older than 5.17 (5.19 on arm64); or the
            machine is neither x86-64 nor arm64.
        PhysviewError: This user may not examine the process.
    """

    name = "bpf"

    def __init__(self, proc: ProcDir) -> None:
        _check_machine()
        self._proc = proc
        self._fd = proc.open_pagemap()
        try:
            self._program = _Program.take()
        except BaseException:
            super().close()
            raise
        self.info = self._program.info

    def close(self) -> None:
        """Close the process and leave the program to the next. Closing twice is harmless."""
        if self._fd >= 0:
            self._program.give_back()
        super().close()

    def user_end(self) -> int:
        """See `PageTables.user_end()`."""
        return self.info.user_end

    def nr_levels(self) -> int:
        """See `PageTables.nr_levels()`."""
        return self.info.nr_levels

    def iter_tables(self) -> Iterator[Any]:
        """Count the page tables, from the root down and piece by piece.

        Yields:
            The same `struct pv_tables` of csrc/cdef.h after each piece. Its counts grow. What it
            says of the last piece is overwritten by the next.

        Raises:
            ProcessGone: The process ended or ran another program meanwhile.
        """
        ffi, lib = self._program.ffi, self._program.lib
        tables = ffi.new("struct pv_tables *")
        while tables.at < self.info.user_end:
            self._check(lib.pv_bpf_tables(self._program.handle, self._fd, tables))
            yield tables

    def read_table(self, vaddr: int, depth: int) -> TableEntries | None:
        """See `PageTables.read_table()`. The program copies the table."""
        ffi, lib = self._program.ffi, self._program.lib
        nr = self.geometry().levels[depth].nr_user
        entries, uses = ffi.new("uint64_t[]", nr), ffi.new("uint8_t[]", nr)
        handle = self._program.handle
        if not self._check(lib.pv_bpf_table(handle, self._fd, vaddr, depth, nr, entries, uses)):
            return None
        return TableEntries(tuple(entries), tuple(map(EntryUse, uses)))

    def read_bits(self, *, soft_dirty: bool = False) -> npt.NDArray[Any]:
        """See `PageTables.read_bits()`. The core reads the bits from copies of the tables."""
        import numpy as np

        from physview.sources.page_bits import BITS_DTYPE, empty_bits

        ffi, lib = self._program.ffi, self._program.lib
        which = lib.PV_SOFT_DIRTY_BIT if soft_dirty else lib.PV_DIRTY_BIT
        at = ffi.new("uint64_t *")
        pieces = [empty_bits()]
        room = np.empty(_NR_BLOCKS, dtype=BITS_DTYPE)
        bits = ffi.cast("struct pv_bits *", room.ctypes.data)
        while at[0] < self.info.user_end:
            end, handle = self.info.user_end, self._program.handle
            nr = lib.pv_bpf_bits(handle, self._fd, which, at, end, bits, len(room))
            pieces.append(room[: self._check(nr)].copy())
        return np.concatenate(pieces)

    def _check(self, result: int) -> int:
        if result == -errno.ESRCH:
            raise self._proc.gone()
        return _ffi.check(result, f"{self._proc.path}/pagemap")

    def _walk_pages(self, vaddrs: npt.NDArray[np.uint64], pages: npt.NDArray[Any]) -> None:
        ffi, lib = self._program.ffi, self._program.lib
        result = lib.pv_bpf_pages(
            self._program.handle,
            self._fd,
            ffi.from_buffer("uint64_t[]", vaddrs),
            len(vaddrs),
            ffi.cast("struct physicalview_page *", pages.ctypes.data),
        )
        self._check(result)

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int:
        """See `PageTables.fill()`. pagemap is asked about an answer that is unstable."""
        buffer = self._program.ffi.from_buffer
        without = self._program.lib.pv_bpf_translate(
            self._program.handle,
            self._fd,
            buffer("uint64_t[]", vaddrs),
            len(vaddrs),
            buffer("uint64_t[]", entries, require_writable=True),
            buffer("uint64_t[]", paddrs, require_writable=True),
        )
        if without == -errno.EBADMSG:
            return super().fill(vaddrs, entries, paddrs)  # this names the invalid entry
        return self._check(without)

    def _walk_range(self, start: int, end: int, extents: npt.NDArray[Any]) -> tuple[int, int]:
        ffi, lib = self._program.ffi, self._program.lib
        at = ffi.new("uint64_t *", start)
        found = lib.pv_bpf_extents(
            self._program.handle,
            self._fd,
            at,
            end,
            ffi.cast("struct physicalview_extent *", extents.ctypes.data),
            len(extents),
        )
        return self._check(found), at[0]

    def _walk_levels(self, buffer: bytearray) -> None:
        ffi, lib = self._program.ffi, self._program.lib
        walk = ffi.cast("struct physicalview_walk *", ffi.from_buffer(buffer))
        self._check(lib.pv_bpf_walk(self._program.handle, self._fd, walk))


def _check_machine() -> None:
    if os.uname().machine not in _MACHINES:
        raise Unsupported(
            "cannot walk page tables by BPF",
            f"this is {os.uname().machine}, and physview knows x86-64 and arm64 only",
            "use the kernel module: --source kmod",
        )


def _why(number: int, stage: int, lib: Any, log: str) -> PhysviewError:
    """Explain why the program was not loaded, with a remedy."""
    what = "cannot walk page tables by BPF"
    if number in (errno.EMFILE, errno.ENFILE):
        limit = resource_limits.reached(OSError(number, os.strerror(number)))
        if limit:
            return Unsupported(what, *limit)  # another source may need fewer files
    # Lockdown takes a helper away, which looks like a program with an error.
    refused = number in (errno.EPERM, errno.EACCES, errno.ENOSYS)
    if refused or (stage == lib.PV_BPF_PROGRAM and privileges.lockdown() == "confidentiality"):
        forbidden = privileges.why_no_bpf()
        if forbidden:
            return AccessDenied(what, *forbidden)
    if number == errno.EPERM:
        return AccessDenied(what, "the kernel does not let this process load a program")
    if stage == lib.PV_BPF_TYPES and number == errno.ENOENT:
        why = "the kernel does not describe its own types (no /sys/kernel/btf/vmlinux)"
        return Unsupported(what, why, "use a kernel with CONFIG_DEBUG_INFO_BTF, or the module")
    if stage == lib.PV_BPF_TYPES and number == errno.ENOTSUP:
        why = "the entries of page tables of this kernel are not known"
        return Unsupported(what, why, "use Linux 5.19 or newer, or the module")
    if number == errno.ENOSYS:
        return Unsupported(what, "the kernel was built without BPF", "use the module")
    if stage == lib.PV_BPF_PROGRAM and _release() < _BPF_LOOP:
        why = "this kernel has no bpf_loop(), which came with Linux 5.17"
        return Unsupported(what, why, "use a newer kernel, or the module")
    if stage == lib.PV_BPF_PROGRAM:
        # The last lines count instructions. The verifier's reason is the line before.
        lines = filter(None, log.split("\n"))
        told = [line for line in lines if not line.startswith("processed ")]
        why = f"the kernel refuses the program: {told[-1] if told else os.strerror(number)}"
        return Unsupported(what, why, "use the module", tuple(told[-_LOG_LINES:-1]))
    if stage == lib.PV_BPF_DIRECT_MAP:
        why = f"the kernel's map of RAM was not found ({os.strerror(number)})"
        return Unsupported(what, why, "use the module")
    if stage == lib.PV_BPF_CHECK:
        why = "a walk to memory of this process does not agree with pagemap"
        return Unsupported(what, why, "use the module")
    return PhysviewError(what, os.strerror(number))


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", os.uname().release)[:2]))
