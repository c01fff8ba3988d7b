# SPDX-License-Identifier: GPL-2.0-or-later
"""The init program of the VM: a static ELF file that makes a list of system calls, one by one.

The kernel starts it from the initramfs. Until it has mounted the host's root, the guest has no
shell, no insmod and no Python. All its work is a fixed sequence of system calls with constant
arguments, without loops. Python therefore writes the few machine instructions itself, from a list
of `Step`s. The alternatives need more on the user's machine: a static busybox is one more package,
and a program in C needs a compiler there, or a committed binary, which nobody can review.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from physview.runtime import syscalls

# arch/x86/entry/syscalls/syscall_64.tbl
SYS_WRITE, SYS_OPEN, SYS_CLOSE, SYS_EXECVE, SYS_CHDIR = 1, 2, 3, 59, 80
SYS_MKDIR, SYS_CHROOT, SYS_MOUNT, SYS_EXIT_GROUP = 83, 161, 165, 231
SYS_FINIT_MODULE = syscalls.NUMBERS["x86_64"]["finit_module"]

# include/uapi/linux/mount.h
MS_RDONLY, MS_NOATIME, MS_MOVE = 0x1, 0x400, 0x2000

FAILURE = "physview-init: cannot "
"""The beginning of the line on the console when a step fails. The step's name follows."""

# elf(5): the address of the file in memory; the sizes of the ELF header and of a program header.
_LOAD_ADDRESS = 0x400000
_ELF_HEADER_SIZE, _PROGRAM_HEADER_SIZE = 64, 56
_HEADERS_SIZE = _ELF_HEADER_SIZE + _PROGRAM_HEADER_SIZE
_ET_EXEC, _EM_X86_64, _PT_LOAD, _PF_R_X = 2, 62, 1, 4 | 1

# The instructions of x86-64 that the program uses, by their assembly. A constant operand follows
# the instruction: 64 bits after "mov rdi", 32 bits after "mov eax" and "jmp", 8 bits after "jns".
_MOV_RDI, _MOV_RSI, _MOV_RDX = b"\x48\xbf", b"\x48\xbe", b"\x48\xba"
_MOV_R10, _MOV_R8, _MOV_R9 = b"\x49\xba", b"\x49\xb8", b"\x49\xb9"
_MOV_EAX = b"\xb8"
_SYSCALL = b"\x0f\x05"
_TEST_RAX_RAX, _JNS, _JMP = b"\x48\x85\xc0", b"\x79", b"\xe9"
_NEG_EAX, _MOV_R12D_EAX, _MOV_EDI_R12D = b"\xf7\xd8", b"\x41\x89\xc4", b"\x44\x89\xe7"
# The registers of a system call's arguments, in order; its number is in eax. See syscall(2).
_MOV_ARGUMENTS = (_MOV_RDI, _MOV_RSI, _MOV_RDX, _MOV_R10, _MOV_R8, _MOV_R9)


class Step(NamedTuple):
    """One system call.

    Args:
        name: The step's name in the error message "cannot NAME"; "" to ignore a failure.
        number: The number of the system call.
        args: The arguments. An int is passed as it is; bytes as a pointer to a 0-terminated copy; a
            list of bytes as a pointer to a NULL-terminated array of such pointers (for execve).
    """

    name: str
    number: int
    args: tuple[int | bytes | Sequence[bytes], ...]


def load_module(path: str) -> list[Step]:
    """Return the steps that load a kernel module."""
    # Descriptors 0 to 2 are the console, so the next open file is always 3.
    return [
        Step(f"open {path}", SYS_OPEN, (path.encode(), 0)),
        Step(f"load {path}", SYS_FINIT_MODULE, (3, b"", 0)),
        Step("", SYS_CLOSE, (3,)),
    ]


def make_directory(path: str) -> Step:
    """Return the step that makes a directory. A failure is ignored: the directory may exist."""
    return Step("", SYS_MKDIR, (path.encode(), 0o755))


def mount(
    kind: str, target: str, options: str = "", flags: int = 0, *, source: str = "", needed: bool
) -> Step:
    """Return the step that mounts a file system.

    Args:
        kind: The file system's name in /proc/filesystems.
        target: The mount point.
        options: Mount options of the file system.
        flags: Mount flags, MS_*.
        source: The source of the mount; the kind's name by default.
        needed: Whether a failure ends the VM.
    """
    args = ((source or kind).encode(), target.encode(), kind.encode(), flags, options.encode())
    return Step(f"mount {target}" if needed else "", SYS_MOUNT, args)


def switch_root(path: str) -> list[Step]:
    """Return the steps that make `path`, a mount point, the new root, with the mounts below it."""
    return [
        Step(f"enter {path}", SYS_CHDIR, (path.encode(),)),
        Step(f"move {path}", SYS_MOUNT, (b".", b"/", 0, MS_MOVE, 0)),
        Step("change the root", SYS_CHROOT, (b".",)),
        Step("enter the root", SYS_CHDIR, (b"/",)),
    ]


def execute(command: Sequence[str], environment: Sequence[str]) -> Step:
    """Return the step that replaces init by another program: execve()."""
    words = [word.encode("utf-8", "surrogateescape") for word in command]
    return Step(
        f"run {command[0]}", SYS_EXECVE, (words[0], words, [word.encode() for word in environment])
    )


def make_elf(steps: Sequence[Step]) -> bytes:
    """Make the init program for x86-64.

    If a step fails, the program prints the step's name on the console and exits with the errno.
    The kernel then panics: "Attempted to kill init! exitcode=0x00000200" is errno 2, ENOENT.
    """
    data = _Data()
    fail = _fail_routine()
    code = bytearray(fail)
    for step in steps:
        code += _call(step.number, [data.pointer(arg) for arg in step.args])
        if step.name:
            message = f"{FAILURE}{step.name}\n".encode()
            set_message = _MOV_RSI + _quad(data.pointer(message)) + _MOV_RDX + _quad(len(message))
            jump_size = len(_JMP) + 4
            code += (
                _TEST_RAX_RAX + _JNS + bytes([len(set_message) + jump_size])
            )  # not negative: skip
            code += set_message
            code += _JMP + struct.pack("<i", -(len(code) + jump_size))  # to the fail routine, at 0
    return _elf_file(bytes(data.content), bytes(code), entry=len(fail))


def _quad(value: int) -> bytes:
    return struct.pack("<Q", value)


def _call(number: int, args: Sequence[int]) -> bytes:
    moves = b"".join(move + _quad(arg) for move, arg in zip(_MOV_ARGUMENTS, args, strict=False))
    return moves + _MOV_EAX + struct.pack("<I", number) + _SYSCALL


def _fail_routine() -> bytes:
    """Return the code that writes a message and exits. rsi and rdx hold the message, rax -errno."""
    return b"".join(
        [
            *(_NEG_EAX, _MOV_R12D_EAX),  # write() overwrites rax, so keep the errno in r12
            _call(SYS_WRITE, [1]),
            _MOV_EDI_R12D,
            _call(SYS_EXIT_GROUP, []),
        ]
    )


class _Data:
    """The data that the arguments point to. It precedes the code, so its addresses are known."""

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
        address = _LOAD_ADDRESS + _HEADERS_SIZE + len(self.content)
        self.content += item
        return address


def _elf_file(data: bytes, code: bytes, entry: int) -> bytes:
    """Return an ELF file with one segment, which is readable and executable. Source: elf(5)."""
    size = _HEADERS_SIZE + len(data) + len(code)
    start = _LOAD_ADDRESS + _HEADERS_SIZE + len(data) + entry
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little-endian, version 1
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        *(_ET_EXEC, _EM_X86_64, 1, start, _ELF_HEADER_SIZE, 0, 0),
        *(_ELF_HEADER_SIZE, _PROGRAM_HEADER_SIZE, 1, 0, 0, 0),
    )
    addresses = (_LOAD_ADDRESS, _LOAD_ADDRESS)
    segment = struct.pack("<IIQQQQQQ", _PT_LOAD, _PF_R_X, 0, *addresses, size, size, 4096)
    return identity + header + segment + data + code
