# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the files of a process in /proc other than pagemap: mappings, state, identity.

The parsers take bytes. `ProcDir.error()` is the one place that translates an OSError about a file
of a process into an error of physview.
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
from physview.runtime.privileges import root_remedy
from physview.text import proctext

# include/linux/sched.h
PF_EXITING = 0x00000004
PF_KTHREAD = 0x00200000

# Names of mappings that are certainly no device's; so are those without a name. Other mappings are
# looked up in smaps. Any path may be a device's: drivers choose names such as "/dmabuf:" for it.
ANONYMOUS = ("[heap]", "[stack]", "[anon")
# The kernel writes "\n" in a path of maps like this. It does not escape a backslash.
ESCAPED_NEWLINE = "\\012"
# The mapping that the kernel itself makes. Its flags are the same in every process.
KERNELS_PATH = "[vvar"

# A range of addresses: (start, end).
Range = tuple[int, int]
ALL = (0, 1 << 64)

_ENCODING, _ENCODE_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that physview uses.

    Args:
        state: One letter; Z and X mean that the process has ended.
        flags: PF_* bits.
        start_time: Clock ticks after boot; pid and start_time together identify a process.
        start_stack: Address of the start of the stack, where argc is. 0 without permission.
        nr_minor_faults: Page faults of all threads that did not read from a disk.
        nr_major_faults: Page faults of all threads that read from a disk.
        size_bytes: Size of the address space.
        name: Name of the process.
    """

    state: str
    flags: int
    start_time: int
    start_stack: int
    nr_minor_faults: int
    nr_major_faults: int
    size_bytes: int = 0
    name: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, or is ending and has released its memory."""
        return self.state in "ZX" or bool(self.flags & PF_EXITING)


def parse_stat(data: bytes) -> Stat:
    """Parse /proc/PID/stat. Source: Documentation/filesystems/proc.rst, table 1-4.

    >>> stat = parse_stat(b"7 (a) b) S 1 7 7 0 -1 64 5 0 6 0 0 0 0 0 20 0 1 0 99 0 0 0 0 0 4096")
    >>> stat[:4]
    ('S', 64, 99, 4096)
    >>> stat.nr_minor_faults, stat.nr_major_faults
    (5, 6)
    """
    # The name may contain blanks and parentheses. So count the fields from its last parenthesis.
    last = data.rindex(b")")
    fields = data[last + 2 :].split(b" ")
    name = os.fsdecode(data[data.index(b"(") + 1 : last])
    flags, start, stack, minor, major, size = (int(fields[at]) for at in (6, 19, 25, 7, 9, 20))
    return Stat(fields[0].decode(), flags, start, stack, minor, major, size, name)


def parse_maps_line(line: bytes) -> Vma:
    r"""Parse one line of /proc/PID/maps. Source: show_map_vma() in fs/proc/task_mmu.c.

    The kernel writes "\n" in a path as "\012", but does not escape a backslash. So "\012" in a line
    is ambiguous. This function takes it for "\n"; `ProcDir.parse_maps_line()` finds the exact path.

    >>> parse_maps_line(b"7f00-8f00 r-xp 00001000 fe:01 42    /usr/bin/a b\n").path
    '/usr/bin/a b'
    """
    # The same as os.fsdecode(line), which would take a fifth of the time of this function.
    text = line.decode(_ENCODING, _ENCODE_ERRORS)
    # The kernel pads with blanks between inode and path. No path begins with a blank.
    where, perms, offset, device, inode, path = text.split(" ", 5)
    start, _, end = where.partition("-")
    path = path.lstrip(" ").removesuffix("\n")
    if ESCAPED_NEWLINE in path:
        path = path.replace(ESCAPED_NEWLINE, "\n")
    return Vma(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), path)


def parse_vm_flags(smaps: Iterable[bytes]) -> dict[int, frozenset[str]]:
    r"""Parse the VmFlags of each mapping from /proc/PID/smaps.

    Args:
        smaps: The lines of the file.

    Returns:
        The flags by the start address of the mapping.

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


def list_pids() -> list[int]:
    """The pids of all processes that are visible in /proc, in ascending order."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


class ProcDir(Descriptor):
    """/proc/PID, held open, so that a later process with the same pid is never read instead.

    Args:
        pid: Process id, or "self" for this process.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: The process exists, but hidepid hides it.
        UsageError: `pid` is a text other than "self".
    """

    def __init__(self, pid: int | str = "self") -> None:
        if isinstance(pid, str) and pid != "self":
            raise UsageError(f"'{pid}' is no process", 'a pid or "self" is meant')
        # Use /proc/self, not the pid: if /proc belongs to another pid namespace, the pid may name
        # another process there.
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

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a file of the process, and return its descriptor.

        Raises:
            PhysviewError: The file cannot be opened; `error()` chooses the class of the error.
        """
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise self.error(error, name) from None

    def has(self, name: str) -> bool:
        """Whether there is a file of this name. Older kernels lack some."""
        return os.access(name, os.F_OK, dir_fd=self._fd)

    def open_pagemap(self) -> int:
        """Open the pagemap of the process, and return its descriptor.

        Raises:
            PhysviewError: As in `open()`.
            NoUserMemory: The process has no user memory. Kernels before 6.14 would open an empty
                pagemap for such a process.
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
        """Yield the lines of a file of the process, while it is read. Raises as `open()` does."""
        with open(self.open(name), "rb") as file:
            try:
                yield from file
            except OSError as error:
                raise self.error(error, name) from None

    def stat(self) -> Stat | None:
        """Read the state of the process; None if the process is gone."""
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

    def living_stat(self, name: str) -> Stat:
        """Read the state of a process that has user memory.

        Args:
            name: The file that is to be read next, for the text of the error.

        Raises:
            NoUserMemory: It is a kernel thread or a zombie.
            ProcessGone: It is gone.
        """
        stat = self.stat()
        if stat is None:
            raise self.gone()
        path = f"{self.path}/{name}"
        error = self._without_memory(stat, f"cannot read {path}", {"pid": self.pid, "path": path})
        if error:
            raise error
        return stat

    def has_ended(self) -> bool:
        """Whether the process has ended, or has released its memory."""
        stat = self.stat()
        return stat is None or stat.has_ended

    def error(self, error: OSError, name: str) -> PhysviewError:
        """Translate an OSError about the file `name` of the process into an error of physview."""
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
        # For an unprivileged user the kernel returns EACCES in these cases, too.
        without = self._without_memory(stat, what, about)
        if without:
            return without
        if error.errno in (errno.EACCES, errno.EPERM):
            why = f"you may not examine process {self.pid}"
            return AccessDenied(what, why, root_remedy("SYS_PTRACE"), **about)
        if error.errno == errno.ENOENT:
            remedy = "use a kernel with CONFIG_PROC_PAGE_MONITOR=y"
            return Unsupported(what, "this kernel was built without it", remedy, **about)
        return self.gone()

    def _without_memory(self, stat: Stat, what: str, about: dict[str, Any]) -> NoUserMemory | None:
        """The error for a kernel thread or a zombie; None for a process that has memory."""
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
            why = "its main thread has ended, and the kernel shows no memory through that thread"
            remedy = f"name another thread, such as {min(threads, key=int)}"
        else:
            why = f"process {self.pid} has ended and only its exit status is left (a zombie)"
            remedy = "choose a living process"
        return NoUserMemory(what, why, remedy, **about)

    def gone(self) -> ProcessGone | AccessDenied:
        """The error for a process that ended, ran another program or is hidden by hidepid."""
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
        """The error for a process that exists, but is hidden by hidepid."""
        return AccessDenied(
            f"cannot examine process {self.pid}",
            "it is another user's, and /proc is mounted with hidepid, which hides it",
            root_remedy("SYS_PTRACE"),
            pid=self.pid,
            path=self.path,
        )

    def comm(self) -> str:
        """Read the name of the process. Raises as `open()` does."""
        return os.fsdecode(proctext.value(self.read("comm")))

    def nr_resident(self) -> int:
        """Read the approximate number of resident pages, from the kernel's own count.

        Raises as `open()` does.

        Source: statm in Documentation/filesystems/proc.rst, table 1-3.
        """
        return proctext.numbers(self.read("statm"))[1]

    def iter_vmas(self) -> Iterator[Vma]:
        """Yield the mappings in address order. Raises as `open()` does."""
        return map(self.parse_maps_line, self.iter_lines("maps"))

    def parse_maps_line(self, line: bytes) -> Vma:
        """Parse one line of the process's maps, with the exact path if the kernel shows it."""
        vma = parse_maps_line(line)
        return self._exact(vma) if "\n" in vma.path else vma

    def _exact(self, vma: Vma) -> Vma:
        return vma._replace(path=self.exact_path(vma.start, vma.end, vma.path))

    def exact_path(self, start: int, end: int, path: str) -> str:
        """Replace an ambiguous path of maps by the exact path.

        "\\012" in maps may stand for "\\n" or for itself. map_files has the exact path, but
        requires CAP_CHECKPOINT_RESTORE. Without this capability "\\012" is taken for "\\n", the
        more likely case.

        Args:
            start: First address of the mapping.
            end: First address after the mapping.
            path: The path that the kernel shows.

        Source: map_files in Documentation/filesystems/proc.rst
        """
        try:
            return os.readlink(f"map_files/{start:x}-{end:x}", dir_fd=self._fd)
        except OSError:
            return path.replace(ESCAPED_NEWLINE, "\n")


@functools.cache
def _kernels_mappings_are_pfnmap() -> bool:
    """Whether [vvar] is VM_PFNMAP on this kernel.

    [vvar] has the same flags in every process. So this function reads the smaps of this process,
    which is quick.
    """
    proc = ProcDir()
    try:
        memory = MemoryMap(proc)
        return any(
            memory.has_flag(vma, "pf") for vma in memory.vmas if vma.path.startswith(KERNELS_PATH)
        )
    finally:
        proc.close()


def _in_order(vmas: Iterable[Vma]) -> Iterator[Vma]:
    """Remove overlaps between successive mappings of /proc/PID/maps.

    Several read() calls are needed to read maps. If a mapping grows downwards or is merged between
    two of these calls, the kernel reports it again, and it overlaps the mappings before it.
    """
    end = 0
    for vma in vmas:
        if vma.start >= end:
            yield vma
        elif vma.end > end:
            yield vma._replace(start=end)
        end = max(end, vma.end)


class MemoryMap:
    """The mappings of a process at one moment, with look-ups by address.

    Args:
        proc: The process.
        before: The mappings at an earlier moment; lines that have not changed are not parsed again.
        within: Only the mappings that have an address in this range, (start, end).

    Raises:
        PhysviewError: /proc/PID/maps cannot be read.
    """

    def __init__(self, proc: ProcDir, before: MemoryMap | None = None, within: Range = ALL) -> None:
        self._proc = proc
        known: dict[bytes, Vma] = before._by_line if before else {}
        lines = list(proc.iter_lines("maps"))
        if not lines:  # every living process has a mapping
            raise proc.error(ProcessLookupError(errno.ESRCH, ""), "maps")
        self._by_line: dict[bytes, Vma] = {
            line: known.get(line) or proc.parse_maps_line(line)
            for line in lines
            if within == ALL or proctext.is_within(line, *within)
        }
        self.vmas = list(_in_order(self._by_line.values()))
        self._ends = [vma.end for vma in self.vmas]
        self._flags: dict[int, frozenset[str]] | None = None

    def areas(self, end: int) -> list[tuple[int, int]]:
        """The mapped ranges below `end`, as (start, end); adjacent mappings are merged."""
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
        """The mapping that contains `vaddr`, or None."""
        at = self.index_after(vaddr)
        return self.vmas[at] if at < len(self.vmas) and vaddr in self.vmas[at] else None

    def index_after(self, vaddr: int) -> int:
        """Index of the first mapping that ends after `vaddr`."""
        return bisect.bisect_right(self._ends, vaddr)

    def is_pfnmap(self, vma: Vma) -> bool:
        """Whether a mapping is VM_PFNMAP: pagemap shows nothing for such a mapping.

        The first call may read smaps, which walks all page tables.
        """
        if not vma.path or vma.path.startswith(ANONYMOUS):
            return False
        if vma.path.startswith(KERNELS_PATH):
            return _kernels_mappings_are_pfnmap()
        return self.has_flag(vma, "pf")

    def has_flag(self, vma: Vma, flag: str) -> bool:
        """Whether a mapping has a flag of VmFlags. The first call reads smaps.

        Args:
            vma: The mapping.
            flag: The two letters in smaps, such as "pf".

        Source: show_smap_vma_flags() in fs/proc/task_mmu.c
        """
        if self._flags is None:
            self._flags = parse_vm_flags(self._proc.iter_lines("smaps"))
        return flag in self._flags.get(vma.start, ())

    def cause(self, vaddr: int, entry: PagemapEntry) -> Cause | None:
        """Find why a page has no frame number, from its pagemap entry and its mapping.

        Args:
            vaddr: An address in the page.
            entry: The pagemap entry of the page.

        Returns:
            The cause; None if the page has a frame number.
        """
        cause = entry.cause
        if cause is not Cause.ABSENT:
            return cause
        vma = self.find(vaddr)
        if vma is None:
            return Cause.UNMAPPED
        return Cause.DEVICE if self.is_pfnmap(vma) else Cause.ABSENT
