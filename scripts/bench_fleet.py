# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of scripts/bench --fleet: what each question to a generated fleet costs, by hosts.

It makes the fleet in a temporary folder (about 500 MB for 100 hosts), asks each question about 1,
10 and all of its hosts, and prints Markdown, as in docs/fleet.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from physview.fleet.duckdb_engine import DEFAULT_THREADS
from physview.fleet.questions import QUESTIONS

HOSTS, DAYS, PROGRAMS, INTERVAL = 100, 7, 50, 60
GENERATE = Path(__file__).with_name("fleet-generate")
GLOBS = {1: "node-001", 10: "node-00?", 100: "*"}
SECONDS, MIB = 5.0, 1024
"""The limits of a question. The seconds are those of its processor time by its threads, because
other programs may keep the processors busy."""


class Cost(NamedTuple):
    """What a command cost.

    Args:
        wall: Seconds.
        cpu: Seconds of all processors.
        peak_kib: Its largest resident size.
    """

    wall: float
    cpu: float
    peak_kib: int


def _run(*arguments: str) -> Cost:
    command = [sys.executable, "-I", "-m", "physview", "fleet", *arguments, "--format", "csv"]
    begin = time.perf_counter()
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, used = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    cpu = used.ru_utime + used.ru_stime
    return Cost(time.perf_counter() - begin, cpu, used.ru_maxrss)


def _print_sizes(folder: Path) -> None:
    for table in ("groups", "zones", "machine"):
        size = sum(path.stat().st_size for path in (folder / table).rglob("*.parquet"))
        per_day = size / HOSTS / DAYS
        print(f"{table}: {size / 1e6:.0f} MB, {per_day / 1e3:.0f} kB a host and day")


def run(_nr: int) -> bool:
    """Print the table; return whether each question keeps its limits."""
    kept = True
    with tempfile.TemporaryDirectory(prefix="physview-bench-") as name:
        folder = Path(name) / "fleet"
        # In a process of its own: a child's peak memory is at least that of its parent.
        about = {"hosts": HOSTS, "days": DAYS, "programs": PROGRAMS, "interval": INTERVAL}
        options = [f"--{name}={value}" for name, value in about.items()]
        command = [str(GENERATE), str(folder), *options]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        _print_sizes(folder)
        rows = HOSTS * DAYS * 86400 / INTERVAL * PROGRAMS
        print(
            f"\n{rows / 1e6:.1f} million rows of groups; wall time / processor time / peak memory\n"
        )
        print("| question |", *(f"{nr} host{'s' * (nr > 1)} |" for nr in GLOBS))
        print("| --- |", *("--- |" for _ in GLOBS))
        for question in QUESTIONS:
            words = [question, "resident"] if question == "worst" else [question]
            costs = [_run(str(folder), *words, "--hosts", glob) for glob in GLOBS.values()]
            cells = (
                f"{cost.wall:.1f} s / {cost.cpu:.1f} s / {cost.peak_kib / 1024:.0f} MiB |"
                for cost in costs
            )
            print(f"| `{' '.join(words)}` |", *cells, flush=True)
            kept &= all(
                c.cpu / DEFAULT_THREADS < SECONDS and c.peak_kib < MIB * 1024 for c in costs
            )
    print("\nok" if kept else f"\nslow  a question took more than {SECONDS:.0f} s or {MIB} MiB")
    return kept
