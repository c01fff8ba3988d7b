# SPDX-License-Identifier: GPL-2.0-or-later
"""Made-up samples, and what a dataset has, for the tests of record."""

from pathlib import Path

import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet

from physview.recording import schema, spool
from physview.recording.parts import About

DAY = 86_400_000_000
NOON = 1_790_000_000_000_000 // DAY * DAY + DAY // 2
ABOUT = About("a/b", "00112233445566778899aabbccddeeff", "boot-1", "6.1")


def sample_at(time_us, about=ABOUT, value=1):
    """A moment, and tables with one row each."""
    moment = {"time": time_us, "machine": about.machine, "boot": about.boot, "kernel": about.kernel}
    moment["since_boot"] = 1.5
    tables = {}
    for name, columns in schema.TABLES.items():
        tables[name] = {column.name: [None] for column in columns[len(schema.MOMENT) :]}
    tables["groups"].update({"by": ["program"], "name": ["a"], "resident": [value]})
    tables["zones"].update({"zone": ["Normal"], "free_blocks": [[1, 2]], "unusable": [[0.0, 0.5]]})
    tables["machine"].update({"pgfault": [value], "lost": [0]})
    return moment, tables


def open_test_spool(path):
    return spool.open_spool(str(path), ABOUT.machine)


def values_of(path, table="groups", column="resident"):
    """The values of a column of a dataset, in the order of time."""
    found = pyarrow.dataset.dataset(f"{path}/{table}", partitioning="hive").to_table()
    return found.sort_by("time").column(column).to_pylist()


def files_of(path, table="groups"):
    return sorted(str(file.relative_to(path)) for file in Path(path).glob(f"{table}/*/*/*"))
