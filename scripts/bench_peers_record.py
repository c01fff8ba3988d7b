# SPDX-License-Identifier: GPL-2.0-or-later
"""The row of scripts/bench --peers about `record`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

from bench_peers import Row
from bench_peers_maps import MANY_PROCESSES, process
from measure import PHYSVIEW

SAMPLES = 10


def samples() -> Iterator[Row]:
    """Ten samples of 300 processes, and as many readings of smem, which reads every process."""
    with process(MANY_PROCESSES, 300):
        folder = tempfile.mkdtemp()
        try:
            options = ("--every", "0.1", "--samples", str(SAMPLES), "--frames-every", "never")
            ours = (PHYSVIEW, "record", f"{folder}/data", "--budget", "100%", *options)
            if shutil.which("smem"):
                peer = ("sh", "-c", f"for n in $(seq {SAMPLES}); do smem; done")
            else:
                peer = ("smem",)  # so that the row says that it is missing
            yield Row(f"record, {SAMPLES} samples of 300 processes, smem by", 0.8, ours, peer)
        finally:
            shutil.rmtree(folder)
