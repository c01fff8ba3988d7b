# SPDX-License-Identifier: GPL-2.0-or-later
r"""The text of /proc, taken apart exactly where the kernel put it together.

Names in it are chosen by users: a process may call itself "a) R 1", and a mount point may hold
"\v", which str.split() takes for a blank. So all of this works on bytes, and splits at nothing but
what the kernel writes between fields. What the kernel does with the names themselves:

=========================  ==================================================================
mountinfo: root, path      space, \t, \n and \\ become \040, \011, \012, \134; all else is raw
mountinfo: type, source    the same, and # becomes \043
maps, smaps: file          \n becomes \012; all else is raw, also a backslash: "\012" may be
                           either, and only /proc/PID/map_files tells
maps: [anon:NAME]          the kernel takes no name with a byte that is not printable, or with
                           one of \\ ` $ [ ]
swaps: file                as mountinfo's path
status: Name               \n and \\ become "\n" and "\\"; all else is raw
stat: name, comm           raw, also \n and parentheses
cgroup: path               raw; no cgroup can be made with \n in its name
saved_cmdlines (tracefs)   raw, also \n
=========================  ==================================================================

Source: fs/seq_file.c (mangle_path), fs/proc_namespace.c, fs/proc/task_mmu.c, fs/proc/array.c,
    kernel/cgroup/cgroup.c (cgroup_mkdir), kernel/sys.c (prctl_set_vma). Tried out on Linux 6.18.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


def lines(text: bytes) -> list[bytes]:
    r"""The lines of a text, without the "\n" that ends each, and split at nothing else.

    >>> lines(b"a\rb\n\nc\n")
    [b'a\rb', b'', b'c']
    """
    found = text.split(b"\n")
    if not found[-1]:
        del found[-1]
    return found


def words(line: bytes, separators: bytes = b" ") -> list[bytes]:
    r"""The fields of a line that are set apart by one or more separators.

    Args:
        line: A line without its end.
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
    r"""The decimal numbers of a text of nothing but these, such as that of cgroup.procs.

    >>> numbers(b"3\n1\n"), numbers(b"")
    ([3, 1], [])
    """
    return [int(word) for word in words(text, b" \t\n")]


def value(text: bytes) -> bytes:
    r"""What a file of one value holds: all but the "\n" at its end.

    >>> value(b"a name \n\n")
    b'a name \n'
    """
    return text.removesuffix(b"\n")


def unescape(text: bytes) -> bytes:
    r"""Undo the kernel's octal escapes.

    >>> unescape(rb"/a\040b\134040")
    b'/a b\\040'
    """
    if b"\\" not in text:
        return text
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)


def fields_by_name(text: bytes) -> dict[bytes, bytes]:
    r"""A text of lines "Name: value", such as status and meminfo.

    Nothing but the first line of a name counts, as the kernel writes each once.

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
        device: Number of the device, as st_dev has it.
        root: What of the file system is mounted, as a path within it.
        path: Where it is mounted.
        kind: The type of the file system; those of FUSE are "fuse.SUBTYPE".
        options: The file system's own options.
    """

    device: int
    root: str
    path: str
    kind: str
    options: tuple[str, ...]


def parse_mountinfo(data: bytes) -> list[Mount]:
    r"""Read /proc/PID/mountinfo. Source: show_mountinfo() in fs/proc_namespace.c.

    >>> parse_mountinfo(b"36 35 0:31 / /home/a\\040\vb rw shared:1 - tmpfs none rw,size=1\n")
    [Mount(device=31, root='/', path='/home/a \x0bb', kind='tmpfs', options=('rw', 'size=1'))]
    """
    return [mount for line in lines(data) if (mount := _parse_mount(line))]


def _parse_mount(line: bytes) -> Mount | None:
    fields = line.split(b" ")
    try:
        # Optional fields come before the "-", and none of them is a "-".
        dash = fields.index(b"-", 6)
        # A source may be empty, and then the kernel writes nothing between its blanks.
        kind, options = fields[dash + 1], b" ".join(fields[dash + 3 :])
        major, minor = map(int, fields[2].split(b":"))
    except (ValueError, IndexError):
        # A file system writes its options itself, and may forget to escape a "\n" of them.
        return None
    return Mount(
        os.makedev(major, minor),
        os.fsdecode(unescape(fields[3])),
        os.fsdecode(unescape(fields[4])),
        os.fsdecode(unescape(kind)),
        tuple(os.fsdecode(options).split(",")),
    )


def read_mounts() -> list[Mount]:
    """The mounts that this process sees, in the kernel's order. Source: /proc/self/mountinfo"""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())
