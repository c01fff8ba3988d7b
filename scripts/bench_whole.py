# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole processes: extents, maps and pages compared with a plain C loop and the kernel's tools."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import (
    GIB,
    PHYSVIEW,
    SHUFFLED,
    extents_reader,
    go_on,
    paired,
    peak_kib,
    readloop,
    report,
    start_process,
    start_target,
    timed,
)

# Reserves 1 TiB, and touches 1,000 pages of it.
SPARSE = """
import ctypes, mmap, random
memory = mmap.mmap(-1, 1 << 40, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
memory.madvise(15)  # MADV_NOHUGEPAGE
for page in random.Random(1).sample(range((1 << 40) // mmap.PAGESIZE), 1000):
    memory[page * mmap.PAGESIZE] = 1
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
input()
"""


def reader(pid: int) -> contextlib.AbstractContextManager[Callable[..., Callable[[], float]]]:
    """Make functions that read extents of pagemap, as the core does."""
    return extents_reader(pid, "pagemap", "iter_batches")


def skip(what: str, why: str) -> None:
    print(f"skip  {what:<58} {why}", flush=True)


def bench_extents(nr: int, pid: int, start: int, size: int) -> bool:
    name = f"dense {size >> 30} GiB"
    with reader(pid) as make, readloop(pid, start, size) as peer:
        ratio, detail = paired(make(start, size, 1), peer, nr)
        kept = report(f"{name}: extents, one thread / C loop of preads", ratio, 1.15, detail)
        if len(os.sched_getaffinity(0)) < 2:
            skip(f"{name}: extents, two threads / the same", "one processor")
            return kept
        ratio, detail = paired(make(start, size, 2), peer, nr)
        return kept & report(f"{name}: extents, two threads / the same", ratio, 1 / 1.6, detail)


@contextlib.contextmanager
def sparse_terabyte() -> Iterator[tuple[int, int, int, Callable[[], float]]]:
    """A process with SPARSE: its pid, address and size, and a function that scans it barely."""
    from physview.sources.pagemap import PAGE_IS, scan

    target, line = start_process(SPARSE)
    start, size = int(line), 1 << 40
    with open(f"/proc/{target.pid}/pagemap", "rb") as pagemap:
        anyof = PAGE_IS["present"] | PAGE_IS["swapped"]

        def bare() -> float:
            """Scan the range. One call returns at most 512 regions, so this takes some calls."""
            begin, at = time.perf_counter(), start
            while at < start + size:
                at, _ = scan(pagemap.fileno(), at, start + size, anyof)
            return time.perf_counter() - begin

        yield target.pid, start, size, bare
    target.kill()
    target.communicate()


def bench_sparse(nr: int) -> bool:
    with (
        sparse_terabyte() as (pid, start, size, bare),
        reader(pid) as make,
        readloop(pid, start, size) as loop,
    ):
        ratio, detail = paired(make(start, size, 1), bare, nr)
        kept = report("1 TiB, 1,000 pages: extents / a bare PAGEMAP_SCAN", ratio, 2, detail)
        ratio, detail = paired(make(start, size, 1), loop, max(3, nr // 10))
        return kept & report("1 TiB, 1,000 pages: extents / reading it all", ratio, 1 / 50, detail)


def bench_page_types(nr: int, pid: int) -> bool:
    what = "pages --summary / page-types -p"
    if not shutil.which("page-types"):
        skip(what, "no page-types on PATH: see --help")
        return True
    ours = (PHYSVIEW, "pages", str(pid), "--summary")
    ratio, detail = paired(timed(*ours), timed("page-types", "-p", str(pid)), nr)
    kept = report(what, ratio, 1 / 4, detail)
    # A reader of flags cannot be faster than the kernel, which makes the flags frame by frame.
    peak = peak_kib(*ours)
    return kept & report("pages --summary: peak memory / 150 MB", peak / 150_000, 1, f"{peak} KiB")


def bench_thpmaps(nr: int, pid: int) -> bool:
    what = "maps --rollup / thpmaps --rollup --cont 64K"
    thpmaps = shutil.which("thpmaps")
    if not thpmaps:
        skip(what, "no thpmaps on PATH: see --help")
        return True
    ours = (PHYSVIEW, "maps", str(pid), "--rollup")
    peer = (sys.executable, "-I", thpmaps, "--pid", str(pid), "--rollup", "--cont", "64K")
    ratio, detail = paired(timed(*ours), timed(*peer), nr)
    kept = report(what, ratio, 1 / 4, detail)
    mine, theirs = peak_kib(*ours), peak_kib(*peer)
    detail = f"{mine} and {theirs} KiB"
    return kept & report(f"{what}: peak memory", mine / theirs, 1 / 2, detail)


def bench_files() -> bool:
    """Peak memory of snapshots of a process in which nearly every page is its own extent."""
    target, _ = start_process(SHUFFLED, str(2 * GIB))
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{i}.parquet" for i in (0, 1)]
        for path in paths:
            peak = peak_kib(PHYSVIEW, "snapshot", str(target.pid), "-o", path)
            go_on(target)
        what = "2 GiB of single pages: snapshot: peak memory / 150 MB"
        kept &= report(what, peak / 150_000, 1, f"{peak} KiB")
        peak = peak_kib(PHYSVIEW, "diff", *paths)
        what = "2 GiB of single pages: diff: peak memory / 150 MB"
        kept &= report(what, peak / 150_000, 1, f"{peak} KiB")
    target.kill()
    target.communicate()
    return kept


def cpu_seconds(pid: int) -> float:
    """How much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_watch() -> bool:
    """How much of a core watch uses on a terminal, with 1 GiB of pages and a reading per second."""
    target, _ = start_target(1 << 30, "write")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    watch = subprocess.Popen(
        [PHYSVIEW, "watch", str(target.pid)],
        stdin=slave,
        stdout=slave,
        env=os.environ | {"TERM": "xterm"},
    )
    drawn = b""

    def read_for(seconds: float) -> None:
        nonlocal drawn
        end = time.monotonic() + seconds
        while select.select([master], [], [], max(0.0, end - time.monotonic()))[0]:
            drawn += os.read(master, 1 << 16)

    while b"of a core" not in drawn:  # appears after the second reading
        read_for(0.1)
    read_for(4)  # in the first readings malloc() adapts to the sizes
    before, begin = cpu_seconds(watch.pid), time.monotonic()
    read_for(10)
    share = (cpu_seconds(watch.pid) - before) / (time.monotonic() - begin)
    os.write(master, b"q")
    read_for(0.5)
    # With a longer interval, of which watch would tell, the share would be too small.
    kept = watch.wait() == 0 and b"as asked" not in drawn
    target.kill()
    target.communicate()
    os.close(master)
    os.close(slave)
    detail = f"{share:.1%} of a core over 10 readings"
    return kept & report("watch, 1 GiB, every second: share of a core", share, 0.05, detail)


def run(nr: int, size: int) -> bool:
    """Run all of them; return whether all limits are kept."""
    target, start = start_target(size, "write")
    try:
        kept = [
            bench_extents(nr, target.pid, start, size),
            bench_page_types(max(3, nr // 3), target.pid),
            bench_thpmaps(max(3, nr // 3), target.pid),
        ]
    finally:
        target.kill()
        target.communicate()
    return all([*kept, bench_sparse(nr), bench_files(), bench_watch()])
