# SPDX-License-Identifier: GPL-2.0-or-later
"""A new process with memview's addresses, which waits to be looked at.

Its end is that of its stdin: it cannot outlive the lab, however that ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from physview.errors import PhysviewError
from physview.model import Probe
from physview.runtime import child_python

ADDR_NO_RANDOMIZE = 0x0040000  # include/uapi/linux/personality.h
GET_PERSONALITY = 0xFFFFFFFF
MALLOC = "malloc"
"""The label of a function of the C library, which every process maps."""

_libc = ctypes.CDLL(None)


class Child(NamedTuple):
    """A process that waits.

    Args:
        pid: The process.
        probes: memview's addresses in it, and that of malloc().
        has_aslr: Whether the kernel was to place its mappings at random.
    """

    pid: int
    probes: list[Probe]
    has_aslr: bool

    def of(self, *labels: str) -> list[int]:
        """The addresses of labels."""
        by_label = dict(self.probes)
        return [by_label[label] for label in labels]


@contextmanager
def started(*, aslr: bool = True) -> Iterator[Child]:
    """Start a new process, and end it at the end.

    Args:
        aslr: Whether its addresses are random; without, for it alone.

    Raises:
        PhysviewError: It did not come up.
    """
    # Ctrl-C while a process is being made would leave one that nobody knows.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        # What differs between two of them is the kernel's doing: without ASLR all addresses are the
        # same, also with random hashes, as 40 runs and those of Python 3.10 to 3.13 showed.
        process = child_python.start(
            "physview.labs.child",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=None if aslr else _turn_aslr_off,
            start_new_session=True,  # Ctrl-C is for us, who end it then
        )
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    assert process.stdin
    assert process.stdout
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            raise PhysviewError("the lab's process failed", f"it ended with {code}", "run it again")
        has_aslr, probes = json.loads(line)
        yield Child(process.pid, [Probe(*probe) for probe in probes], has_aslr)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _turn_aslr_off() -> None:
    """For this process and what it becomes. Where that is forbidden the child will tell."""
    _libc.personality(_libc.personality(GET_PERSONALITY) | ADDR_NO_RANDOMIZE)


def main() -> None:
    """Take the addresses, tell them, and keep them until stdin ends."""
    from physview.sources.probes import visit_probes

    def wait(probes: list[Probe]) -> None:
        # Of the library itself: an executable may have a stub of that name, which hides it.
        malloc = ctypes.cast(ctypes.CDLL("libc.so.6").malloc, ctypes.c_void_p).value or 0
        ctypes.string_at(malloc, 1)  # it has a frame
        has_aslr = not _libc.personality(GET_PERSONALITY) & ADDR_NO_RANDOMIZE
        line = json.dumps([has_aslr, [*probes, (MALLOC, malloc)]]) + "\n"
        with suppress(BrokenPipeError):  # the lab has ended before
            os.write(1, line.encode())
            sys.stdin.read()

    visit_probes(wait)
