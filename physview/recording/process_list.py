# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists the processes with what is cheap to know of each: whether its memory may have changed.

Reading /proc/PID/stat takes 10 microseconds; reading the memory of a process takes a hundred times
as long. So the memory of a process is read again only if its stat has changed. Its stat also has
the kernel's own count of resident pages. (statm has it, too, and would take 7 microseconds more.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from physview.sources.procfs import PF_EXITING, PF_KTHREAD, list_pids
from physview.text import proctext
from physview.text.quoting import escaped

STAT_BYTES = 4096


class Seen(NamedTuple):
    """A process as its stat shows it.

    Args:
        pid: The process.
        start_time: Clock ticks after boot, as text; pid and start_time identify a process.
        name: The name of its program (comm).
        minor_faults: Page faults that did not read from a disk.
        major_faults: Page faults that read from a disk.
        size: Bytes of address space, as text.
        nr_resident: Resident pages, by the kernel's approximate count: files, shared memory and
            anonymous memory. Each of these counters is kept per processor, and what a processor
            has not added yet is missing: up to max(32, 2 * processors) pages of each.

    Source: do_task_stat() in fs/proc/array.c, compute_batch_value() in lib/percpu_counter.c
    """

    pid: int
    start_time: bytes
    name: bytes
    minor_faults: int
    major_faults: int
    size: bytes
    nr_resident: int

    @property
    def changes(self) -> tuple[int, int, bytes, int, bytes]:
        """What is equal in two readings if the memory has not changed between them."""
        return self.minor_faults, self.major_faults, self.size, self.nr_resident, self.name


def parse_stat(pid: int, data: bytes) -> Seen | None:
    """Parse /proc/PID/stat; None for a process without user memory.

    Source: Documentation/filesystems/proc.rst, table 1-4

    >>> parse_stat(7, b"7 (a) b) S 1 7 7 0 -1 64 5 0 6 0 0 0 0 0 20 0 1 0 99 8192 3 0")
    Seen(pid=7, start_time=b'99', name=b'a) b', minor_faults=5, major_faults=6, size=b'8192', \
nr_resident=3)
    >>> parse_stat(7, b"7 (a) Z 1 7 7 0 -1 64 5 0 6 0 0 0 0 0 20 0 1 0 99 8192 3 0")
    """
    last = data.rindex(b")")  # the name may contain blanks and parentheses
    fields = data[last + 2 :].split(b" ", 22)
    if fields[0] in b"ZX" or int(fields[6]) & (PF_KTHREAD | PF_EXITING):
        return None
    name = data[data.index(b"(") + 1 : last]
    return Seen(pid, fields[19], name, int(fields[7]), int(fields[9]), fields[20], int(fields[21]))


class ProcessList:
    """Lists the processes again and again.

    Attributes:
        hidden: Processes whose stat this user may not read (hidepid=1).
    """

    def __init__(self) -> None:
        self.hidden: list[int] = []

    def read(self) -> Iterator[Seen]:
        """Yield the processes with user memory."""
        self.hidden = []
        for pid in list_pids():
            try:
                data = read_small(f"/proc/{pid}/stat")
            except PermissionError:
                self.hidden.append(pid)
                continue
            except OSError:
                continue  # it ended meanwhile
            seen = parse_stat(pid, data) if data else None
            if seen:
                yield seen


def read_small(path: str) -> bytes:
    """Read a file of at most 4096 bytes with as few calls as possible. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, STAT_BYTES)
    finally:
        os.close(fd)


def cgroup_of(data: bytes) -> bytes:
    r"""The path of the memory cgroup in a text of /proc/PID/cgroup; "/" if there is none.

    Source: cgroups(7). A path may contain ":", and no "\n".

    >>> cgroup_of(b"4:memory:/a:b\n0::/\n"), cgroup_of(b"1:name=systemd:/x\n0::/b\n")
    (b'/a:b', b'/b')
    """
    found = b"/"
    for line in proctext.lines(data):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if b"memory" in controllers.split(b","):
            return path
        if number == b"0" and not controllers:
            found = path
    return found


def name_text(name: bytes) -> str:
    r"""A name as text that is valid UTF-8; bytes that are not are written as \xNN.

    >>> name_text("ä\n".encode()), name_text(b"a\xff")
    ('ä\n', 'a\\xff')
    """
    try:
        return name.decode()
    except UnicodeDecodeError:
        return escaped(name.decode("utf-8", "surrogateescape"))
