# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's first program: a static ELF file that makes one system call after the other.

Until the host's root is mounted there is nothing to run: no shell, no insmod. To bring a static
busybox would be one package more on every machine. What has to be done is a straight line of
system calls with constant arguments, so it is written as such, and Python writes the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

# arch/x86/entry/syscalls/syscall_64.tbl
SYS_WRITE, SYS_OPEN, SYS_CLOSE, SYS_EXECVE, SYS_CHDIR = 1, 2, 3, 59, 80
SYS_MKDIR, SYS_CHROOT, SYS_MOUNT, SYS_EXIT_GROUP, SYS_FINIT_MODULE = 83, 161, 165, 231, 313

# include/uapi/linux/mount.h
MS_RDONLY, MS_NOATIME, MS_MOVE = 0x1, 0x400, 0x2000

FAILURE = "physview-init: cannot "
"""How the line on the console begins when a step fails; the rest of the line is its name."""

_BASE = 0x400000
_HEADERS_SIZE = 64 + 56
# mov with 64 bits of constant into rdi, rsi, rdx, r10, r8, r9: the arguments of a system call.
_MOVES = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_MOV_EAX, _SYSCALL = b"\xb8", b"\x0f\x05"
_TEST_RAX_JNS = b"\x48\x85\xc0\x79"


class Step(NamedTuple):
    """One system call.

    Args:
        name: For the message "cannot NAME"; empty where a failure does not matter.
        number: The system call's.
        args: Its arguments: numbers, bytes (a pointer to them, 0-terminated) or a list of bytes
            (a pointer to such pointers, NULL-terminated, as for execve).
    """

    name: str
    number: int
    args: tuple[int | bytes | Sequence[bytes], ...]


def load_module(path: str) -> list[Step]:
    """The steps that load a kernel module."""
    # 0 to 2 are the console, so a file opened here is always 3.
    return [
        Step(f"open {path}", SYS_OPEN, (path.encode(), 0)),
        Step(f"load {path}", SYS_FINIT_MODULE, (3, b"", 0)),
        Step("", SYS_CLOSE, (3,)),
    ]


def make_directory(path: str) -> Step:
    """The step that makes a directory; that it is there already does not matter."""
    return Step("", SYS_MKDIR, (path.encode(), 0o755))


def mount(
    kind: str, target: str, options: str = "", flags: int = 0, *, source: str = "", needed: bool
) -> Step:
    """The step that mounts a file system.

    Args:
        kind: As in /proc/filesystems.
        target: Where.
        options: The file system's own.
        flags: MS_*.
        source: What; the kind's name by default.
        needed: Whether the VM ends when it fails.
    """
    args = ((source or kind).encode(), target.encode(), kind.encode(), flags, options.encode())
    return Step(f"mount {target}" if needed else "", SYS_MOUNT, args)


def switch_root(path: str) -> list[Step]:
    """The steps that make `path`, a mount point, the root with all that is mounted below."""
    return [
        Step(f"enter {path}", SYS_CHDIR, (path.encode(),)),
        Step(f"move {path}", SYS_MOUNT, (b".", b"/", 0, MS_MOVE, 0)),
        Step("change the root", SYS_CHROOT, (b".",)),
        Step("enter the root", SYS_CHDIR, (b"/",)),
    ]


def execute(command: Sequence[str], environment: Sequence[str]) -> Step:
    """The step that becomes another program."""
    words = [word.encode("utf-8", "surrogateescape") for word in command]
    return Step(
        f"run {command[0]}", SYS_EXECVE, (words[0], words, [word.encode() for word in environment])
    )


def make_elf(steps: Sequence[Step]) -> bytes:
    """Make the program, for x86-64.

    A step that fails says its name on the console and ends the program with the errno, with
    which the kernel then panics: "Attempted to kill init! exitcode=0x00000200" is ENOENT.
    """
    data = _Data()
    fail = _fail_routine()
    code = bytearray(fail)
    for step in steps:
        code += _call(step.number, [data.pointer(arg) for arg in step.args])
        if step.name:
            message = f"{FAILURE}{step.name}\n".encode()
            to_fail = _MOVES[1] + _quad(data.pointer(message)) + _MOVES[2] + _quad(len(message))
            to_fail += b"\xe9"  # jmp
            skip = len(to_fail) + 4
            code += _TEST_RAX_JNS + bytes([skip])
            code += to_fail + struct.pack("<i", -(len(code) + skip))
    return _wrap(bytes(data.content), bytes(code), entry=len(fail))


def _quad(value: int) -> bytes:
    return struct.pack("<Q", value)


def _call(number: int, args: Sequence[int]) -> bytes:
    moves = b"".join(move + _quad(arg) for move, arg in zip(_MOVES, args, strict=False))
    return moves + _MOV_EAX + struct.pack("<I", number) + _SYSCALL


def _fail_routine() -> bytes:
    """Write the message that rsi and rdx tell of; exit with what rax has."""
    return b"".join(
        [
            b"\xf7\xd8\x41\x89\xc4",  # neg eax; mov r12d, eax
            _MOVES[0] + _quad(1) + _MOV_EAX + struct.pack("<I", SYS_WRITE) + _SYSCALL,
            b"\x44\x89\xe7",  # mov edi, r12d
            _MOV_EAX + struct.pack("<I", SYS_EXIT_GROUP) + _SYSCALL,
        ]
    )


class _Data:
    """The bytes that the arguments point to; they lie before the code, so addresses are known."""

    def __init__(self) -> None:
        self.content = bytearray()

    def pointer(self, arg: int | bytes | Sequence[bytes]) -> int:
        if isinstance(arg, int):
            return arg
        if isinstance(arg, bytes):
            return self._add(arg + b"\0")
        pointers = [self.pointer(item) for item in arg]
        return self._add(b"".join(map(_quad, [*pointers, 0])))

    def _add(self, item: bytes) -> int:
        address = _BASE + _HEADERS_SIZE + len(self.content)
        self.content += item
        return address


def _wrap(data: bytes, code: bytes, entry: int) -> bytes:
    """One segment, readable and executable. Source: elf(5)."""
    size = _HEADERS_SIZE + len(data) + len(code)
    start = _BASE + _HEADERS_SIZE + len(data) + entry
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096)
    return identity + header + segment + data + code
