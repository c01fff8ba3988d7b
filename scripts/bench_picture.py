# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench about pictures. Need root, and 4 GiB of free memory."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import GIB, paired, report, start_target, timed

PHYSVIEW = str(Path(sys.executable).with_name("physview"))


def snapshot(pid: int) -> Callable[[], float]:
    """Makes a function that reads all extents with their flags, and returns what may be taken for
    a picture: three times its seconds, and one more for all other frames and for drawing."""
    import physview

    def read() -> float:
        begin = time.perf_counter()
        with physview.Snapshot(pid) as snapshot:
            for _ in snapshot.iter_extents(columns=["flags"]):
                pass
        return 3 * (time.perf_counter() - begin) + 1

    return read


def run(nr: int) -> bool:
    """All of them; whether all limits are kept."""
    target, _ = start_target(4 * GIB, "write")
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".svg", ".html", ".png"):
            path = f"{folder}/picture{suffix}"
            command = (PHYSVIEW, "picture", str(target.pid), "--force", "-o", path)
            ratio, detail = paired(timed(*command), snapshot(target.pid), max(3, nr // 6))
            size = Path(path).stat().st_size
            what = f"dense 4 GiB: {suffix} / 3 snapshots with flags + 1 s"
            limit = 1.5 if suffix == ".png" else 1  # a PNG is pixels, however little is drawn
            kept &= report(what, ratio, limit, f"{detail}, {size} bytes")
    target.kill()
    target.communicate()
    return kept
