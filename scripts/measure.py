# SPDX-License-Identifier: GPL-2.0-or-later
"""What all benchmarks use: pairs of measurements, peers, target processes, and rows to print."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
PAGE = os.sysconf("SC_PAGESIZE")
GIB = 1 << 30
PHYSVIEW = str(Path(sys.executable).with_name("physview"))

# Maps memory of small pages and makes all of them present. Writing gives each page a frame. Reading
# maps the zero page everywhere, which takes no memory. Prints the address, and waits.
TARGET = """
import ctypes, mmap, sys
size, write = int(sys.argv[1]), sys.argv[2] == "write"
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(15)  # MADV_NOHUGEPAGE
for offset in range(0, size, mmap.PAGESIZE):
    if write:
        memory[offset] = 1
    else:
        memory[offset]
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
input()
"""

# Touches pages in random order, so that no two are contiguous. Frees half of them when told to.
SHUFFLED = """
import ctypes, mmap, random, sys
size, page = int(sys.argv[1]), mmap.PAGESIZE
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in random.sample(range(0, size, page), size // page):
    memory[at] = 1
while True:
    print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
    input()
    for at in range(0, size, 2 * page):
        memory.madvise(mmap.MADV_DONTNEED, at, page)
"""


def report(what: str, ratio: float, limit: float, detail: str) -> bool:
    """Print one row, and return whether the limit is kept."""
    kept = ratio < limit
    mark = "ok  " if kept else "OVER"
    print(f"{mark}  {what:<58} {ratio:6.3f}  (to be under {limit:g})  {detail}", flush=True)
    return kept


def paired(ours: Callable[[], float], peer: Callable[[], float], nr: int) -> tuple[float, str]:
    """The median ratio of nr pairs, and a text with the times. The first pair is not counted."""
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(nr)]
    ratios = sorted(a / b for a, b in pairs)
    mine, theirs = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    return statistics.median(ratios), f"medians {mine:.2f} and {theirs:.2f} ms, ratios {spread}"


def timed(*command: str, code: int = 0) -> Callable[[], float]:
    """Make a function that runs a command, which must exit with `code`, and returns the seconds."""

    def run() -> float:
        start = time.perf_counter()
        assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == code
        return time.perf_counter() - start

    return run


def peak_kib(*command: str) -> int:
    """Peak memory of a command. A separate process starts it, so that it is the only child."""
    code = (
        "import os, sys\n"
        "pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ,"
        " file_actions=[(os.POSIX_SPAWN_OPEN, 1, '/dev/null', os.O_WRONLY, 0)])\n"
        "print(os.wait4(pid, 0)[2].ru_maxrss)"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)


def start_process(code: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that runs Python code; return it with the line that it prints when ready."""
    target = subprocess.Popen(
        [sys.executable, "-I", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert target.stdout
    return target, target.stdout.readline()


def go_on(target: subprocess.Popen[str]) -> str:
    """Have such a process do its next step, and return the line that it prints then."""
    assert target.stdin
    assert target.stdout
    target.stdin.write("\n")
    target.stdin.flush()
    return target.stdout.readline()


def start_target(size: int, how: str) -> tuple[subprocess.Popen[str], int]:
    """Start TARGET, and return it with the address of its memory."""
    target, line = start_process(TARGET, str(size), how)
    return target, int(line)


@contextlib.contextmanager
def extents_reader(
    pid: int, source: str, method: str
) -> Iterator[Callable[[int, int, int], Callable[[], float]]]:
    """Make functions that read the extents of a range, in some threads, and return the seconds.

    Args:
        pid: The process.
        source: As for `ExtentReader`.
        method: What is called: "iter_batches", of the core's, or "iter_extents", of the API.
    """
    from physview.memory.extents import ExtentReader
    from physview.sources.procfs import ProcDir

    with ProcDir(pid) as proc, ExtentReader(proc, source=source) as extents:
        iterate = getattr(extents, method)

        def make(start: int, size: int, nr_threads: int) -> Callable[[], float]:
            def read() -> float:
                begin = time.perf_counter()
                for _ in iterate(start, start + size, nr_threads=nr_threads):
                    pass
                return time.perf_counter() - begin

            return read

        yield make


@contextlib.contextmanager
def c_program(name: str) -> Iterator[str]:
    """Compile a C program of scripts/peers, and yield its path."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/{name}"
        source = HERE / "peers" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
        yield program


@contextlib.contextmanager
def c_peer(name: str, *arguments: str) -> Iterator[Callable[[], float]]:
    """Make a function that has a C program do its work once, and returns the seconds."""
    with c_program(name) as program:
        loop = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def run_once() -> float:
            return int(go_on(loop)) / 1e9

        yield run_once
        loop.communicate()


def readloop(
    pid: int, start: int, size: int, nr_threads: int = 1
) -> contextlib.AbstractContextManager[Callable[[], float]]:
    """As `c_peer()`, with the C program that reads a range of a pagemap."""
    numbers = map(str, (start // PAGE, size // PAGE, nr_threads))
    return c_peer("readloop", f"/proc/{pid}/pagemap", *numbers)
