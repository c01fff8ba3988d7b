# SPDX-License-Identifier: GPL-2.0-or-later
r"""Parses the text of /proc by the separators that the kernel writes.

Users choose the names in this text. A process may call itself "a) R 1". A mount point may contain
"\v", which str.split() takes for a blank. So these functions work on bytes, and split only at the
bytes that the kernel writes between fields. The kernel escapes names as follows:

=========================  ==================================================================
mountinfo: root, path      space, \t, \n and \\ become \040, \011, \012, \134; the rest is raw
mountinfo: type, source    the same, and # becomes \043
maps, smaps: file          \n becomes \012; the rest is raw, a backslash too. So "\012" is
                           ambiguous; /proc/PID/map_files has the exact path
maps: [anon:NAME]          the kernel rejects a name that contains a byte which is not
                           printable, or one of \\ ` $ [ ]
swaps: file                as the path in mountinfo
status: Name               \n and \\ become "\n" and "\\"; the rest is raw
stat: name, comm           raw, \n and parentheses too
cgroup: path               raw; the kernel refuses to make a cgroup with \n in its name
saved_cmdlines (tracefs)   raw, \n too
=========================  ==================================================================

Source: fs/seq_file.c (mangle_path), fs/proc_namespace.c, fs/proc/task_mmu.c, fs/proc/array.c,
    kernel/cgroup/cgroup.c (cgroup_mkdir), kernel/sys.c (prctl_set_vma). Tested on Linux 6.18.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def lines(text: bytes) -> list[bytes]:
    r"""Split a text into lines, at "\n" only; the "\n" is removed.

    >>> lines(b"a\rb\n\nc\n")
    [b'a\rb', b'', b'c']
    """
    found = text.split(b"\n")
    if not found[-1]:
        del found[-1]
    return found


def words(line: bytes, separators: bytes = b" ") -> list[bytes]:
    r"""Split a line into fields; one or more separators stand between two fields.

    Args:
        line: A line without its "\n".
        separators: The bytes that the kernel writes between these fields.

    >>> words(b"  Node 0, zone\v  DMA ")
    [b'Node', b'0,', b'zone\x0b', b'DMA']
    >>> words(b"CapEff:\t 1f", b" \t")
    [b'CapEff:', b'1f']
    """
    for other in separators[1:]:
        line = line.replace(bytes([other]), separators[:1])
    return [word for word in line.split(separators[:1]) if word]


def numbers(text: bytes) -> list[int]:
    r"""Parse a text that contains only decimal numbers, such as that of cgroup.procs.

    >>> numbers(b"3\n1\n"), numbers(b"")
    ([3, 1], [])
    """
    return [int(word) for word in words(text, b" \t\n")]


def is_within(line: bytes, start: int, end: int) -> bool:
    r"""Whether a line of maps is about an address in a range.

    >>> is_within(b"1000-3000 r--p 00000000 00:00 0", 0x2000, 0x9000)
    True
    >>> is_within(b"1000-3000 r--p 00000000 00:00 0", 0x3000, 0x9000)
    False
    """
    first, _, rest = line.partition(b"-")
    return int(first, 16) < end and start < int(rest[: rest.index(b" ")], 16)


def value(text: bytes) -> bytes:
    r"""The value in a file that has one value: the text without the last "\n".

    >>> value(b"a name \n\n")
    b'a name \n'
    """
    return text.removesuffix(b"\n")


def unescape(text: bytes) -> bytes:
    r"""Decode the kernel's octal escapes, such as "\040".

    >>> unescape(rb"/a\040b\134040")
    b'/a b\\040'
    """
    if b"\\" not in text:
        return text
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)


def read_or_empty(path: str) -> bytes:
    """Read a small file of the kernel's; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def size_of(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    """Return a size in bytes from the fields of status or meminfo; None if there is none.

    >>> size_of({b"VmPTE": b"12 kB"}, b"VmPTE"), size_of({}, b"VmPTE")
    (12288, None)
    """
    value = fields.get(name)
    return None if value is None else int(value.partition(b" ")[0]) * 1024


def fields_by_name(text: bytes) -> dict[bytes, bytes]:
    r"""Parse a text of lines "Name: value", such as status and meminfo.

    The kernel writes each name once. If a name occurs twice, its first line counts.

    >>> fields_by_name(b"Name:\ta\rCapEff:\t1\nCapEff:\t0f\n")[b"CapEff"]
    b'0f'
    """
    found: dict[bytes, bytes] = {}
    for line in lines(text):
        name, colon, rest = line.partition(b":")
        if colon:
            found.setdefault(name, rest.strip(b" \t"))
    return found


class Mount(NamedTuple):
    """One line of mountinfo.

    Args:
        device: Device number, as in st_dev.
        root: The folder of the file system that is mounted here, as a path inside the file system.
        path: The mount point.
        kind: Type of the file system; for FUSE "fuse.SUBTYPE".
        options: Options of the file system (the super block's), not of this mount.
    """

    device: int
    root: str
    path: str
    kind: str
    options: tuple[str, ...]


def parse_mountinfo(data: bytes) -> list[Mount]:
    r"""Parse /proc/PID/mountinfo. Source: show_mountinfo() in fs/proc_namespace.c.

    >>> parse_mountinfo(b"36 35 0:31 / /home/a\\040\vb rw shared:1 - tmpfs none rw,size=1\n")
    [Mount(device=31, root='/', path='/home/a \x0bb', kind='tmpfs', options=('rw', 'size=1'))]
    """
    return [mount for line in lines(data) if (mount := _parse_mount(line))]


def _parse_mount(line: bytes) -> Mount | None:
    fields = line.split(b" ")
    try:
        # The optional fields come before the "-". No optional field is itself a "-".
        dash = fields.index(b"-", 6)
        # The source may be empty: then two blanks follow each other.
        kind, options = fields[dash + 1], b" ".join(fields[dash + 3 :])
        major, minor = map(int, fields[2].split(b":"))
    except (ValueError, IndexError):
        # A file system writes its options itself, and may fail to escape a "\n" in them. Then the
        # rest of the options looks like another line.
        return None
    return Mount(
        os.makedev(major, minor),
        os.fsdecode(unescape(fields[3])),
        os.fsdecode(unescape(fields[4])),
        os.fsdecode(unescape(kind)),
        tuple(os.fsdecode(options).split(",")),
    )


def read_mounts() -> list[Mount]:
    """Read the mounts that this process sees, in the kernel's order.

    Source: /proc/self/mountinfo
    """
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())
