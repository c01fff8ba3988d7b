# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws the pictures in docs/pictures.

They show processes that this script starts, changes in the pages of two of them, this machine, and
a walk of page tables.
Needs root, 4 GiB of free memory, and Chromium. For example:
  sudo .venv/bin/python scripts/pictures.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import GIB, start_target

import physview
from physview import pictures

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/support"))
MAX_BYTES = 300_000

# As measure.TARGET, but with huge pages if there are free ones.
HUGE = """
import mmap
memory = mmap.mmap(-1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for offset in range(0, 4 << 30, mmap.PAGESIZE):
    memory[offset] = 1
print(flush=True)
input()
"""


# Keeps every 16th page, so that its frames are scattered over RAM.
FRAGMENTED = """
import mmap
size, page = 4 << 30, mmap.PAGESIZE
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for offset in range(0, size, page):
    memory[offset] = 1
for offset in range(0, size, 16 * page):
    memory.madvise(mmap.MADV_DONTNEED, offset, 15 * page)
print(flush=True)
input()
"""

# Has every eighth frame of 4 GiB. When told to, it asks for large folios instead (MADV_COLLAPSE).
COLLAPSING = """
import mmap
size, page = 512 << 20, mmap.PAGESIZE
memory, others = (mmap.mmap(-1, n * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for n in (1, 7))
memory.madvise(mmap.MADV_NOHUGEPAGE)
others.madvise(mmap.MADV_NOHUGEPAGE)
for offset in range(0, size, page):
    memory[offset] = 1
    for i in range(7):
        others[7 * offset + i * page] = 1
others.close()
print(flush=True)
input()
memory.madvise(mmap.MADV_HUGEPAGE)
memory.madvise(25)
print(flush=True)
input()
"""


# Uses its pages at random, those in front more often.
USING = """
import mmap, random
nr, chosen = 4096, random.Random(1)
memory = mmap.mmap(-1, nr * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(nr):
    memory[page * mmap.PAGESIZE] = 1
print(flush=True)
while True:
    memory[int(nr * chosen.random() ** 4) * mmap.PAGESIZE] = 1
    for _ in range(3000):
        pass
"""


@contextlib.contextmanager
def started(*command: str) -> Iterator[int]:
    """Start a process that prints a line when it is ready and then waits; yield its pid."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def memview() -> contextlib.AbstractContextManager[int]:
    command = f"exec {ROOT}/.venv/bin/physview memview --sleep 99 2>&1"
    return started("sh", "-c", command)


def shell() -> contextlib.AbstractContextManager[int]:
    return started("bash", "-c", "echo; read")


def interpreter() -> contextlib.AbstractContextManager[int]:
    return started(
        sys.executable, "-I", "-c", "import numpy, rich.table; print(flush=True); input()"
    )


@contextlib.contextmanager
def browser() -> Iterator[int]:
    """The browser process that renders a page."""
    import psutil
    from browser import browse

    with browse() as tab:
        tab.call("Page.navigate", url=f"file://{ROOT}/physview/pictures/page.html")
        time.sleep(2)
        (own,) = (
            child
            for child in psutil.Process().children(recursive=True)
            if "--type=renderer" in child.cmdline()
        )
        yield own.pid


@contextlib.contextmanager
def small_pages() -> Iterator[int]:
    target, _ = start_target(4 * GIB, "write")
    yield target.pid
    target.kill()
    target.communicate()


def huge_pages() -> contextlib.AbstractContextManager[int]:
    return started(sys.executable, "-I", "-c", HUGE)


SUBJECTS: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "memview": memview,
    "shell": shell,
    "interpreter": interpreter,
    "browser": browser,
    "small-pages": small_pages,
    "huge-pages": huge_pages,
}


def snapshots(code: str, act: Callable[[subprocess.Popen[bytes]], None]) -> pictures.Picture:
    """A picture of the changes in a process's pages when `act` does something to it."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.parquet" for name in ("before", "after")]
        for path in paths:
            with physview.Snapshot(process.pid) as snapshot:
                physview.write_snapshot(snapshot, path)
            if path == paths[0]:
                act(process)
        process.kill()
        process.communicate()
        with physview.SnapshotFile(paths[0]) as before, physview.SnapshotFile(paths[1]) as after:
            return pictures.picture_changes(pictures.read_changes(before, after), before, after)


def compact(process: subprocess.Popen[bytes]) -> None:
    for _ in range(3):
        Path("/proc/sys/vm/compact_memory").write_text("1")


def collapse(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()


CHANGES: dict[str, tuple[str, Callable[[subprocess.Popen[bytes]], None]]] = {
    "moved": (FRAGMENTED, compact),
    "collapsed": (COLLAPSING, collapse),
}


def draw_walk(path: str) -> int:
    """Draw the walk for the report's local array, in this process."""
    from physview.analysis.walked_addresses import WalkedAddresses, read_walks
    from physview.model import Probe
    from physview.pictures.walk_output import write_walks
    from physview.sources.choice import open_page_tables
    from physview.sources.probes import visit_probes
    from physview.sources.procfs import ProcDir

    def read(probes: list[Probe]) -> WalkedAddresses:
        with ProcDir("self") as proc, open_page_tables(proc) as tables:
            return read_walks(proc, tables, [each for each in probes if each.label == "&buf"])

    walks = visit_probes(read)
    release = os.uname().release.partition("-")[0]
    return write_walks(walks._replace(kernel=release), path, overwrite=True)


def draw_heat(path: str) -> int:
    """Draw which pages a process uses, and how often."""
    from physview.analysis.touched import observe, open_way
    from physview.pictures.heat import write_heat
    from physview.sources.procfs import ProcDir

    with (
        started("/usr/bin/python3", "-I", "-c", USING) as pid,
        ProcDir(pid) as proc,
        open_way(proc, clear=True) as way,
    ):
        touched = observe(proc, way, 0.1, times=20, counts=True)
    return write_heat(touched, path, overwrite=True)


def published(picture: pictures.Picture) -> pictures.Captions:
    """The words without this machine's name, its paths, and its kernel's local version."""
    machine = os.uname()
    captions = pictures.describe(picture)
    release = machine.release.partition("-")[0]
    subtitle = captions.subtitle.replace(sys.executable, "python3").replace(f"{ROOT}/", "")
    return captions._replace(
        origin=captions.origin.replace(machine.nodename, "debian", 1).replace(
            machine.release, release
        ),
        title=captions.title.replace(machine.nodename, "debian", 1),
        subtitle=subtitle[:90],
    )


def main() -> int:
    wanted = sys.argv[1:] or [*SUBJECTS, *CHANGES, "machine", "walk-drawn", "heat"]
    for name in wanted:
        if name in ("walk-drawn", "heat"):
            draw = draw_heat if name == "heat" else draw_walk
            size = draw(f"{ROOT}/docs/pictures/{name}.svg")
            print(f"{name}: {size} bytes", flush=True)
            continue
        if name == "machine":
            picture = pictures.picture_machine()
        elif name in CHANGES:
            picture = snapshots(*CHANGES[name])
        else:
            with SUBJECTS[name]() as pid:
                picture = pictures.picture_process(pid)
        captions = published(picture)
        path = f"{ROOT}/docs/pictures/{name}.svg"
        size = pictures.write_picture(picture, path, captions=captions, overwrite=True)
        print(f"{name}: {size} bytes, {captions.summary}", flush=True)
        if size > MAX_BYTES:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
