# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions find what was planted, where and when it was, in a dataset as record writes it."""

import json
from datetime import datetime, timedelta, timezone

import duckdb
import fleets
import pyarrow.parquet as pq
import pytest

from physview.fleet import questions
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.expressions import Options, open_tables

HOUR = timedelta(hours=1)
DAY = datetime(2026, 1, 5, tzinfo=timezone.utc)


def test_a_leak_is_found_with_its_first_and_last_hour(fleet_engine, planted):
    event, start, end = planted("leak")
    (row,) = fleets.ask(fleet_engine, "leaks")
    assert (row["host"], row["name"]) == (event["host"], event["program"])
    assert start - HOUR <= row["since"] <= start
    assert row["until"] == end - HOUR
    assert row["growth"] == row["last"] - row["first"] > row["first"]
    assert row["per_hour"] == pytest.approx(row["growth"] / 28, rel=0.1)


def replace(path, column, values):
    """Replace a column of a file."""
    rows = pq.read_table(path, partitioning=None)
    at = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(at, rows.schema.field(at), values), path)


def test_a_leak_that_the_budget_hides_is_found_by_the_kernels_own_counters(
    fleet_copy, planted, physview
):
    """record reads each process once in four hours, and takes its size from the kernel always."""
    event, start, _ = planted("leak")
    for path in fleets.parts(fleet_copy):
        rows = pq.read_table(path, partitioning=None)
        width = fleets.SMALL.programs
        first = [at // width // 48 * 48 * width + at % width for at in range(len(rows))]
        replace(path, "resident", rows["resident"].take(first))
    for path in fleets.parts(fleet_copy, "machine"):
        replace(path, "nr_stale", pq.read_table(path, partitioning=None)["nr_processes"])
    exact = physview("fleet", str(fleet_copy), "leaks", "--format", "jsonl")
    assert exact.stdout == ""
    assert "100% of the processes had changed and were not read" in exact.stderr
    assert "--approx takes the kernel's own counters" in exact.stderr
    approx = physview("fleet", str(fleet_copy), "leaks", "--approx", "--format", "jsonl")
    row = json.loads(approx.stdout)
    assert (row["host"], row["name"], approx.stderr) == (event["host"], event["program"], "")
    assert start - HOUR <= datetime.fromisoformat(row["since"].replace("Z", "+00:00")) <= start
    (unread, _) = fleets.ask_duckdb(fleet_copy, "hosts")
    assert unread["unread"] == 1


def test_a_lost_coverage_is_found_in_its_hour(fleet_engine, planted):
    event, start, _ = planted("thp-loss")
    (row,) = fleets.ask(fleet_engine, "thp-loss")
    assert (row["host"], row["name"], row["at"]) == (event["host"], event["program"], start)
    assert row["before"] > 0.3
    assert row["after"] < 0.05


def test_coverage_by_program_is_that_of_sql(fleet_engine):
    rows = fleets.ask(fleet_engine, "thp")
    told = fleet_engine.sql(
        "SELECT name, sum(anon_huge) / sum(anon), sum(in_2m) / sum(resident), round(avg(anon))"
        " FROM groups GROUP BY name ORDER BY avg(anon) DESC"
    ).rows
    for row, (name, coverage, contiguous, anon) in zip(rows, told, strict=True):
        assert (row["name"], row["anon"]) == (name, anon)
        assert row["coverage"] == pytest.approx(coverage)
        assert row["contiguous"] == pytest.approx(contiguous)
        assert row["lowest"] <= min(row["first"], row["last"])
    days = fleets.ask(fleet_engine, "thp", step="day", by_host=True)
    assert len(days) == 9 * len(rows) * 2
    assert {row["at"] for row in days} == {DAY, DAY + 24 * HOUR}


def test_hours_without_a_huge_page_are_found(fleet_engine, planted):
    event, start, end = planted("no-2m")
    rows = fleets.ask(fleet_engine, "no-2m")
    assert {row["host"] for row in rows} == {event["host"]}
    assert sorted(row["at"] for row in rows) == [
        start + n * HOUR for n in range((end - start) // HOUR)
    ]
    assert all(row["samples"] == row["without"] == 12 and row["least"] == 0 for row in rows)
    assert all(row["fallbacks"] > 100 and row["failures"] > 100 for row in rows)


def test_growing_page_tables_are_found(fleet_engine, planted):
    event, start, _ = planted("page-tables")
    rows = fleets.ask(fleet_engine, "page-tables")
    # The host reboots meanwhile, and each boot stands for itself.
    assert {(row["host"], row["name"]) for row in rows} == {(event["host"], event["program"])}
    assert len(rows) == 2
    assert all(row["growth"] == row["last"] - row["first"] > 1 << 20 for row in rows)
    assert all(row["most_at"] >= start for row in rows)


def test_who_swaps_is_found_from_the_first_to_the_last_sample(fleet_engine, planted):
    event, start, end = planted("swap")
    (row,) = fleets.ask(fleet_engine, "swap")
    assert (row["host"], row["name"]) == (event["host"], event["program"])
    assert (row["since"], row["until"]) == (start, end - timedelta(minutes=5))
    hours = fleets.ask(fleet_engine, "swap-hours")
    assert {hour["host"] for hour in hours} == {event["host"]}
    assert {hour["at"] for hour in hours} == {
        start + n * HOUR for n in range((end - start) // HOUR)
    }


def test_compaction_is_counted_by_host_and_hour(fleet_engine):
    rows = fleets.ask(fleet_engine, "compaction")
    (told,) = fleet_engine.sql(
        "SELECT sum(rise) FROM (SELECT compact_isolated - lag(compact_isolated) OVER"
        " (PARTITION BY host, boot ORDER BY since_boot) AS rise FROM machine)"
    ).rows
    assert sum(row["compact_isolated"] for row in rows) == told[0] > 0
    assert rows[0]["compact_isolated"] == max(row["compact_isolated"] for row in rows)


def test_of_a_short_time_a_step_has_five_minutes(fleet_made, planted):
    _, start, _ = planted("thp-loss")
    selection = Selection(since=start - 2 * HOUR, until=start + HOUR)
    dataset = Dataset(str(fleet_made[0]), selection)
    with DuckDbEngine(dataset) as engine:
        step = questions.usual_step(engine, dataset, open_tables())
        (row,) = fleets.ask(engine, "thp-loss", usual_step=step)
        hours = fleets.ask(engine, "thp-loss", step="hour")
        steps = fleets.ask(engine, "thp", step=step)
    assert step == "5min"
    assert (row["at"], hours[0]["at"]) == (start, start)
    assert {each["at"].minute for each in steps} == set(range(0, 60, 5))
    assert {each["at"].second for each in steps} == {0}


def test_a_kernel_that_fragments_memory_is_found(fleet_engine, fleet_made):
    before, after = fleets.ask(fleet_engine, "fragmentation")
    assert (before["kernel"], after["kernel"]) == ("6.12.9", "6.18.2")
    assert after["change"] == pytest.approx(after["fragmented"] - before["fragmented"])
    assert after["change"] > 0.4
    events = list(fleets.iter_events(fleet_made[1], "kernel"))
    assert after["hosts"] == len(events) == 3
    assert after["since"] == datetime.fromisoformat(events[0]["from"])
    rows = fleets.ask(fleet_engine, "fragmentation", by_host=True)
    worse = [row["host"] for row in rows if (row["change"] or 0) > 0.4]
    assert worse == [row["host"] for row in rows[:3]]
    assert sorted(worse) == sorted(event["host"] for event in events)


def test_hosts_of_one_name_reboots_and_clock_jumps_are_told(fleet_engine):
    rows = fleets.ask(fleet_engine, "hosts")
    assert [row["host"] for row in rows[-2:]] == ["node-007", "node-007"]
    assert rows[-1]["machine"] != rows[-2]["machine"]
    assert fleet_engine.twins == {"node-007"}
    assert {row["host"]: row["jumps"] for row in rows if row["jumps"]} == {"node-006": 2}
    assert [row["boots"] for row in rows] == [2, 1, 1, 1, 2, 1, 1, 1, 2] or len(rows) == 9
    assert sum(row["boots"] for row in rows) == 12
    assert all(row["samples"] == 576 for row in rows)


@pytest.mark.parametrize(
    ("column", "lowest", "sql"),
    [
        ("resident", False, "SELECT max(resident) FROM groups"),
        ("machine.available", True, "SELECT min(available) FROM machine"),
        ("usable_2m", True, "SELECT min(usable_2m) FROM zones"),
        ("zones.free", False, "SELECT max(free) FROM zones"),
        ("age", False, "SELECT max(age) FROM groups"),
    ],
)
def test_the_worst_of_a_column_is_that_of_sql(fleet_engine, column, lowest, sql):
    rows = fleets.ask(fleet_engine, "worst", column=column, lowest=lowest)
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=not lowest)
    assert [(values[0],)] == list(fleet_engine.sql(sql).rows)
    assert len(
        {tuple(row[key] for key in row if key not in ("value", "at")) for row in rows}
    ) == len(rows)


def test_a_counter_counts_by_its_rise(fleet_engine, planted):
    event, start, end = planted("swap")
    row = fleets.ask(fleet_engine, "worst", column="pswpout")[0]
    assert row["host"] == event["host"]
    assert start <= row["at"] < end
    assert row["value"] < fleets.ask(fleet_engine, "swap-hours")[0]["pswpout"] * 1.01


def test_every_question_has_its_options_and_plots():
    for question in questions.QUESTIONS.values():
        columns, expression = questions.build(
            question,
            open_tables(),
            Options(column="resident" if question.name == "worst" else None),
        )
        assert [column.name for column in columns] == list(expression.columns)
        assert all(column.meaning for column in columns)
    assert duckdb.__version__
