# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench --peers about `maps`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench_peers import Row
from measure import PHYSVIEW, c_program, start_process

# Processes that only wait. They end with the process that made them.
MANY_PROCESSES = """
import ctypes, os, signal, sys
for _ in range(int(sys.argv[1])):
    if not os.fork():
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pause()
print(os.getpid(), flush=True)
signal.pause()
"""

# Mappings of two pages, of which one is touched. Neighbours differ in their permissions, so the
# kernel does not merge them.
MANY_MAPPINGS = """
import ctypes, mmap, os, signal, sys
nr, page = int(sys.argv[1]), mmap.PAGESIZE
libc = ctypes.CDLL(None)
region = mmap.mmap(-1, 2 * nr * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(region))
for at in range(nr):
    region[2 * at * page] = 1
    if at % 2:
        place = ctypes.c_void_p(start + 2 * at * page)
        libc.mprotect(place, ctypes.c_size_t(2 * page), mmap.PROT_READ)
print(os.getpid(), flush=True)
signal.pause()
"""


@contextlib.contextmanager
def process(code: str, nr: int) -> Iterator[str]:
    """Run a program of Python with a number as its argument; yields the first line it prints."""
    started, first = start_process(code, str(nr))
    try:
        yield first.strip("\n")
    finally:
        started.kill()
        started.wait()


def rollup() -> Iterator[Row]:
    """A line per process, for 300 and for 3,000 processes."""
    for nr in (300, 3000):
        with process(MANY_PROCESSES, nr), c_program("readfiles") as floor:
            ours = (PHYSVIEW, "maps", "--all", "--rollup")
            what = f"maps --all --rollup, {nr:,} processes"
            yield Row(what, 1, ours, ("smem",), (floor, "smaps_rollup"))


def many_mappings() -> Iterator[Row]:
    """A process with 60,000 mappings: from its pages, and from smaps as the peer does."""
    with process(MANY_MAPPINGS, 60_000) as pid, c_program("readfiles") as floor:
        peer = ("pmap", "-X", pid)
        ours = (PHYSVIEW, "maps", pid)
        yield Row("maps, 60,000 mappings", 1, ours, peer, (floor, "maps", pid))
        smaps = (*ours, "-o", "start,perm,size,rss,pss,swap,referenced,anon,locked,name")
        yield Row("maps -o …,pss, 60,000 mappings", 1, smaps, peer, (floor, "smaps", pid))
        both = (*ours, "-o", "+pss,swappss")
        yield Row("maps -o +pss, 60,000 mappings", 1, both, peer, (floor, "smaps", pid))
