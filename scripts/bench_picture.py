# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench about pictures. They need root and 4 GiB of free memory."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import (
    GIB,
    PHYSVIEW,
    SHUFFLED,
    go_on,
    paired,
    peak_kib,
    report,
    start_process,
    start_target,
    timed,
)


def snapshot(pid: int) -> Callable[[], float]:
    """Make a function that reads all extents with flags, and returns a time limit for a picture.

    The limit is three times the seconds of the reading, and one second more for all other frames
    and for drawing.
    """
    import physview

    def read() -> float:
        begin = time.perf_counter()
        with physview.Snapshot(pid) as snapshot:
            for _ in snapshot.iter_extents(columns=["flags"]):
                pass
        return 3 * (time.perf_counter() - begin) + 1

    return read


def bench_diff(nr: int) -> bool:
    """diff, with a picture and without, of a process that frees half of 4 GiB of single pages."""
    target, _ = start_process(SHUFFLED, str(4 * GIB))
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{i}.parquet" for i in (0, 1)]
        picture = [PHYSVIEW, "picture", str(target.pid), "--force", "-o", f"{folder}/p.html"]
        peak = peak_kib(*picture)
        for path in files:
            subprocess.run(
                [PHYSVIEW, "snapshot", str(target.pid), "-o", path],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            go_on(target)
        target.kill()
        target.communicate()
        told = timed(PHYSVIEW, "diff", *files, code=1)
        for suffix in (".svg", ".html"):
            draw = [PHYSVIEW, "diff", *files, "--force", "--picture", f"{folder}/diff{suffix}"]
            ratio, detail = paired(timed(*draw, code=1), told, max(3, nr // 6))
            kept &= report(f"4 GiB of single pages: diff, {suffix} / told", ratio, 4, detail)
        mine = peak_kib(*draw)
    what = "4 GiB of single pages: memory of diff, .html / of picture"
    return kept & report(what, mine / peak, 1.5, f"{mine} and {peak} KiB")


def run(nr: int) -> bool:
    """Run all of them; return whether all limits are kept."""
    target, _ = start_target(4 * GIB, "write")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".svg", ".html", ".png"):
            path = f"{folder}/picture{suffix}"
            command = (PHYSVIEW, "picture", str(target.pid), "--force", "-o", path)
            ratio, detail = paired(timed(*command), snapshot(target.pid), max(3, nr // 6))
            size = Path(path).stat().st_size
            what = f"dense 4 GiB: {suffix} / 3 snapshots with flags + 1 s"
            limit = 1.5 if suffix == ".png" else 1  # a PNG has all pixels, even if little is drawn
            kept &= report(what, ratio, limit, f"{detail}, {size} bytes")
    target.kill()
    target.communicate()
    return kept & bench_diff(nr)
