# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench --peers: each command against the tool that a user would run instead.

A row compares CPU seconds (user and system, of the whole program with its start) for the same work.
The floor is a C program that does only what the kernel needs for that work. Needs root.

To add rows, write a generator that prepares the work, yields the rows, and cleans up. Then add the
generator to `run()`. Each command has its generators in a module of its own: bench_peers_file.py.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from measure import report

Command = tuple[str, ...]


class Row(NamedTuple):
    """One comparison.

    Args:
        what: The work, as "file, 20,000 small files".
        limit: The ratio to stay under.
        ours: Our command.
        peer: The peer's command. The row is skipped if the peer is not on PATH.
        floor: A program that does the kernel's part alone, or None if there is none.
        code: The exit code of our command.
    """

    what: str
    limit: float
    ours: Command
    peer: Command
    floor: Command | None = None
    code: int = 0


def cpu_of(command: Command, code: int = 0) -> Callable[[], float]:
    """Make a function that runs a command, and returns its CPU seconds.

    Args:
        command: The program and its arguments. It must exit with `code`.
        code: The exit code.
    """
    program = shutil.which(command[0])
    assert program, command[0]
    to_null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]

    def run() -> float:
        pid = os.posix_spawn(program, command, os.environ, file_actions=to_null)
        _, status, usage = os.wait4(pid, 0)
        assert os.waitstatus_to_exitcode(status) == code, (command, status)
        return usage.ru_utime + usage.ru_stime

    return run


def measure(row: Row, nr: int) -> bool:
    """Run the programs of a row by turns, and print the row; return whether its limit is kept."""
    what = f"{row.what} / {os.path.basename(row.peer[0])}"
    if not shutil.which(row.peer[0]):
        print(f"skip  {what}: {row.peer[0]} is not on PATH: ./scripts/fetch-peers", flush=True)
        return True
    programs = [cpu_of(row.ours, row.code), cpu_of(row.peer)]
    if row.floor:
        programs.append(cpu_of(row.floor))
    for program in programs:
        program()
    rounds = [[program() for program in programs] for _ in range(nr)]
    ratios = sorted(ours / peer for ours, peer, *_ in rounds)
    medians = [statistics.median(column) * 1e3 for column in zip(*rounds, strict=True)]
    detail = f"{medians[0]:.1f} and {medians[1]:.1f} ms, ratios {ratios[0]:.2f} to {ratios[-1]:.2f}"
    if row.floor:
        detail += f"; floor {medians[2]:.1f} ms ({os.path.basename(row.floor[0])})"
    return report(what, statistics.median(ratios), row.limit, detail)


def run(nr: int, only: str = "") -> bool:
    """Measure the rows whose generator has `only` in its name; return whether limits are kept."""
    import bench_peers_file
    import bench_peers_maps
    import bench_peers_pages
    import bench_peers_record

    generators: tuple[Callable[[], Iterator[Row]], ...] = (
        bench_peers_file.small_files,
        bench_peers_file.large_file,
        bench_peers_maps.rollup,
        bench_peers_maps.many_mappings,
        bench_peers_pages.pages,
        bench_peers_pages.frames,
        bench_peers_record.samples,
    )
    kept = True
    for generator in generators:
        if only in f"{generator.__module__}.{generator.__name__}":
            for row in generator():
                kept &= measure(row, nr)
    return kept
