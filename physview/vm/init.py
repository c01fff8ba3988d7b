# SPDX-License-Identifier: GPL-2.0-or-later
"""The init program of the VM: a static ELF file that makes a list of system calls, one by one.

The kernel starts it from the initramfs. Until it has mounted the host's root, the guest has no
shell, no insmod and no Python. All its work is a fixed sequence of system calls with constant
arguments, without loops. Python therefore writes the few machine instructions itself, from a list
of `Step`s. The alternatives need more on the user's machine: a static busybox is one more package,
and a program in C needs a compiler there, or a committed binary, which nobody can review.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from physview.vm.machine_code import PROCESSORS

AT_FDCWD = -100  # include/uapi/linux/fcntl.h

# include/uapi/linux/mount.h
MS_RDONLY, MS_NOATIME, MS_MOVE = 0x1, 0x400, 0x2000

FAILURE = "physview-init: cannot "
"""The beginning of the line on the console when a step fails. The step's name follows."""

# elf(5): the address of the file in memory; the sizes of the ELF header and of a program header.
_LOAD_ADDRESS = 0x400000
_ELF_HEADER_SIZE, _PROGRAM_HEADER_SIZE = 64, 56
_HEADERS_SIZE = _ELF_HEADER_SIZE + _PROGRAM_HEADER_SIZE
_ET_EXEC, _PT_LOAD, _PF_R_X = 2, 1, 4 | 1
# The largest page: the address in memory is a multiple of it.
_ALIGNMENT = 1 << 16


class Step(NamedTuple):
    """One system call.

    Args:
        name: The step's name in the error message "cannot NAME"; "" to ignore a failure.
        call: The name of the system call.
        args: The arguments. An int is passed as it is; bytes as a pointer to a 0-terminated copy; a
            list of bytes as a pointer to a NULL-terminated array of such pointers (for execve).
    """

    name: str
    call: str
    args: tuple[int | bytes | Sequence[bytes], ...]


def load_module(path: str) -> list[Step]:
    """Return the steps that load a kernel module."""
    # Descriptors 0 to 2 are the console, so the next open file is always 3.
    return [
        Step(f"open {path}", "openat", (AT_FDCWD, path.encode(), 0)),
        Step(f"load {path}", "finit_module", (3, b"", 0)),
        Step("", "close", (3,)),
    ]


def make_directory(path: str) -> Step:
    """Return the step that makes a directory. A failure is ignored: the directory may exist."""
    return Step("", "mkdirat", (AT_FDCWD, path.encode(), 0o755))


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
    return Step(f"mount {target}" if needed else "", "mount", args)


def switch_root(path: str) -> list[Step]:
    """Return the steps that make `path`, a mount point, the new root, with the mounts below it."""
    return [
        Step(f"enter {path}", "chdir", (path.encode(),)),
        Step(f"move {path}", "mount", (b".", b"/", 0, MS_MOVE, 0)),
        Step("change the root", "chroot", (b".",)),
        Step("enter the root", "chdir", (b"/",)),
    ]


def execute(command: Sequence[str], environment: Sequence[str]) -> Step:
    """Return the step that replaces init by another program: execve()."""
    words = [word.encode("utf-8", "surrogateescape") for word in command]
    return Step(
        f"run {command[0]}", "execve", (words[0], words, [word.encode() for word in environment])
    )


def make_elf(steps: Sequence[Step], machine: str = "") -> bytes:
    """Make the init program.

    If a step fails, the program prints the step's name on the console and exits with the errno.
    The kernel then panics: "Attempted to kill init! exitcode=0x00000200" is errno 2, ENOENT.

    Args:
        steps: What the program does.
        machine: The architecture, one of machine_code.PROCESSORS; by default this machine's.
    """
    processor = PROCESSORS[machine or os.uname().machine]
    data = _Data()
    fail = processor.fail_routine()
    code = bytearray(fail)
    for step in steps:
        code += processor.call(step.call, [data.pointer(arg) for arg in step.args])
        if step.name:
            message = f"{FAILURE}{step.name}\n".encode()
            code += processor.check(data.pointer(message), len(message), len(code))
    entry = len(data.content) + len(fail)
    return _elf_file(processor.elf_machine, bytes(data.content + code), entry)


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
        return self._add(struct.pack(f"<{len(pointers) + 1}Q", *pointers, 0))

    def _add(self, item: bytes) -> int:
        address = _LOAD_ADDRESS + _HEADERS_SIZE + len(self.content)
        self.content += item
        # The code follows, and instructions of arm64 are aligned.
        self.content += b"\0" * (-len(self.content) % 8)
        return address


def _elf_file(machine: int, content: bytes, entry: int) -> bytes:
    """Return an ELF file with one segment, which is readable and executable. Source: elf(5).

    Args:
        machine: The architecture, EM_*.
        content: Data and code.
        entry: Where the program begins in it.
    """
    size = _HEADERS_SIZE + len(content)
    start = _LOAD_ADDRESS + _HEADERS_SIZE + entry
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")  # 64 bits, little-endian, version 1
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        *(_ET_EXEC, machine, 1, start, _ELF_HEADER_SIZE, 0, 0),
        *(_ELF_HEADER_SIZE, _PROGRAM_HEADER_SIZE, 1, 0, 0, 0),
    )
    addresses = (_LOAD_ADDRESS, _LOAD_ADDRESS)
    fields = (_PT_LOAD, _PF_R_X, 0, *addresses, size, size, _ALIGNMENT)
    return identity + header + struct.pack("<IIQQQQQQ", *fields) + content
