# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions about machines, their zones, and the values of any column."""

from __future__ import annotations

from typing import Any

from physview.errors import UsageError
from physview.fleet.answer import AnswerColumn
from physview.fleet.expressions import (
    AT,
    BOOT,
    HOST,
    MACHINE,
    MACHINE_ID,
    Options,
    Tables,
    bucket,
    group_columns,
    group_keys,
    rises,
    share,
)
from physview.fleet.views import COUNTERS, KnownColumn, number_columns
from physview.text.nearest import offer

MIN_ZONE = 64 << 20
"""Smaller zones, as ZONE_DMA of x86, are kept for devices: their free blocks serve nobody else."""
MIN_JUMP = 5.0
"""Seconds by which a clock may be set without being counted."""

Built = tuple[list[AnswerColumn], Any]


def hosts(tables: Tables, options: Options) -> Built:
    """The machines that were recorded."""
    import ibis

    machine = tables.machine
    window = ibis.window(group_by=list(BOOT), order_by="since_boot")
    seconds = machine.time.epoch_seconds()
    drift = (seconds - seconds.lag().over(window)) - (
        machine.since_boot - machine.since_boot.lag().over(window)
    )
    stepped = machine.mutate(jump=(drift.abs() > MIN_JUMP).cast("int64").fill_null(0))
    last = ibis.row_number().over(
        group_by=list(MACHINE), order_by=[ibis.desc("time"), ibis.desc("since_boot")]
    )
    stepped = stepped.mutate(from_end=last)
    answer = stepped.group_by(list(MACHINE)).agg(
        first=stepped.time.min(),
        last=stepped.time.max(),
        samples=stepped.count(),
        lost=(stepped.skipped.fill_null(0) + stepped.lost.fill_null(0)).sum(),
        boots=stepped.boot.nunique(),
        kernels=stepped.kernel.nunique(),
        kernel=stepped.kernel.max(where=stepped.from_end == 0),
        jumps=stepped.jump.sum(),
        cost=share(stepped.cost.sum(), stepped.interval.sum()),
        unread=unread_share(stepped),
    )
    columns = [
        HOST,
        MACHINE_ID,
        AnswerColumn("first", "time", "the first sample"),
        AnswerColumn("last", "time", "the last one"),
        AnswerColumn("samples", "count", "how many there are"),
        AnswerColumn("lost", "count", "samples that were skipped or lost"),
        AnswerColumn("boots", "count", "how many boots were recorded"),
        AnswerColumn("kernels", "count", "how many versions of the kernel"),
        AnswerColumn("kernel", "text", "the kernel of the last sample"),
        AnswerColumn("jumps", "count", "how often the clock jumped"),
        AnswerColumn("cost", "share", "the recorder's part of a processor"),
        AnswerColumn("unread", "share", "processes with old values or none, for the budget"),
    ]
    return columns, answer.order_by(list(MACHINE))


def unread_share(machine: Any) -> Any:
    """Of all processes in all samples, those with old values or none, for the budget."""
    unread = machine.nr_unread.fill_null(0) + machine.nr_stale.fill_null(0)
    return share(unread.sum(), machine.nr_processes.sum())


def no_2m(tables: Tables, options: Options) -> Built:
    """Steps of time in which a page of 2 MiB could not be had."""
    zones = tables.zones.filter(tables.zones.managed >= MIN_ZONE)
    samples = zones.group_by([*BOOT, "time", "since_boot"]).agg(usable=zones.usable_2m.sum())
    found = samples.group_by([*MACHINE, bucket(samples, options)]).agg(
        samples=samples.count(),
        without=samples.count(where=samples.usable == 0),
        least=samples.usable.min(),
    )
    names = ["thp_fault_fallback", "compact_fail"]
    counted = rises(tables.machine, names, options)
    both = found.outer_join(counted, [*MACHINE, "at"], rname="{name}_other")
    answer = both.select(
        **{name: both[name].coalesce(both[f"{name}_other"]) for name in (*MACHINE, "at")},
        samples=both.samples.fill_null(0),
        without=both.without.fill_null(0),
        least=both.least,
        fallbacks=both.thp_fault_fallback.fill_null(0),
        failures=both.compact_fail.fill_null(0),
    )
    answer = answer.filter((answer.without > 0) | (answer.fallbacks > 0))
    columns = [
        HOST,
        MACHINE_ID,
        AT,
        AnswerColumn("samples", "count", "samples of this step"),
        AnswerColumn("without", "count", "those without a free block of 2 MiB"),
        AnswerColumn("least", "bytes", "the least free memory in blocks of 2 MiB or more"),
        AnswerColumn("fallbacks", "count", "page faults that got small pages (thp_fault_fallback)"),
        AnswerColumn("failures", "count", "compactions that failed (compact_fail)"),
    ]
    order = [answer.without.desc(), answer.fallbacks.desc(), *(answer[n] for n in (*MACHINE, "at"))]
    return columns, answer.order_by(order)


def swap_hours(tables: Tables, options: Options) -> Built:
    """Steps of time in which pages went to swap or came from there."""
    meanings = {
        "pswpout": "pages that were swapped out",
        "pswpin": "pages that were swapped in",
        "pgmajfault": "page faults with a read from disk",
    }
    swapped = ("pswpout", "pswpin")
    return _steps_with(tables, options, meanings, swapped, swapped)


def compaction(tables: Tables, options: Options) -> Built:
    """Steps of time in which the kernel moved pages to make larger free blocks."""
    meanings = {
        "compact_isolated": "pages that compaction took to move them",
        "pgmigrate_success": "pages that were moved, for any reason",
        "compact_stall": "allocations that had to compact memory first",
        "compact_fail": "those that then did not get their memory",
    }
    risen = ("compact_isolated", "compact_stall")
    return _steps_with(tables, options, meanings, risen, ("compact_isolated",))


def _steps_with(
    tables: Tables,
    options: Options,
    meanings: dict[str, str],
    risen: tuple[str, str],
    order: tuple[str, ...],
) -> Built:
    """Steps of time in which counters of the machine rose.

    Args:
        tables, options: As for all questions.
        meanings: The counters to show, and what they count.
        risen: One of these has to have risen.
        order: The counters whose largest rise comes first.
    """
    import ibis

    answer = rises(tables.machine, [*meanings], options)
    one, other = risen
    answer = answer.filter((answer[one] > 0) | (answer[other] > 0))
    counted = [AnswerColumn(name, "count", meaning) for name, meaning in meanings.items()]
    return [HOST, MACHINE_ID, AT, *counted], answer.order_by(
        [*map(ibis.desc, order), *MACHINE, "at"]
    )


def fragmentation(tables: Tables, options: Options) -> Built:
    """The unusable free index of order 2 MiB by kernel, and how it differs from the one before."""
    import ibis

    zones = tables.zones.filter(tables.zones.managed >= MIN_ZONE)
    before = list(MACHINE) if options.by_host else []
    samples = zones.group_by([*BOOT, "kernel", "time", "since_boot"]).agg(
        free=zones.free.sum(), usable=zones.usable_2m.sum()
    )
    answer = samples.group_by([*before, "kernel"]).agg(
        hosts=samples.machine.nunique(),
        since=samples.time.min(),
        days_up=samples.since_boot.mean() / 86400.0,
        free=samples.free.mean().round().cast("int64"),
        fragmented=1 - share(samples.usable.sum(), samples.free.sum()),
        without=share(samples.count(where=samples.usable == 0), samples.count()),
    )
    window = ibis.window(group_by=before or None, order_by=["since", "kernel"])
    answer = answer.mutate(
        change=answer.fragmented - answer.fragmented.lag().over(window),
    )
    columns = [
        *((HOST, MACHINE_ID) if options.by_host else ()),
        AnswerColumn("kernel", "text", "the version of the kernel"),
        *(() if options.by_host else (AnswerColumn("hosts", "count", "machines that ran it"),)),
        AnswerColumn("since", "time", "the first sample with it"),
        AnswerColumn("days_up", "number", "mean time since the boot, in days"),
        AnswerColumn("free", "bytes", "free memory, the mean of all samples"),
        AnswerColumn("fragmented", "share", "the part of it in blocks of less than 2 MiB"),
        AnswerColumn("change", "change", "against the kernel before"),
        AnswerColumn("without", "share", "samples without a free block of 2 MiB"),
    ]
    if options.by_host:
        order = [answer.change.desc(nulls_first=False), *(answer[n] for n in (*MACHINE, "since"))]
        return columns, answer.order_by(order)
    return columns, answer.order_by(["since", "kernel"])


def worst(tables: Tables, options: Options) -> Built:
    """The largest (or smallest) values of a column. A counter counts by its rise in a step."""
    import ibis

    known = _known_column(options.column)
    name = known.column.name
    if known.table == "groups":
        table = tables.groups_of(options)
        keys, named = group_keys(options, *MACHINE), group_columns(options, HOST, MACHINE_ID)
    elif known.table == "zones":
        table = tables.zones
        keys = [*MACHINE, "node", "zone"]
        node = AnswerColumn("node", "number", "the NUMA node")
        named = [HOST, MACHINE_ID, node, AnswerColumn("zone", "text", "the zone")]
    else:
        table = tables.machine
        keys, named = list(MACHINE), [HOST, MACHINE_ID]
    value = table[name]
    if name in COUNTERS:
        buckets = table.group_by([*keys, "boot", bucket(table, options)]).agg(
            value=value.max() - value.min()
        )
    else:
        best = value.min() if options.lowest else value.max()
        buckets = table.group_by([*keys, bucket(table, options)]).agg(value=best)
    buckets = buckets.filter(buckets.value.notnull())
    order = [buckets.value if options.lowest else buckets.value.desc(), buckets["at"]]
    places = buckets.mutate(place=ibis.row_number().over(group_by=keys, order_by=order))
    answer = places.filter(places.place == 0)
    if answer.value.type().is_integer():
        answer = answer.mutate(value=answer.value.cast("int64"))
    unit = known.column.unit
    kind = {"bytes": "bytes", "count": "count"}.get(unit, "number")
    what = f"{known.table}.{name}: {known.column.meaning}" + (f" ({unit})" if unit else "")
    if name in COUNTERS:
        what += "; the rise within the time"
    columns = [*named, AnswerColumn("value", kind, what), AT]
    first = answer.value if options.lowest else answer.value.desc()
    return columns, answer.order_by([first, *(answer[key] for key in keys)])


_USUAL = ("resident", "zones.free")


def _known_column(name: str | None) -> KnownColumn:
    known = number_columns()
    if name is None:
        raise UsageError("worst needs a column", "", "name one, such as resident or zones.free")
    if name not in known:
        short = [*_USUAL, *(each for each in known if "." not in each)]
        what = f"there is no column '{name}' with numbers"
        raise UsageError(what, "", offer(name, short, "--sql 'DESCRIBE groups' (zones, machine)"))
    return known[name]
