# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws the pictures of docs/pictures: of five processes that it starts, and of this machine.

Needs root, 4 GiB of free memory, and a Chromium. As in:
  sudo .venv/bin/python scripts/pictures.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import GIB, start_target

from physview import pictures

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
MAX_BYTES = 300_000

# As bench.TARGET, but in huge pages where there are some.
HUGE = """
import mmap
memory = mmap.mmap(-1, 4 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for offset in range(0, 4 << 30, mmap.PAGESIZE):
    memory[offset] = 1
print(flush=True)
input()
"""


@contextlib.contextmanager
def started(*command: str) -> Iterator[int]:
    """A process that says a line when it is ready, and waits for its input."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def shell() -> contextlib.AbstractContextManager[int]:
    return started("bash", "-c", "echo; read")


def interpreter() -> contextlib.AbstractContextManager[int]:
    return started(sys.executable, "-c", "import numpy, rich.table; print(flush=True); input()")


@contextlib.contextmanager
def browser() -> Iterator[int]:
    """The browser's process that draws pages, with one that it has drawn."""
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
    return started(sys.executable, "-c", HUGE)


SUBJECTS: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "shell": shell,
    "interpreter": interpreter,
    "browser": browser,
    "small-pages": small_pages,
    "huge-pages": huge_pages,
}


def main() -> int:
    wanted = sys.argv[1:] or [*SUBJECTS, "machine"]
    for name in wanted:
        if name == "machine":
            picture = pictures.picture_machine()
        else:
            with SUBJECTS[name]() as pid:
                picture = pictures.picture_process(pid)
        # No machine's name, and no path of it, in what is published.
        picture = picture._replace(
            origin=picture.origin.replace(os.uname().nodename, "debian", 1),
            title=picture.title.replace(os.uname().nodename, "debian", 1),
            subtitle=picture.subtitle.replace(sys.executable, "python3").replace(f"{ROOT}/", "")[
                :90
            ],
        )
        size = pictures.write_picture(picture, f"{ROOT}/docs/pictures/{name}.svg", force=True)
        print(f"{name}: {size} bytes, {picture.summary}", flush=True)
        if size > MAX_BYTES:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
