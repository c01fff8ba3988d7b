# SPDX-License-Identifier: GPL-2.0-or-later
"""A corpus of hostile snapshot files, and a program that has physview read them.

    python tests/support/hostile_files.py make FOLDER NUMBER SEED
    python tests/support/hostile_files.py check FOLDER

`make` writes the files. `check` reads them and prints JSON: how many were refused or accepted,
which made physview crash, and how much memory and time it took. hostile_contents.py and
hostile_bytes.py have a function for each kind of file.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from hostile_bytes import bomb, change_footer, huge_footer, spoil_bytes
from hostile_contents import (
    change_columns,
    change_mapping,
    change_metadata,
    change_rows,
    long_rows,
    many_members,
    many_rows,
    order_rows,
    other_ways,
    wrong_metadata,
)
from snapshot_maker import write

KINDS = (
    *(change_metadata, change_metadata, change_mapping, change_mapping, wrong_metadata),
    *(change_rows, change_rows, order_rows, long_rows, change_columns, other_ways),
    *(spoil_bytes, spoil_bytes, change_footer, change_footer, bomb, huge_footer),
)
# Slow kinds, a second for each file: every 34th file is one.
SLOW_KINDS = (many_members, many_rows)


def make(folder, nr, seed):
    """Write `nr` hostile files, and one valid file."""
    write(folder / "valid.parquet")
    for number in range(nr):
        dice = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        if number % 34 == 33:
            kind = SLOW_KINDS[number // 34 % len(SLOW_KINDS)]
        kind(folder / f"{number:04}-{kind.__name__}.parquet", dice)


def look(path, valid):
    """Read a file as the commands do; return the reason why it was refused, or ""."""
    from physview import pictures
    from physview.analysis import changes
    from physview.errors import PhysviewError
    from physview.parquet.snapshot_file import SnapshotFile
    from physview.pictures.layout import lay_out
    from physview.pictures.svg import to_svg
    from physview.reporters import diff as reporter

    every = frozenset(changes.Change)
    try:
        with SnapshotFile(str(path)) as file, SnapshotFile(str(valid)) as other:
            nr_rows = sum(len(batch) for batch in file.iter_extents())
            assert nr_rows == file.nr_extents
            for pair in ((file, other), (other, file)):
                found = changes.diff(*pair)
                reporter.print_table(*pair, found, changes.iter_changes(*pair), every)
                reporter.print_document(*pair, found, None, every)
                became = pictures.read_changes(*pair)
                to_svg(lay_out(pictures.picture_changes(became, *pair))[0], theme="auto").encode()
    except PhysviewError as error:
        return str(error).partition(": ")[2]
    return ""


def peak_kib():
    """The peak of this process's memory. ru_maxrss would include the parent's before exec()."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().split("\n") if line[:6] == "VmHWM:"
    )
    return int(line[6:-2])


def check(folder):
    """Read all files of a folder in this process, and print a summary as JSON."""
    outcomes, slowest = {}, (0.0, "")
    valid = folder / "valid.parquet"
    peaks = {}
    for path in sorted(folder.glob("*.parquet")):
        begin = time.monotonic()
        try:
            with (
                open(os.devnull, "w", errors="surrogateescape") as null,
                contextlib.redirect_stdout(null),
            ):
                outcomes[path.name] = look(path, valid)
        except BaseException as error:
            outcomes[path.name] = f"{type(error).__name__}: {traceback.format_exc(limit=-2)}"
        slowest = max(slowest, (round(time.monotonic() - begin, 2), path.name))
        peaks[path.name] = peak_kib()
    crashed = {name: why for name, why in outcomes.items() if "Traceback" in why}
    before, most = 0, []
    for name, peak in peaks.items():
        if peak > before + 1024:
            most.append((name, peak >> 10))
        before = max(before, peak)
    document = {
        "nr_files": len(outcomes),
        "nr_refused": sum(bool(why) for why in outcomes.values()) - len(crashed),
        "nr_accepted": sum(not why for why in outcomes.values()),
        "valid": outcomes["valid.parquet"],
        "crashed": crashed,
        "peak_mib": before >> 10,
        "growth": most[-5:],
        "slowest": slowest,
        "whys": Counter(why.partition("(")[2][:50] or why[:50] for why in outcomes.values() if why),
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
        check(Path(sys.argv[2]))
