# SPDX-License-Identifier: GPL-2.0-or-later
"""Names and numbers in the kernel that differ from processor to processor."""

from __future__ import annotations

import os
from typing import NamedTuple


class Processor(NamedTuple):
    """What the tests look for in stacks and in system calls.

    Args:
        entry: What precedes a system call's name in its function's name.
        dispatchers: The function that calls the system call's function, or, if the compiler has
            inlined it, the next.
        brk, execve, exit: Numbers of system calls. Source: asm/unistd.h
        address_bits: How many bits of a page table's entry, from bit 0, have a physical address.
        write_bit, writes_if: A bit of a page table's entry, and its value if the page is writable.
        copy: What precedes "copy_to_user" in the name of the function that copies.
        repeats: How often one event of a breakpoint may come once more. arm64 steps over it with
            interrupts enabled: one at the wrong moment repeats the event.
    """

    entry: str
    dispatchers: tuple[str, ...]
    brk: int
    execve: int
    exit: int
    address_bits: int
    write_bit: int
    writes_if: int
    copy: str
    repeats: int

    def is_system_call(self, functions: list[str], call: str) -> bool:
        """Whether these two functions of a stack are those of a system call."""
        function, caller = functions
        return function == self.entry + call and caller in self.dispatchers


PROCESSORS = {
    "x86_64": Processor("__x64_sys_", ("do_syscall_64",), 12, 59, 60, 52, 1, 1, "_", 0),
    "aarch64": Processor(
        "__arm64_sys_", ("invoke_syscall", "do_el0_svc"), 214, 221, 93, 48, 7, 0, "__arch_", 2
    ),
}
PROCESSOR = PROCESSORS[os.uname().machine]


def is_writable(entry: int) -> bool:
    """Whether a page table's entry lets its process write. arm64 has a bit that forbids it."""
    return entry >> PROCESSOR.write_bit & 1 == PROCESSOR.writes_if
