# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions about programs, cgroups or processes."""

from __future__ import annotations

from typing import Any

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
    share,
)

MIN_LOSS = 0.2
MIN_ANON = 4 << 20
MIN_TABLE_GROWTH = 1 << 20
MIN_LEAK = 4 << 20
MIN_LEAK_STEPS = 6
LEAK_SHARE = 0.25
"""A leak grows by a quarter of its average or more with each step."""

Built = tuple[list[AnswerColumn], Any]


def thp(tables: Tables, options: Options) -> Built:
    """THP coverage by program; over time, if there is a `step`."""
    import ibis

    groups = tables.groups_of(options)
    keys = group_keys(options, *(MACHINE if options.by_host else ()))
    named = group_columns(options, *((HOST, MACHINE_ID) if options.by_host else ()))
    buckets = groups.group_by([*keys, bucket(groups, options)]).agg(
        anon_sum=groups.anon.sum(),
        huge_sum=groups.anon_huge.sum(),
        resident_sum=groups.resident.sum(),
        in_2m_sum=groups.in_2m.sum(),
        samples=groups.count(),
    )
    sums = {
        "anon": (buckets.anon_sum.sum() / buckets.samples.sum()).round().cast("int64"),
        "coverage": share(buckets.huge_sum.sum(), buckets.anon_sum.sum()),
        "contiguous": share(buckets.in_2m_sum.sum(), buckets.resident_sum.sum()),
    }
    columns = [
        AnswerColumn("anon", "bytes", "anonymous memory, the mean of all samples"),
        AnswerColumn("coverage", "share", "the part of it in huge pages"),
        AnswerColumn("contiguous", "share", "the part of resident memory in aligned 2 MiB"),
    ]
    if options.step is not None:
        answer = buckets.group_by([*keys, "at"]).agg(**sums)
        return [*named, AT, *columns], answer.order_by([*keys, "at"])
    buckets = buckets.mutate(hour_coverage=share(buckets.huge_sum, buckets.anon_sum))
    ranked = buckets.mutate(
        from_start=ibis.row_number().over(group_by=keys, order_by="at"),
        from_end=ibis.row_number().over(group_by=keys, order_by=ibis.desc("at")),
        from_lowest=ibis.row_number().over(group_by=keys, order_by=["hour_coverage", "at"]),
    )
    lowest = ranked.from_lowest == 0
    answer = ranked.group_by(keys).agg(
        **sums,
        first=ranked.hour_coverage.max(where=ranked.from_start == 0),
        last=ranked.hour_coverage.max(where=ranked.from_end == 0),
        lowest=ranked.hour_coverage.max(where=lowest),
        lowest_at=ranked["at"].max(where=lowest),
    )
    more = [
        AnswerColumn("first", "share", "coverage in the first step of time"),
        AnswerColumn("last", "share", "coverage in the last step"),
        AnswerColumn("lowest", "share", "coverage in the step with the least"),
        AnswerColumn("lowest_at", "time", "when that step began"),
    ]
    return [*named, *columns, *more], answer.order_by([ibis.desc("anon"), *keys])


def thp_loss(tables: Tables, options: Options) -> Built:
    """Programs whose coverage fell from one step of time to the next."""
    import ibis

    groups = tables.groups_of(options)
    keys = group_keys(options, *BOOT)
    buckets = groups.group_by([*keys, bucket(groups, options)]).agg(
        anon=groups.anon.mean().round().cast("int64"),
        coverage=share(groups.anon_huge.sum(), groups.anon.sum()),
        since_boot=groups.since_boot.min(),
    )
    window = ibis.window(group_by=keys, order_by="since_boot")
    falls = buckets.mutate(before=buckets.coverage.lag().over(window))
    falls = falls.mutate(fall=falls.before - falls.coverage)
    falls = falls.filter((falls.fall >= MIN_LOSS) & (falls.anon >= MIN_ANON))
    worst = ibis.row_number().over(group_by=keys, order_by=[ibis.desc("fall"), "at"])
    falls = falls.mutate(place=worst)
    falls = falls.filter(falls.place == 0).rename(after="coverage")
    columns = [
        *group_columns(options, HOST, MACHINE_ID),
        AT,
        AnswerColumn("anon", "bytes", "anonymous memory in this step"),
        AnswerColumn("before", "share", "the part in huge pages in the step before"),
        AnswerColumn("after", "share", "the part in this step"),
    ]
    return columns, falls.order_by([ibis.desc("fall"), *keys])


def page_tables(tables: Tables, options: Options) -> Built:
    """Programs whose page tables are larger in the last step of a boot than in the first."""
    import ibis

    groups = tables.groups_of(options)
    keys = group_keys(options, *BOOT)
    buckets = groups.group_by([*keys, bucket(groups, options)]).agg(
        size=groups.page_tables.min(),
        resident=groups.resident.mean(),
        since_boot=groups.since_boot.min(),
    )
    window = ibis.window(group_by=keys, order_by="since_boot")
    backwards = ibis.window(group_by=keys, order_by=ibis.desc("since_boot"))
    steps = buckets.mutate(
        step=buckets["size"] - buckets["size"].lag().over(window),
        from_start=ibis.row_number().over(window),
        from_end=ibis.row_number().over(backwards),
    )
    most = ibis.row_number().over(group_by=keys, order_by=[ibis.desc("step"), "at"])
    steps = steps.mutate(from_most=most)
    grown = steps.group_by(keys).agg(
        first=steps["size"].max(where=steps.from_start == 0),
        last=steps["size"].max(where=steps.from_end == 0),
        resident=steps.resident.max(where=steps.from_end == 0),
        days=(steps.since_boot.max() - steps.since_boot.min()) / 86400.0,
        most=steps.step.max(),
        most_at=steps["at"].max(where=steps.from_most == 0),
    )
    grown = grown.mutate(
        growth=grown["last"] - grown["first"],
        of_resident=grown["last"].cast("float64") / grown.resident.nullif(0),
    )
    grown = grown.mutate(per_day=(grown.growth / grown.days.nullif(0)).round().cast("int64"))
    grown = grown.filter(grown.growth >= MIN_TABLE_GROWTH)
    columns = [
        *group_columns(options, HOST, MACHINE_ID),
        AnswerColumn("first", "bytes", "page tables in the first step of time"),
        AnswerColumn("last", "bytes", "page tables in the last step"),
        AnswerColumn("growth", "bytes", "the difference"),
        AnswerColumn("per_day", "bytes", "the growth of a day"),
        AnswerColumn("of_resident", "share", "page tables by resident memory, in the last step"),
        AnswerColumn("most", "bytes", "the growth of the step in which they grew most"),
        AnswerColumn("most_at", "time", "when that step began"),
    ]
    return columns, grown.order_by([ibis.desc("growth"), *keys])


def swap(tables: Tables, options: Options) -> Built:
    """Programs with swapped memory."""
    import ibis

    groups = tables.groups_of(options)
    groups = groups.filter(groups.swapped > 0)
    keys = group_keys(options, *MACHINE)
    answer = groups.group_by(keys).agg(
        most=groups.swapped.max(),
        mean=groups.swapped.mean().round().cast("int64"),
        samples=groups.count(),
        since=groups.time.min(),
        until=groups.time.max(),
    )
    columns = [
        *group_columns(options, HOST, MACHINE_ID),
        AnswerColumn("most", "bytes", "the most that was swapped out at once"),
        AnswerColumn("mean", "bytes", "the mean of the samples with swapped memory"),
        AnswerColumn("samples", "count", "samples with swapped memory"),
        AnswerColumn("since", "time", "the first of these samples"),
        AnswerColumn("until", "time", "the last one"),
    ]
    return columns, answer.order_by([ibis.desc("most"), *keys])


def leaks(tables: Tables, options: Options) -> Built:
    """Programs whose memory grew steadily.

    The size in a step of time is the least of its samples: memory that a program gives back within
    the step does not count. A run is made of contiguous steps of time, each with more memory than
    the one before, by at least a quarter of the mean growth. So a run begins where the leak does.
    With `approx`, all sizes are the kernel's approximate ones, which are never stale: exact and
    approximate sizes are not mixed.
    """
    import ibis

    groups = tables.groups_of(options)
    keys = group_keys(options, *BOOT)
    memory = groups.resident + groups.swapped.fill_null(0)
    what = "resident and swapped memory"
    if options.approx:
        memory, what = groups.resident_approx, "resident memory by the kernel's counters"
    buckets = groups.group_by([*keys, bucket(groups, options)]).agg(
        size=memory.min(), since_boot=groups.since_boot.min()
    )
    window = ibis.window(group_by=keys, order_by="since_boot")
    steps = buckets.mutate(
        before=buckets["size"].lag().over(window),
        before_at=buckets["at"].lag().over(window),
        before_boot=buckets.since_boot.lag().over(window),
    )
    steps = steps.mutate(step=steps["size"] - steps.before)
    steps = steps.mutate(
        run=ibis.ifelse(steps.step > 0, 0, 1)
        .sum()
        .over(ibis.window(group_by=keys, order_by="since_boot", preceding=None, following=0))
    )
    steps = steps.filter(steps.step > 0)
    run_keys = [*keys, "run"]
    steps = steps.mutate(mean_step=steps.step.mean().over(group_by=run_keys))
    steps = steps.filter(steps.step >= steps.mean_step * LEAK_SHARE)
    runs = steps.group_by(run_keys).agg(
        first=steps.before.min(),
        last=steps["size"].max(),
        since=steps.before_at.min(),
        until=steps["at"].max(),
        steps=steps.count(),
        hours=(steps.since_boot.max() - steps.before_boot.min()) / 3600.0,
    )
    runs = runs.mutate(growth=runs["last"] - runs["first"])
    runs = runs.mutate(
        per_hour=(runs.growth / runs.hours.nullif(0)).round().cast("int64"),
        place=ibis.row_number().over(group_by=keys, order_by=[ibis.desc("growth"), "since"]),
    )
    runs = runs.filter(
        (runs.steps >= MIN_LEAK_STEPS)
        & (runs.growth >= MIN_LEAK)
        & (runs.growth * 10 >= runs["first"])
        & (runs.place == 0)
    )
    columns = [
        *group_columns(options, HOST, MACHINE_ID),
        AnswerColumn("since", "time", "the step of time in which it began to grow"),
        AnswerColumn("until", "time", "the last step in which it grew"),
        AnswerColumn("first", "bytes", f"{what} at first"),
        AnswerColumn("last", "bytes", "the same at last"),
        AnswerColumn("growth", "bytes", "the difference"),
        AnswerColumn("per_hour", "bytes", "the growth of an hour"),
    ]
    return columns, runs.order_by([ibis.desc("growth"), *keys])
