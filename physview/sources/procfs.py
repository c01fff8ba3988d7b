# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's files in /proc other than pagemap: its mappings, its state, its identity.

The parsers take bytes. Errors of the kernel are turned into physview's own here, once.
"""

from __future__ import annotations

import bisect
import errno
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from physview.errors import (
    AccessDenied,
    NoUserMemory,
    PhysviewError,
    ProcessGone,
    Unsupported,
    UsageError,
)
from physview.files.descriptor import Descriptor
from physview.model import Cause, PagemapEntry, Vma
from physview.runtime import proc_mount, resource_limits
from physview.text import proctext

# include/linux/sched.h
PF_EXITING = 0x00000004
PF_KTHREAD = 0x00200000

# Where a VM_PFNMAP mapping can lie. To look at every mapping's flags takes smaps, which walks all
# the page tables; so only these are looked up there. Shared memory is also found under /dev.
DEVICE_PATHS = ("[vvar", "/dev/", "/sys/", "/proc/", "anon_inode:")
SHARED_MEMORY_PATHS = ("/dev/zero", "/dev/shm/")
# What the kernel makes of "\n" in a path of maps. It makes nothing of a backslash.
ESCAPED_NEWLINE = "\\012"
# The kernel's own, with the same flags in every process.
KERNELS_PATH = "[vvar"

_ENCODING, _ENCODE_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

SMAPS_SIZES = frozenset(
    [
        "Rss",
        "AnonHugePages",
        "ShmemPmdMapped",
        "FilePmdMapped",
        "Shared_Hugetlb",
        "Private_Hugetlb",
    ]
)


class Stat(NamedTuple):
    """What physview uses of /proc/PID/stat.

    Args:
        state: One letter; Z and X have ended.
        flags: PF_* bits.
        start_time: Clock ticks after boot; with the pid it names a process.
        start_stack: Where the stack began: argc lies there. 0 without permission.
        nr_minor_faults: Page faults of all its threads that needed no reading of a disk.
        nr_major_faults: Those that did.
    """

    state: str
    flags: int
    start_time: int
    start_stack: int
    nr_minor_faults: int
    nr_major_faults: int

    @property
    def has_ended(self) -> bool:
        """Whether it ended, or is so far on the way that its memory is gone."""
        return self.state in "ZX" or bool(self.flags & PF_EXITING)


def parse_stat(data: bytes) -> Stat:
    """Read /proc/PID/stat. Source: Documentation/filesystems/proc.rst, table 1-4.

    >>> stat = parse_stat(b"7 (a) b) S 1 7 7 0 -1 64 5 0 6 0 0 0 0 0 20 0 1 0 99 0 0 0 0 0 4096")
    >>> stat[:4]
    ('S', 64, 99, 4096)
    >>> stat.nr_minor_faults, stat.nr_major_faults
    (5, 6)
    """
    # The name may hold anything, also blanks and parentheses: fields count from its end.
    fields = data[data.rindex(b")") + 2 :].split(b" ")
    numbers = (int(fields[at]) for at in (6, 19, 25, 7, 9))
    return Stat(fields[0].decode(), *numbers)


def parse_maps_line(line: bytes) -> Vma:
    r"""Read one line of /proc/PID/maps. Source: show_map_vma() in fs/proc/task_mmu.c.

    The kernel writes "\n" in a path as "\012" and a backslash as it is, so that the path of a line
    with "\012" is only probably the right one: `ProcDir.parse_maps_line()` finds out.

    >>> parse_maps_line(b"7f00-8f00 r-xp 00001000 fe:01 42    /usr/bin/a b\n").path
    '/usr/bin/a b'
    """
    # As os.fsdecode(), which takes a fifth of the time of all this.
    text = line.decode(_ENCODING, _ENCODE_ERRORS)
    # Between inode and path there are blanks up to a column. No path begins with one.
    where, perms, offset, device, inode, path = text.split(" ", 5)
    start, _, end = where.partition("-")
    path = path.lstrip(" ").removesuffix("\n")
    if ESCAPED_NEWLINE in path:
        path = path.replace(ESCAPED_NEWLINE, "\n")
    return Vma(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), path)


def parse_vm_flags(smaps: Iterable[bytes]) -> dict[int, frozenset[str]]:
    r"""The VmFlags of each mapping in the lines of /proc/PID/smaps, by its start address.

    >>> smaps = [b"1000-2000 r--p 0 00:00 0 [vvar]\n", b"Rss: 0 kB\n", b"VmFlags: rd pf \n"]
    >>> parse_vm_flags(smaps) == {4096: {"rd", "pf"}}
    True
    """
    flags = {}
    start = 0
    for line in smaps:
        first, _, rest = line.partition(b" ")
        if first == b"VmFlags:":
            flags[start] = frozenset(rest.decode().strip(" \n").split(" "))
        elif not first.endswith(b":"):
            start = int(first.partition(b"-")[0], 16)
    return flags


def parse_smaps_sizes(smaps: Iterable[bytes], names: frozenset[str]) -> dict[int, dict[str, int]]:
    r"""Sizes in /proc/PID/smaps that are not 0, in bytes, by the start address of the mapping.

    >>> parse_smaps_sizes([b"1000-2000 r--p 0 00:00 0\n", b"Rss: 4 kB\n"], frozenset(["Rss"]))
    {4096: {'Rss': 4096}}
    """
    sizes: dict[int, dict[str, int]] = {}
    start = 0
    for line in smaps:
        first, _, rest = line.partition(b" ")
        if not first.endswith(b":"):
            start = int(first.partition(b"-")[0], 16)
        elif first[:-1].decode() in names:
            size = int(rest.lstrip(b" ").partition(b" ")[0]) * 1024
            if size:
                sizes.setdefault(start, {})[first[:-1].decode()] = size
    return sizes


class ProcDir(Descriptor):
    """/proc/PID held open, so that another process with a reused pid is never taken for it.

    Args:
        pid: Process id, or "self" for this process.

    Raises:
        ProcessGone: There is no such process.
        UsageError: `pid` is another text than "self".
    """

    def __init__(self, pid: int | str = "self") -> None:
        if isinstance(pid, str) and pid != "self":
            raise UsageError(f"'{pid}' is no process", 'a pid or "self" is meant')
        # "self" is not os.getpid() where /proc is that of another pid namespace.
        self.pid = os.getpid() if isinstance(pid, str) else pid
        self.path = f"/proc/{pid}"
        try:
            self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if isinstance(pid, int) and proc_mount.is_mounted() and proc_mount.is_hidden(pid):
                raise self._hidden() from None
            missing = proc_mount.why_no_file("/proc/self")
            why, remedy = missing or (f"there is no {self.path}", "ps -e lists the processes")
            raise ProcessGone(
                f"no process {self.pid}", why, remedy, pid=self.pid, path=self.path
            ) from None

    def open(self, name: str) -> int:
        """Open a file of the process for reading and return its descriptor.

        Raises:
            PhysviewError: The kernel refuses, as `error()` tells.
        """
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise self.error(error, name) from None

    def open_pagemap(self) -> int:
        """Open the pagemap and return its descriptor.

        Raises:
            PhysviewError: As `open()`; also where there is no memory, of which kernels before 6.14
                open an empty pagemap.
        """
        fd = self.open("pagemap")
        if self.path == "/proc/self":
            return fd
        stat = self.stat()
        path = f"{self.path}/pagemap"
        about = {"pid": self.pid, "path": path}
        error = self._without_memory(stat, f"cannot read {path}", about) if stat else self.gone()
        if error:
            os.close(fd)
            raise error
        return fd

    def read(self, name: str) -> bytes:
        """Read a whole file of the process. Raises as `open()` does."""
        return b"".join(self.iter_lines(name))

    def iter_lines(self, name: str) -> Iterator[bytes]:
        """Yield a file's lines as the kernel hands them out. Raises as `open()` does."""
        with open(self.open(name), "rb") as file:
            try:
                yield from file
            except OSError as error:
                raise self.error(error, name) from None

    def stat(self) -> Stat | None:
        """The process's state, or None when it is gone."""
        try:
            fd = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            if resource_limits.reached(error):
                raise self.error(error, "stat") from None
            return None
        with open(fd, "rb") as file:
            try:
                return parse_stat(file.read())
            except OSError:
                return None

    def error(self, error: OSError, name: str) -> PhysviewError:
        """Say what an OSError about the process's file `name` means."""
        path = f"{self.path}/{name}"
        what = f"cannot read {path}"
        about: dict[str, Any] = {"pid": self.pid, "path": path}
        limit = resource_limits.reached(error)
        if limit:
            return PhysviewError(what, *limit, **about)
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ESRCH, errno.ENOENT):
            return PhysviewError(what, error.strerror or str(error), **about)
        stat = self.stat()
        if stat is None:
            return self.gone()
        # To users who are not root the kernel says EACCES of these, too.
        without = self._without_memory(stat, what, about)
        if without:
            return without
        if error.errno in (errno.EACCES, errno.EPERM):
            why = f"process {self.pid} is not yours to look into"
            return AccessDenied(what, why, "run as root", **about)
        if error.errno == errno.ENOENT:
            remedy = "it takes one with CONFIG_PROC_PAGE_MONITOR=y"
            return Unsupported(what, "this kernel was built without it", remedy, **about)
        return self.gone()

    def _without_memory(self, stat: Stat, what: str, about: dict[str, Any]) -> NoUserMemory | None:
        """The error for a kernel thread and for a zombie; None for what has memory."""
        if stat.flags & PF_KTHREAD:
            why = f"{self.pid} is a kernel thread, which has no user memory"
            return NoUserMemory(what, why, "choose a user process", **about)
        if not stat.has_ended:
            return None
        try:
            threads = set(os.listdir(f"{self.path}/task")) - {str(self.pid)}
        except OSError:
            threads = set()
        if threads:
            why = "its first thread has ended, and through that the kernel shows no memory"
            remedy = f"name another thread, such as {min(threads, key=int)}"
        else:
            why = f"process {self.pid} has ended and only its exit status is left (a zombie)"
            remedy = "choose a living process"
        return NoUserMemory(what, why, remedy, **about)

    def gone(self) -> ProcessGone | AccessDenied:
        """The error for a process whose memory went away while it was read, or is hidden."""
        stat = self.stat()
        if stat is None and self.path != "/proc/self" and proc_mount.is_hidden(self.pid):
            return self._hidden()
        ended = stat is None or stat.has_ended
        why = "it ended" if ended else "it ran another program (exec)"
        return ProcessGone(
            f"process {self.pid} is gone",
            f"{why} while it was read",
            "start again with a living process" if ended else "start again",
            pid=self.pid,
            path=self.path,
        )

    def _hidden(self) -> AccessDenied:
        """The error for a process that is there and that /proc does not show."""
        return AccessDenied(
            f"cannot look into process {self.pid}",
            "it is another user's, and /proc is mounted with hidepid, which hides those",
            "run as root",
            pid=self.pid,
            path=self.path,
        )

    def comm(self) -> str:
        """The process's name. Raises as `open()` does."""
        return os.fsdecode(proctext.value(self.read("comm")))

    def nr_resident(self) -> int:
        """Pages in memory, about: the kernel's own count at this moment. Raises as `open()` does.

        Source: statm in Documentation/filesystems/proc.rst, table 1-3.
        """
        return proctext.numbers(self.read("statm"))[1]

    def iter_vmas(self) -> Iterator[Vma]:
        """Yield the mappings in address order. Raises as `open()` does."""
        return map(self.parse_maps_line, self.iter_lines("maps"))

    def parse_maps_line(self, line: bytes) -> Vma:
        """Read one line of the process's maps, with the path as it really is."""
        vma = parse_maps_line(line)
        return self._exact(vma) if "\n" in vma.path else vma

    def _exact(self, vma: Vma) -> Vma:
        """Tell "\\n" in a path from the four bytes that the kernel writes in its place.

        Source: map_files in Documentation/filesystems/proc.rst; it takes CAP_CHECKPOINT_RESTORE,
        and without it the path stays the likelier one.
        """
        try:
            name = f"map_files/{vma.start:x}-{vma.end:x}"
            return vma._replace(path=os.readlink(name, dir_fd=self._fd))
        except OSError:
            return vma


@functools.cache
def _kernels_mappings_are_pfnmap() -> bool:
    """Whether this kernel's [vvar] is VM_PFNMAP, by our own, whose smaps is soon read."""
    proc = ProcDir()
    try:
        memory = MemoryMap(proc)
        return any(
            memory.has_flag(vma, "pf") for vma in memory.vmas if vma.path.startswith(KERNELS_PATH)
        )
    finally:
        proc.close()


def _in_order(vmas: Iterable[Vma]) -> Iterator[Vma]:
    """Cut off what a mapping has in common with the one before.

    The kernel hands maps out in pieces. A mapping that grows downwards or is merged between two of
    them is told of again, and lies over what was told before.
    """
    end = 0
    for vma in vmas:
        if vma.start >= end:
            yield vma
        elif vma.end > end:
            yield vma._replace(start=end)
        end = max(end, vma.end)


class MemoryMap:
    """The mappings of a process at one moment, to look addresses up in.

    Args:
        proc: The process.
        before: Its mappings at an earlier moment: what has not changed is not parsed again.

    Raises:
        PhysviewError: /proc/PID/maps cannot be read.
    """

    def __init__(self, proc: ProcDir, before: MemoryMap | None = None) -> None:
        self._proc = proc
        known: dict[bytes, Vma] = before._by_line if before else {}
        self._by_line: dict[bytes, Vma] = {
            line: known.get(line) or proc.parse_maps_line(line) for line in proc.iter_lines("maps")
        }
        self.vmas = list(_in_order(self._by_line.values()))
        if not self.vmas:  # no living process is without a mapping
            raise proc.error(ProcessLookupError(errno.ESRCH, ""), "maps")
        self._ends = [vma.end for vma in self.vmas]
        self._flags: dict[int, frozenset[str]] | None = None
        self._sizes: dict[int, dict[str, int]] | None = None

    def areas(self, end: int) -> list[tuple[int, int]]:
        """The mapped address space below `end`: mappings that touch are one (start, end)."""
        areas: list[tuple[int, int]] = []
        for vma in self.vmas:
            if vma.start >= end:
                break
            if areas and areas[-1][1] == vma.start:
                areas[-1] = (areas[-1][0], vma.end)
            else:
                areas.append((vma.start, vma.end))
        return areas

    def find(self, vaddr: int) -> Vma | None:
        """The mapping that `vaddr` lies in, or None."""
        at = self.index_after(vaddr)
        return self.vmas[at] if at < len(self.vmas) and vaddr in self.vmas[at] else None

    def index_after(self, vaddr: int) -> int:
        """Index of the first mapping that ends after `vaddr`."""
        return bisect.bisect_right(self._ends, vaddr)

    def is_pfnmap(self, vma: Vma) -> bool:
        """Whether a mapping is VM_PFNMAP: it has no pages that pagemap could show."""
        if not vma.path.startswith(DEVICE_PATHS) or vma.path.startswith(SHARED_MEMORY_PATHS):
            return False
        if vma.path.startswith(KERNELS_PATH):
            return _kernels_mappings_are_pfnmap()
        return self.has_flag(vma, "pf")

    def has_flag(self, vma: Vma, flag: str) -> bool:
        """Whether a mapping has one of the kernel's VmFlags. The first call reads smaps.

        Source: show_smap_vma_flags() in fs/proc/task_mmu.c
        """
        if self._flags is None:
            self._flags = parse_vm_flags(self._proc.iter_lines("smaps"))
        return flag in self._flags.get(vma.start, ())

    def sizes(self, vma: Vma) -> dict[str, int]:
        """What smaps says of a mapping: SMAPS_SIZES, in bytes. The first call reads smaps."""
        if self._sizes is None:
            self._sizes = parse_smaps_sizes(self._proc.iter_lines("smaps"), SMAPS_SIZES)
        return self._sizes.get(vma.start, {})

    def cause(self, vaddr: int, entry: PagemapEntry) -> Cause | None:
        """Why the page has no frame number, as far as its entry and its mapping tell."""
        cause = entry.cause
        if cause is not Cause.ABSENT:
            return cause
        vma = self.find(vaddr)
        if vma is None:
            return Cause.UNMAPPED
        return Cause.DEVICE if self.is_pfnmap(vma) else Cause.ABSENT
