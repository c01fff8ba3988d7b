# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a dataset of a fleet that does not exist, to try `physview fleet` on.

The programs and the memory of a host are those of a real machine (fleet_sample.json, which
--take-sample makes of the machine that it runs on). Their sizes then walk at random. Some events
are planted: fleet_events.py lists them, and this script prints where and when they happen, a JSON
object per line. The same arguments always make the same rows.

The generator is no part of the package: nobody should take its rows for a recording.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fleet_events import Event, plan
from fleet_host import Host, Shape, make_host

from physview.recording import schema

SAMPLE = Path(__file__).with_name("fleet_sample.json")
SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
ROWS_IN_GROUP = 1 << 16


class Fleet(NamedTuple):
    """What to make.

    Args:
        hosts, days, programs: How many.
        interval: Seconds between samples.
        seed: Chooses the random walks.
        start: When the first sample is taken, in seconds since 1970.
        file_hours: Hours in one file; at most a day.
        hostile: A name that an attacker chose, for the last program and the last host; or "".
    """

    hosts: int = 3
    days: float = 2
    programs: int = 8
    interval: int = 60
    seed: int = 1
    start: int = int(datetime(2026, 1, 5, tzinfo=timezone.utc).timestamp())
    file_hours: int = 24
    hostile: str = ""


def generate(folder: str | os.PathLike[str], fleet: Fleet) -> list[Event]:
    """Write the dataset.

    Args:
        folder: A new folder.
        fleet: What to make.

    Returns:
        The planted events.
    """
    sample = json.loads(SAMPLE.read_text())
    nr = int(fleet.days * 86400 / fleet.interval)
    shape = Shape(nr, fleet.interval, fleet.start, _program_names(sample, fleet), fleet.hosts)
    events = plan(shape)
    for index in range(fleet.hosts):
        random = np.random.default_rng([fleet.seed, index])
        host = make_host(index, shape, sample, random, [e for e in events if e.host_index == index])
        if fleet.hostile and index == fleet.hosts - 1:
            host = host._replace(name=fleet.hostile)
        for table in schema.TABLES:
            _write(Path(folder), table, host, fleet)
    return events


def _program_names(sample: dict[str, Any], fleet: Fleet) -> list[str]:
    known = [program["name"] for program in sample["programs"]]
    rounds = range(1 + (fleet.programs - 1) // len(known))
    names = [name if turn == 0 else f"{name}-{turn + 1}" for turn in rounds for name in known]
    names = names[: fleet.programs]
    if fleet.hostile:
        names[-1] = fleet.hostile
    return names


def _write(folder: Path, table: str, host: Host, fleet: Fleet) -> None:
    """Write the rows of one table of one host: a file for each boot and so many hours."""
    step = min(24, fleet.file_hours) * 3600
    at = host.time // 1_000_000
    begins = np.flatnonzero(np.diff(at // step, prepend=-1) | np.diff(host.boot, prepend=-1))
    for first, last in zip(begins, [*begins[1:], len(at)], strict=True):
        moment = datetime.fromtimestamp(int(at[first]), timezone.utc)
        name = quote(host.name, safe=SAFE)
        place = folder / table / f"host={name}" / f"date={moment:%Y-%m-%d}"
        place.mkdir(parents=True, exist_ok=True)
        metadata = {
            "physview.schema": str(schema.VERSION),
            "physview.version": "generated",
            "host": host.name,
            "machine": host.machine,
            "boot_id": host.boots[host.boot[first]],
            "kernel": host.kernels[host.boot[first]],
        }
        known = schema.arrow_schema(table, pa, metadata)
        columns = host.columns(table, slice(first, last))
        nr = len(columns["time"])
        arrays = [_array(columns.get(field.name), field.type, nr) for field in known]
        path = place / f"part-{moment:%H%M%S}-{host.machine[:8]}-{first}.parquet"
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=known),
            path,
            compression="zstd",
            row_group_size=ROWS_IN_GROUP,
        )


def _array(values: Any, kind: Any, nr: int) -> Any:
    """Make an Arrow array. A dictionary comes as (indices, words), a list as a matrix."""
    if values is None:
        return pa.nulls(nr, kind)
    if isinstance(values, tuple):
        indices, words = values
        array = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(words))
        return array if pa.types.is_dictionary(kind) else array.cast(kind)
    if values.ndim == 2:
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel())).cast(kind)
    return pa.array(values).cast(kind)


def take_sample(path: Path) -> None:
    """Write what the generator needs of this machine: its programs, and its memory."""
    from fleet_sample import read_sample

    path.write_text(json.dumps(read_sample(), indent=1) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="where the dataset is made")
    default = Fleet()
    for name, text in (
        ("hosts", "number of hosts"),
        ("days", "days of samples"),
        ("programs", "programs on each host"),
        ("interval", "seconds between samples"),
        ("seed", "chooses the random walks"),
        ("file_hours", "hours in one file, up to 24"),
    ):
        value = getattr(default, name)
        kind = float if name == "days" else int
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=value, help=f"{text} (default: {value})")
    parser.add_argument("--hostile", default="", metavar="NAME", help="a name as of an attacker")
    parser.add_argument("--take-sample", action="store_true", help="renew fleet_sample.json only")
    args = parser.parse_args()
    if args.take_sample == (args.folder is not None):
        parser.error("give FOLDER or --take-sample")
    return args


def main() -> None:
    """Make what the command line says."""
    args = _parse()
    if args.take_sample:
        take_sample(SAMPLE)
        return
    names = [name for name in Fleet._fields if name != "start"]
    for event in generate(args.folder, Fleet(**{name: getattr(args, name) for name in names})):
        print(json.dumps(event.document()))


if __name__ == "__main__":
    main()
