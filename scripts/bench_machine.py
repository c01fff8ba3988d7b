# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench about the machine: frames and owners. They need root."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from measure import GIB, c_peer, paired, report, start_target, timed


def bench_frames(nr: int) -> bool:
    """All frames by flag: the command compared with page-types."""
    peer = shutil.which("page-types")
    what = "the machine by flag: physview frames / page-types"
    if not peer:
        print(f"skip  {what}: page-types is not on PATH: see --help")
        return True
    ours = timed(str(Path(sys.executable).with_name("physview")), "frames", "--all-flags")
    ratio, detail = paired(ours, timed(peer), nr)
    return report(what, ratio, 1 / 1.3, detail)


def bench_owners(nr: int, size: int = 2 * GIB) -> bool:
    """The owners of one frame, while one of the processes is large and dense."""
    from physview.frames.owners import find_owners

    target, _ = start_target(size, "write")
    with c_peer("readall") as peer:

        def ours() -> float:
            begin = time.perf_counter()
            find_owners([(1 << 20, (1 << 20) + 1)])
            return time.perf_counter() - begin

        ratio, detail = paired(ours, peer, nr)
    target.kill()
    target.communicate()
    return report("owners of a frame / reading every pagemap once", ratio, 2, detail)


def run(nr: int) -> bool:
    """Run all of them; return whether all limits are kept."""
    kept = [bench_frames(nr), bench_owners(nr)]
    return all(kept)
