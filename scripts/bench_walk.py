# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench about the walk by BPF. They need root and 5 GiB of free memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import bench_touched
from bench_whole import sparse_terabyte
from measure import (
    GIB,
    PAGE,
    PHYSVIEW,
    SHUFFLED,
    TARGET,
    c_peer,
    extents_reader,
    paired,
    peak_kib,
    readloop,
    report,
    start_process,
    timed,
)

SIZE = 4 * GIB
NR_PROCESSES = 300

# Starts processes that wait, each with a page of its own. They end with this one.
MANY = """
import ctypes, mmap, os, signal, sys
children = []
memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for _ in range(int(sys.argv[1])):
    children.append(os.fork())
    if not children[-1]:
        memory[0] = 1
        signal.pause()
print(children[-1], ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
try:
    input()
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
"""

# Reads the extents of a range by BPF, in the batches that the library makes.
PEAK = """
import sys
from physview.memory.extents import ExtentReader
from physview.sources.procfs import ProcDir
pid, start, size = map(int, sys.argv[1:])
reader = ExtentReader(ProcDir(pid), source="bpf")
assert sum(nr for _, nr in reader.iter_batches(start, start + size, nr_threads=1))
"""


@contextlib.contextmanager
def target(code: str = TARGET) -> Iterator[tuple[int, int]]:
    """A process with 4 GiB of small pages: its pid, and where they begin."""
    child, line = start_process(code, str(SIZE), "write")
    try:
        yield child.pid, int(line)
    finally:
        child.kill()
        child.communicate()


def reader(pid: int) -> contextlib.AbstractContextManager[Callable[..., Callable[[], float]]]:
    """Make functions that read extents by BPF, through the Python API."""
    return extents_reader(pid, "bpf", "iter_extents")


def bench_extents(nr: int, name: str, pid: int, start: int) -> bool:
    kept = True
    for nr_threads, limit in ((1, 0.25), (2, 0.3)):
        with (
            reader(pid) as make,
            readloop(pid, start, SIZE, nr_threads) as peer,
        ):
            ratio, detail = paired(make(start, SIZE, nr_threads), peer, nr)
        threads = "one thread" if nr_threads == 1 else f"{nr_threads} threads"
        kept &= report(f"4 GiB, {name}: extents / C loop, {threads}", ratio, limit, detail)
    return kept


def bench_memory(pid: int, start: int) -> bool:
    """The memory must not grow with the range: 1 GiB and 4 GiB, every page its own extent."""
    command = [sys.executable, "-I", "-c", PEAK, str(pid), str(start)]
    one, four = (peak_kib(*command, str(size)) for size in (GIB, SIZE))
    what = "4 GiB, scattered: peak memory / that of 1 GiB"
    return report(what, four / one, 1.1, f"{four} and {one} KiB")


def bench_translate(nr: int, pid: int, start: int) -> bool:
    import numpy as np

    import physview

    vaddrs = np.arange(start, start + GIB, PAGE, dtype=np.uint64)
    with readloop(pid, start, GIB) as peer, physview.Process(pid, source="bpf") as process:

        def ours() -> float:
            begin = time.perf_counter()
            process.translate_array(vaddrs)
            return time.perf_counter() - begin

        assert process.translate_array(vaddrs).known.all()
        ratio, detail = paired(ours, peer, nr)
    return report("1 GiB: translate_array / C loop", ratio, 0.5, detail)


def bench_compare(nr: int, pid: int, start: int) -> bool:
    from physview.analysis.compare import Comparer
    from physview.sources.procfs import ProcDir

    with (
        ProcDir(pid) as proc,
        Comparer(proc, source="bpf") as comparer,
        readloop(pid, start, SIZE) as peer,
    ):

        def ours() -> float:
            begin = time.perf_counter()
            assert comparer.compare().nr_unexplained == 0
            return time.perf_counter() - begin

        ratio, detail = paired(ours, peer, nr)
    return report("4 GiB: compare / C loop", ratio, 1.5, detail)


def bench_sparse(nr: int) -> bool:
    with sparse_terabyte() as (pid, start, size, bare), reader(pid) as make:
        ratio, detail = paired(make(start, size, 1), bare, nr)
    return report("1 TiB, 1,000 pages: extents / a bare PAGEMAP_SCAN", ratio, 1, detail)


def bench_owners(nr: int) -> bool:
    """The owners of one frame that one of 300 processes maps."""
    from physview.frames.owners import find_owners

    child, line = start_process(MANY, str(NR_PROCESSES))
    pid, vaddr = map(int, line.split())
    pfn = frame_of(pid, vaddr)

    def ours() -> float:
        begin = time.perf_counter()
        (owner,) = find_owners([(pfn, pfn + 1)]).owners
        assert owner.pid == pid
        return time.perf_counter() - begin

    try:
        with c_peer("readall") as peer:
            ratio, detail = paired(ours, peer, nr)
    finally:
        child.communicate("\n")
    return report("owners of a frame, 300 processes / every pagemap", ratio, 1, detail)


def frame_of(pid: int, vaddr: int) -> int:
    """The frame of a page that is present."""
    import physview

    with physview.Process(pid) as process:
        pfn = process.translate(vaddr).pfn
    assert pfn is not None
    return pfn


def bench_start(nr: int) -> bool:
    walk = timed(PHYSVIEW, "walk", "self", "0x0", "--source", "bpf", code=1)
    ratio, detail = paired(walk, timed(sys.executable, "-I", "-c", "pass"), nr)
    return report("start-up: physview walk self ADDR / python3 -I -c pass", ratio, 5, detail)


def run(nr: int) -> bool:
    """Run all of them; return whether all limits are kept."""
    kept = []
    with target() as (pid, start):
        kept.append(bench_extents(nr, "dense", pid, start))
        kept.append(bench_translate(nr, pid, start))
        kept.append(bench_compare(max(3, nr // 3), pid, start))
    with target(SHUFFLED) as (pid, start):
        kept.append(bench_extents(nr, "scattered", pid, start))
        kept.append(bench_memory(pid, start))
    kept += [bench_sparse(nr), bench_owners(max(3, nr // 3)), bench_start(nr)]
    kept.append(bench_touched.run(max(3, nr // 3)))
    return all(kept)
