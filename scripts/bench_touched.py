# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench --walk about `touched`: CPU time of one interval, without its wait.

The peer does what the tool wss does: it clears the accessed bits and adds up Referenced of smaps.
Needs root and 2 GiB of free memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from measure import GIB, paired, report, start_target

SIZE = 2 * GIB


def cpu_of(function: Callable[[], object]) -> Callable[[], float]:
    """Make a function that calls another, and returns the CPU seconds."""

    def run() -> float:
        begin = time.process_time()
        function()
        return time.process_time() - begin

    return run


def referenced(pid: int, *, clear: bool) -> int:
    """Referenced of a process in KiB, after clearing it."""
    if clear:
        fd = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY)
        os.write(fd, b"1")
        os.close(fd)
    with open(f"/proc/{pid}/smaps", "rb") as smaps:
        return sum(int(line[11:-4]) for line in smaps if line.startswith(b"Referenced:"))


def run(nr: int) -> bool:
    """Run all of them; return whether all limits are kept."""
    from physview.analysis.touched import open_way
    from physview.sources.procfs import ProcDir

    target, _ = start_target(SIZE, "write")
    kept = []
    try:
        for clear, words, limit in ((False, "one look", 0.5), (True, "--clear", 1)):
            with ProcDir(target.pid) as proc, open_way(proc, "accessed", clear=clear) as way:

                def ours(way=way) -> None:  # type: ignore[no-untyped-def]
                    way.begin()
                    way.end()

                def peer(clear: bool = clear) -> None:
                    referenced(target.pid, clear=clear)

                ratio, detail = paired(cpu_of(ours), cpu_of(peer), nr)
            kept.append(report(f"2 GiB: touched, {words} / wss's way", ratio, limit, detail))
    finally:
        target.kill()
        target.communicate()
    return all(kept)
