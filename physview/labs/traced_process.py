# SPDX-License-Identifier: GPL-2.0-or-later
"""A child process that makes system calls on command, while a lab traces it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from physview.labs import child_process
from physview.model import PAGE_SIZE

if TYPE_CHECKING:
    from physview.tracing import Event

FIONREAD = 0x541B  # include/uapi/asm-generic/ioctls.h
PIPE_TEXT = b"1234567"
NR_PIPES, NR_SOCKETS, NR_FULL_PIPES = 24, 40, 60
NR_TOUCHED = 50
"""The number of new pages to which the job `pages` writes."""

Answer = dict[str, Any]


class TracedProcess:
    """A waiting child process.

    Attributes:
        pid: The process.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def do(self, job: str) -> Answer:
        """Let the process do one of the JOBS, and return what it says about it.

        Raises:
            PhysviewError: The process ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{job}\n".encode())
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise child_process.failed(self._process)
        answer: Answer = json.loads(line)
        return answer

    def trace(self, event: str, job: str) -> tuple[list[Event], Answer]:
        """Trace an event in the process while it does a job.

        Returns:
            The events in the order of time, and what the process says about the job.

        Raises:
            PhysviewError: The event cannot be traced here, or the process ended.
        """
        from physview.tracing import Tracer

        with Tracer(event, pid=self.pid) as tracer:
            answer = self.do(job)
            return tracer.finish(), answer


@contextmanager
def start() -> Iterator[TracedProcess]:
    """Start a process that does JOBS. It ends with the `with` block.

    Raises:
        PhysviewError: The process failed at its start.
    """
    with child_process.start("physview.labs.traced_process") as (process, _):
        yield TracedProcess(process)


_kept: list[object] = []
"""What the jobs made: it stays until the process ends, so that the lab can look at it."""


def _copies() -> Answer:
    """Make system calls that copy to and from user memory. Return the addresses of the memory."""
    from physview.sources.kmod import DEVICE, IOCTL_TRANSLATE

    libc = ctypes.CDLL(None, use_errno=True)
    query, name, moment, nr_bytes = _arguments
    query[:] = [ctypes.addressof(_buffer), 0]
    reader, writer = os.pipe()
    os.write(writer, PIPE_TEXT)
    device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    libc.ioctl(device, ctypes.c_ulong(IOCTL_TRANSLATE), ctypes.byref(query))
    libc.uname(name)
    libc.nanosleep(ctypes.byref(moment), None)
    libc.ioctl(reader, ctypes.c_ulong(FIONREAD), ctypes.byref(nr_bytes))
    for fd in (device, reader, writer):
        os.close(fd)
    return {
        "query": ctypes.addressof(query),
        "name": ctypes.addressof(name),
        "moment": ctypes.addressof(moment),
        "nr_bytes": ctypes.addressof(nr_bytes),
    }


def _objects() -> Answer:
    """Make the kernel allocate objects of many sizes, which stay."""
    with suppress(OSError):  # a limit on open files: fewer objects
        for _ in range(NR_PIPES):
            _kept.append(os.pipe())
            _kept.append(os.listdir("/proc/self/task"))
            _kept.append(open("/proc/self/maps", "rb", buffering=0).read(PAGE_SIZE))  # noqa: SIM115
            _kept.append(os.eventfd(0))
            _kept.append(os.memfd_create("physview"))
    return {"buffer": ctypes.addressof(_buffer)}


def _pages() -> Answer:
    """Write to new pages, open sockets, which need new slabs, and fill pipes."""
    size = NR_TOUCHED * PAGE_SIZE
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages refuses
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for offset in range(0, size, PAGE_SIZE):
        memory[offset] = 1
    _kept.append(memory)
    with suppress(OSError):
        _kept.extend(socket.socketpair() for _ in range(NR_SOCKETS))
        for _ in range(NR_FULL_PIPES):
            reader, writer = os.pipe()
            os.write(writer, bytes(PAGE_SIZE))
            _kept.append((reader, writer))
    return {"start": start}


_buffer = ctypes.create_string_buffer(64)
# The memory that _copies() passes: an argument of TRANSLATE, room for the answer of uname(), a
# duration of 1000 ns, and an int. It has the same addresses whenever the job is done.
_arguments = (
    (ctypes.c_uint64 * 2)(),
    ctypes.create_string_buffer(1024),
    (ctypes.c_long * 2)(0, 1000),
    ctypes.c_int(),
)
JOBS: dict[str, Callable[[], Answer]] = {"copies": _copies, "objects": _objects, "pages": _pages}


def main() -> None:
    """Do the jobs that stdin names, one per line, until stdin is closed."""
    with suppress(BrokenPipeError):  # the lab has already ended
        os.write(1, b"ready\n")
        while line := sys.stdin.buffer.readline():
            answer = JOBS[line.decode("ascii").removesuffix("\n")]()
            os.write(1, json.dumps(answer).encode() + b"\n")
