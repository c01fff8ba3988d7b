# SPDX-License-Identifier: GPL-2.0-or-later
"""What differs between processors for tracing: registers, breakpoints, and where a caller is found.

Source: arch/*/include/uapi/asm/perf_regs.h, arch/*/kernel/hw_breakpoint.c
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Processor(NamedTuple):
    """What breakpoints and stacks need to know of a processor.

    Args:
        registers: The bit number of each register, from perf_regs.h.
        arguments: The registers of a function's first arguments.
        perf_event_open: The number of the system call.
        length: The length of a breakpoint on code in bytes: that of a long on x86-64, and that of
            an instruction on arm64.
        per_thread: Whether the kernel sets breakpoints in its own code for one thread.
        link: The register with the return address where a function begins; "" if the stack has it.
            `with_caller()` needs it.
        wakes: Whether the kernel may wake physview at each sample. arm64 steps over the breakpoint
            with interrupts enabled. The wake-up is such an interrupt: it ends the step before the
            instruction has run, so the breakpoint is hit again, for thousands of samples of one
            call (Linux 6.12). There physview looks for samples by itself.
    """

    registers: Mapping[str, int]
    arguments: tuple[str, ...]
    perf_event_open: int
    length: int
    per_thread: bool
    link: str
    wakes: bool


PROCESSORS = {
    "x86_64": Processor(
        {"ax": 0, "cx": 2, "dx": 3, "si": 4, "di": 5}, ("di", "si", "dx"), 298, 8, True, "", True
    ),
    "aarch64": Processor(
        {"x0": 0, "x1": 1, "x2": 2, "lr": 30}, ("x0", "x1", "x2"), 241, 4, False, "lr", False
    ),
}
"""The processors that `trace` knows, by `os.uname().machine`."""


def with_caller(stack: tuple[int, ...], caller: int) -> tuple[int, ...]:
    """Return the stack of an event at the beginning of a function, with the function's caller.

    Where a register has the return address, the kernel's stack lacks the caller (Linux 6.12): the
    function has not yet written the register to the stack.

    Args:
        stack: The addresses, innermost first.
        caller: The value of `Processor.link`; 0 if there is none.

    >>> with_caller((1, 3), 2), with_caller((1, 2), 0), with_caller((), 2)
    ((1, 2, 3), (1, 2), ())
    """
    return (stack[0], caller, *stack[1:]) if stack and caller else stack
