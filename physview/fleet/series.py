# SPDX-License-Identifier: GPL-2.0-or-later
"""What the plots of a report show: values by name and time, as Ibis expressions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from physview.fleet import machine_questions
from physview.fleet.answer import AnswerColumn
from physview.fleet.expressions import (
    AT,
    MACHINE,
    Options,
    Tables,
    bucket,
    group_keys,
    share,
)

Found = list[dict[str, Any]]
Built = tuple[list[AnswerColumn], Any]
SHOWN_OF_MACHINE = 8


class Series(NamedTuple):
    """Values over time.

    Args:
        title: What a plot of them shows.
        kind: lines or heat.
        unit: The kind of the values, as of an AnswerColumn.
        build: Makes the expression, with the columns series, at and value. Its last argument has
            the first rows of the question's answer.
    """

    title: str
    kind: str
    unit: str
    build: Callable[[Tables, Options, Found], Built]


def _columns(unit: str) -> list[AnswerColumn]:
    name = AnswerColumn("series", "text", "the line, or the row")
    return [name, AT, AnswerColumn("value", unit, "the value")]


def _finish(table: Any, unit: str) -> Built:
    return _columns(unit), table.select("series", "at", "value").order_by(["series", "at"])


def _group_label(table: Any, options: Options, with_host: bool) -> Any:
    parts = [table.host, " "] if with_host else []
    parts += [table.name]
    parts += [" ", table.pid.cast("string")] if options.of == "pid" else []
    return reduce(lambda one, other: one + other, parts)


def _one_of(table: Any, keys: list[str], found: Found) -> Any:
    """The rows of the groups that the question has found."""
    chosen = [
        reduce(lambda one, other: one & other, (_same(table[key], row[key]) for key in keys))
        for row in found
    ]
    return table.filter(reduce(or_, chosen))


def _same(column: Any, value: Any) -> Any:
    return column.isnull() if value is None else column == value


def _coverage(*before: str) -> Callable[[Tables, Options, Found], Built]:
    """The THP coverage of the groups that were found, of all hosts or of each."""

    def build(tables: Tables, options: Options, found: Found) -> Built:
        keys = group_keys(options, *before)
        groups = _one_of(tables.groups_of(options), keys, found)
        buckets = groups.group_by([*keys, bucket(groups, options)]).agg(
            value=share(groups.anon_huge.sum(), groups.anon.sum())
        )
        return _finish(buckets.mutate(series=_group_label(buckets, options, bool(before))), "share")

    return build


def _sizes(column: str) -> Callable[[Tables, Options, Found], Built]:
    """The least of a column of the groups that were found, in each step of time."""

    def build(tables: Tables, options: Options, found: Found) -> Built:
        keys = group_keys(options, *MACHINE)
        groups = _one_of(tables.groups_of(options), keys, found)
        value = groups[column]
        if column == "resident":
            value = value + groups.swapped.fill_null(0)
        buckets = groups.group_by([*keys, bucket(groups, options)]).agg(value=value.min())
        return _finish(buckets.mutate(series=_group_label(buckets, options, True)), "bytes")

    return build


def _swapped(tables: Tables, options: Options, found: Found) -> Built:
    keys = group_keys(options, *MACHINE)
    groups = _one_of(tables.groups_of(options), keys, found)
    buckets = groups.group_by([*keys, bucket(groups, options)]).agg(value=groups.swapped.max())
    return _finish(buckets.mutate(series=_group_label(buckets, options, True)), "bytes")


def _fragmented(tables: Tables, options: Options, _found: Found) -> Built:
    zones = tables.zones.filter(tables.zones.managed >= machine_questions.MIN_ZONE)
    buckets = zones.group_by([zones.kernel.name("series"), bucket(zones, options)]).agg(
        value=1 - share(zones.usable_2m.sum(), zones.free.sum())
    )
    return _finish(buckets, "share")


def _steps_of(question: str, column: str) -> Callable[[Tables, Options, Found], Built]:
    """A column of a question that has a row for each host and step of time."""

    def build(tables: Tables, options: Options, _found: Found) -> Built:
        buckets = getattr(machine_questions, question)(tables, options)[1]
        named = buckets.mutate(
            series=buckets.host + " " + buckets.machine.left(SHOWN_OF_MACHINE),
            value=buckets[column],
        )
        return _finish(named, "count")

    return build


SERIES = {
    "thp": Series(
        "Coverage of the largest programs, all hosts together", "lines", "share", _coverage()
    ),
    "no-2m": Series(
        "Page faults that got small pages, by host and time", "heat", "count",
        _steps_of("no_2m", "fallbacks"),
    ),
    "page-tables": Series("Page tables", "lines", "bytes", _sizes("page_tables")),
    "swap": Series("Swapped memory", "lines", "bytes", _swapped),
    "swap-hours": Series(
        "Pages swapped out, by host and time", "heat", "count", _steps_of("swap_hours", "pswpout")
    ),
    "compaction": Series(
        "Pages that compaction took to move them, by host and time", "heat", "count",
        _steps_of("compaction", "compact_isolated"),
    ),
    "fragmentation": Series(
        "Free memory in blocks of less than 2 MiB, by kernel", "lines", "share", _fragmented
    ),
    "leaks": Series("Resident and swapped memory", "lines", "bytes", _sizes("resident")),
    "thp-loss": Series("Coverage", "lines", "share", _coverage(*MACHINE)),
}  # fmt: skip
"""By the names of the questions. The questions `hosts` and `worst` have no plot."""
