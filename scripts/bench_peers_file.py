# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench --peers about `file`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench_peers import Row
from measure import GIB, PAGE, PHYSVIEW, c_program

NR_FOLDERS, NR_PER_FOLDER = 200, 100


def small_files() -> Iterator[Row]:
    """A tree of 20,000 files of 1 to 4 pages, all of them cached."""
    with tempfile.TemporaryDirectory() as folder, c_program("filecounts") as floor:
        names = []
        for at in range(NR_FOLDERS):
            (Path(folder) / f"{at}").mkdir()
            for number in range(NR_PER_FOLDER):
                names.append(f"{folder}/{at}/{number}")
                Path(names[-1]).write_bytes(bytes(PAGE * (1 + number % 4)))
        os.sync()
        ours = (PHYSVIEW, "file", folder)
        what = f"file, {len(names):,} small files"
        yield Row(what, 2, ours, ("vmtouch", folder), (floor, folder))
        yield Row(what, 2, ours, ("fincore", "--raw", "--noheadings", *names), (floor, folder))
        ours = (PHYSVIEW, "file", "--state", folder)
        yield Row(f"{what}, with states", 1.5, ours, ("page-types", "-f", folder))


def large_file() -> Iterator[Row]:
    """One file of 1 GiB, all of it cached."""
    with tempfile.TemporaryDirectory() as folder, c_program("filecounts") as floor:
        path = f"{folder}/large"
        with open(path, "wb") as file:
            for _ in range(GIB >> 20):
                file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        ours = (PHYSVIEW, "file", path)
        yield Row("file, one file of 1 GiB", 2, ours, ("vmtouch", path), (floor, path))
