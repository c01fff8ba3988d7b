# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and numbers in the kernel that differ from processor to processor."""

from __future__ import annotations

import os
from typing import NamedTuple


class Processor(NamedTuple):
    """What the tests look for in stacks and in system calls.

    Args:
        entry: What precedes a system call's name in its function's name.
        dispatcher: The function that calls the system call's function.
        brk, execve: Numbers of system calls. Source: asm/unistd.h
        int3: A function that handles breakpoints, so that none can be set in it.
        write_bit, writes_if: A bit of a page table's entry, and its value if the page is writable.
        copies_of_a_process: Whether functions that copy are traced for one process alone.
    """

    entry: str
    dispatcher: str
    brk: int
    execve: int
    int3: str
    write_bit: int
    writes_if: int
    copies_of_a_process: bool

    def callers(self, call: str) -> list[str]:
        """The two outermost functions of a system call that a stack tells apart."""
        return [f"{self.entry}{call}", self.dispatcher]


PROCESSORS = {
    "x86_64": Processor("__x64_sys_", "do_syscall_64", 12, 59, "exc_int3", 1, 1, True),
    "aarch64": Processor("__arm64_sys_", "invoke_syscall", 214, 221, "brk_handler", 7, 0, False),
}
PROCESSOR = PROCESSORS[os.uname().machine]


def is_writable(entry: int) -> bool:
    """Whether a page table's entry lets its process write. arm64 has a bit that forbids it."""
    return entry >> PROCESSOR.write_bit & 1 == PROCESSOR.writes_if
