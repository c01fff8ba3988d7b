# SPDX-License-Identifier: GPL-2.0-or-later
"""A child process that prints memview's addresses and then waits while a lab observes it.

The process ends when its stdin is closed. It therefore never outlives the lab, even if the lab is
killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from physview.labs import child_process
from physview.model import Probe

ADDR_NO_RANDOMIZE = 0x0040000  # include/uapi/linux/personality.h
GET_PERSONALITY = 0xFFFFFFFF
MALLOC = "malloc"
"""The label of malloc(), a function of the C library. Every process maps the C library."""

_libc = ctypes.CDLL(None)


class ProbeProcess(NamedTuple):
    """A waiting child process.

    Args:
        pid: The process.
        probes: memview's addresses in the process, and the address of malloc().
        has_aslr: Whether the kernel was asked to place the process's mappings at random addresses.
    """

    pid: int
    probes: list[Probe]
    has_aslr: bool

    def addresses(self, *labels: str) -> list[int]:
        """Return the virtual addresses of the probes with these labels."""
        by_label = dict(self.probes)
        return [by_label[label] for label in labels]


@contextmanager
def start(*, aslr: bool = True) -> Iterator[ProbeProcess]:
    """Start a process. It ends with the `with` block.

    Args:
        aslr: Whether the process's addresses are random. False turns ASLR off for this process
            only.

    Raises:
        PhysviewError: The process failed before it printed its addresses.
    """
    # Only the kernel makes the addresses differ between two such processes. Without ASLR all
    # addresses were equal in 40 repetitions and with Python 3.10 to 3.13, despite Python's random
    # hashes.
    preexec_fn = None if aslr else _turn_aslr_off
    with child_process.start("physview.labs.probe_process", preexec_fn) as (process, line):
        has_aslr, probes = json.loads(line)
        yield ProbeProcess(process.pid, [Probe(*probe) for probe in probes], has_aslr)


def _turn_aslr_off() -> None:
    """Turn ASLR off for this process; exec() keeps the setting.

    Where personality() is forbidden, ASLR stays on, and the child reports `has_aslr`.
    """
    _libc.personality(_libc.personality(GET_PERSONALITY) | ADDR_NO_RANDOMIZE)


def _c_library() -> ctypes.CDLL:
    """Return the C library, so that its malloc is the function itself.

    An executable may have a stub of the same name, which hides the function. So glibc is opened by
    its own name. musl has no such name on all machines, and its loader already is the library.
    """
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return _libc


def main() -> None:
    """Print the probes' addresses as JSON, and keep the probes in memory until stdin is closed."""
    from physview.sources.probes import visit_probes

    def wait(probes: list[Probe]) -> None:
        malloc = ctypes.cast(_c_library().malloc, ctypes.c_void_p).value or 0
        ctypes.string_at(malloc, 1)  # touch the page, so that it is resident
        has_aslr = not _libc.personality(GET_PERSONALITY) & ADDR_NO_RANDOMIZE
        line = json.dumps([has_aslr, [*probes, (MALLOC, malloc)]]) + "\n"
        with suppress(BrokenPipeError):  # the lab has already ended
            os.write(1, line.encode())
            sys.stdin.read()

    visit_probes(wait)
