# SPDX-License-Identifier: GPL-2.0-or-later
"""The text and the JSON document of `touched`, and its records."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from physview.analysis.page_uses import PageRun, Sums
from physview.analysis.touched import Interval, MappingUse, Touched
from physview.model import Vma, printable
from physview.units import mapping_name, share, short_size, terminal_width

SHORTEST = 0.001
"""Shorter intervals, between two looks without a pause, are told as 0 s."""
_TITLES = ("start", "resident", "touched", "share", "written", "unknown", "untouched", "perm")
_WIDTHS = (14, 8, 7, 6, 7, 7, 9, 4)

MAPPING_FIELDS = (
    ("pid", "uint64"),
    ("command", "string"),
    ("start", "string"),
    ("end", "string"),
    ("perm", "string"),
    ("name", "string"),
    ("resident", "uint64"),
    ("touched", "uint64"),
    ("written", "uint64"),
    ("untouched", "uint64"),
    ("unknown", "uint64"),
    ("new", "uint64"),
    ("huge", "uint64"),
)
"""The fields of a record of a mapping, with their Arrow types. Sizes are in bytes."""

PAGE_FIELDS = (
    ("pid", "uint64"),
    ("command", "string"),
    ("start", "string"),
    ("end", "string"),
    ("page_bytes", "uint64"),
    ("state", "string"),
    ("times", "uint64"),
    ("perm", "string"),
    ("name", "string"),
)
"""The fields of a record of pages that are alike."""


class _Cells(NamedTuple):
    start: str
    resident: str
    touched: str
    share: str
    written: str
    unknown: str
    untouched: str
    perm: str


def print_heading(touched: Touched, nr_wanted: int) -> None:
    """Print what was done: how long, by what, what it changed, and what it cannot tell."""
    intervals = f"{len(touched.intervals)} x {_seconds(touched.intervals[0].seconds)}"
    if nr_wanted == 1:
        intervals = _seconds(touched.seconds)
    print(
        f"process {touched.pid} ({printable(touched.name)}): {intervals}, by {touched.by}"
        f" ({touched.source})"
    )
    print(f"changed: {touched.influence}")
    for limit in touched.limits:
        print(f"limit: {limit}")


def print_intervals(touched: Touched) -> None:
    """Print a line for each interval."""
    print("\ninterval seconds resident touched  share written unknown")
    for number, (seconds, sums) in enumerate(touched.intervals, 1):
        print(
            f"{number:8} {seconds:7.2f} {short_size(sums.resident):>8}"
            f" {short_size(sums.touched):>7} {share(sums.touched, sums.resident):>6}"
            f" {_written(touched, sums):>7} {short_size(sums.unknown):>7}"
        )


def largest(touched: Touched, top: int | None) -> list[MappingUse]:
    """The mappings of which most was touched, or all of them in the order of their addresses."""
    if top is None:
        return touched.mappings
    by_size = sorted(touched.mappings, key=lambda use: -use.sums.resident)
    return sorted(by_size, key=lambda use: -use.sums.touched)[:top]


def print_mappings(touched: Touched, top: int | None = None) -> None:
    """Print a line for each mapping with resident memory, and the total of all."""
    width = terminal_width()
    room = max(12, width - sum(_WIDTHS) - len(_WIDTHS))
    print()
    _print_row(_Cells(*_TITLES), "name", room)
    for vma, sums in largest(touched, top):
        cells = _cells(touched, f"{vma.start:#014x}", sums, vma.perms)
        _print_row(cells, mapping_name(vma.path, room), room)
    nr = len(touched.mappings)
    mappings = f"{nr} mapping{'' if nr == 1 else 's'}"
    _print_row(_cells(touched, "total", touched.total, ""), mappings, room)


def print_summary(touched: Touched) -> None:
    """Print the working set in a sentence, and what is special about it."""
    total = touched.total
    least = "at least " if total.unknown else ""
    what = "touched" if touched.knows_reads else "written"
    line = (
        f"\n{what}: {least}{_size(total.touched)} of {_size(total.resident)} resident"
        f" ({share(total.touched, total.resident)})"
    )
    if total.unknown:
        most = total.touched + total.unknown
        line += f", and {short_size(most)} at most"
    print(line)
    if total.huge:
        print(f"in huge pages: {short_size(total.huge)}, with one bit for each huge page")
    if total.new:
        print(f"new since the beginning: {short_size(total.new)}")
    if total.gone:
        print(f"gone since the beginning, and not counted: {short_size(total.gone)}")
    if total.lost:
        print(f"cleared by others: the bits of {short_size(total.lost)}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= SHORTEST else "0 s"


def _size(size_bytes: int) -> str:
    return short_size(size_bytes) if size_bytes else "0"


def _written(touched: Touched, sums: Sums) -> str:
    return short_size(sums.written) if touched.knows_writes else "?"


def _cells(touched: Touched, start: str, sums: Sums, perms: str) -> _Cells:
    return _Cells(
        start,
        short_size(sums.resident),
        short_size(sums.touched),
        share(sums.touched, sums.resident),
        _written(touched, sums),
        short_size(sums.unknown),
        short_size(sums.untouched),
        perms,
    )


def _print_row(cells: _Cells, name: str, room: int) -> None:
    texts = [text.rjust(width) for text, width in zip(cells, _WIDTHS, strict=True)]
    texts[0] = cells.start.ljust(_WIDTHS[0])
    sys.stdout.write(f"{' '.join(texts)} {name[:room]}".rstrip() + "\n")


def document(
    touched: Touched, top: int | None = None, picture: str | None = None
) -> dict[str, Any]:
    """Make the JSON document (docs/json.md)."""
    found = {
        "pid": touched.pid,
        "command": touched.name,
        "by": touched.by,
        "source": touched.source,
        "clears": touched.clears,
        "influence": touched.influence,
        "limits": list(touched.limits),
        "knows_reads": touched.knows_reads,
        "knows_pages": touched.knows_pages,
        "seconds": touched.seconds,
        "ended_early": touched.ended_early or None,
        "total": _sums(touched, touched.total),
        "intervals": [_interval(touched, each) for each in touched.intervals],
        "mappings": [
            {
                "start": hex(use.vma.start),
                "end": hex(use.vma.end),
                "perms": use.vma.perms,
                "path": use.vma.path,
                **_sums(touched, use.sums),
            }
            for use in largest(touched, top)
        ],
    }
    return found if picture is None else {**found, "picture": picture}


def _interval(touched: Touched, interval: Interval) -> dict[str, Any]:
    return {"seconds": interval.seconds, **_sums(touched, interval.sums)}


def _sums(touched: Touched, sums: Sums) -> dict[str, Any]:
    return {f"{name}_bytes": size for name, size in touched.told(sums).items()}


def mapping_records(touched: Touched, top: int | None = None) -> list[tuple[Any, ...]]:
    """Make a record with MAPPING_FIELDS of each mapping."""
    return [_mapping_record(touched, use) for use in largest(touched, top)]


def _mapping_record(touched: Touched, use: MappingUse) -> tuple[Any, ...]:
    vma, told = use.vma, touched.told(use.sums)
    about = (touched.pid, touched.name, hex(vma.start), hex(vma.end), vma.perms, vma.path)
    return (*about, *(told[name] for name, _ in MAPPING_FIELDS[len(about) :]))


def page_records(touched: Touched) -> Iterator[tuple[Any, ...]]:
    """Make a record with PAGE_FIELDS of pages that are alike."""
    vmas = iter(touched.vmas)
    vma = next(vmas, None)
    for run in touched.iter_runs():
        while vma and vma.end <= run.start:
            vma = next(vmas, None)
        yield _page_record(touched, run, vma if vma and vma.start <= run.start else None)


def _page_record(touched: Touched, run: PageRun, vma: Vma | None) -> tuple[Any, ...]:
    return (
        touched.pid,
        touched.name,
        hex(run.start),
        hex(run.end),
        run.page_bytes,
        run.state,
        run.times,
        vma.perms if vma else "",
        vma.path if vma else "",
    )


def names_of(fields: Sequence[tuple[str, str]]) -> list[str]:
    """The names of fields."""
    return [name for name, _ in fields]
