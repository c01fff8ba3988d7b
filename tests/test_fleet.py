# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions find what was planted, where and when it was, in a dataset as record writes it."""

import csv
import io
import json
import os
import shutil
import signal
import threading
from datetime import datetime, timedelta, timezone

import duckdb
import fleets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failures import one_line
from users import AS_NOBODY

from physview.errors import PhysviewError, UsageError
from physview.fleet import questions
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.engine import FilesChanged
from physview.fleet.expressions import Options, open_tables
from physview.recording import schema

HOUR = timedelta(hours=1)
DAY = datetime(2026, 1, 5, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A fleet of nine hosts, and what was planted in it."""
    folder = tmp_path_factory.mktemp("fleet") / "it's a fleet"
    return folder, fleets.make(folder)


@pytest.fixture(scope="module")
def engine(made):
    with DuckDbEngine(Dataset(str(made[0]), Selection())) as engine:
        engine.open_tables()
        yield engine


@pytest.fixture
def planted(made):
    """The only event of a kind, and its beginning and end."""

    def find(kind):
        (event,) = fleets.iter_events(made[1], kind)
        return event, *(datetime.fromisoformat(event[name]) for name in ("from", "until"))

    return find


@pytest.fixture
def copy(made, tmp_path):
    """A copy of two hosts of the fleet, to damage."""
    for table in schema.TABLES:
        for host in ("node-001", "node-005"):
            shutil.copytree(made[0] / table / f"host={host}", tmp_path / table / f"host={host}")
    return tmp_path


def test_a_leak_is_found_with_its_first_and_last_hour(engine, planted):
    event, start, end = planted("leak")
    (row,) = fleets.ask(engine, "leaks")
    assert (row["host"], row["name"]) == (event["host"], event["program"])
    assert start - HOUR <= row["since"] <= start
    assert row["until"] == end - HOUR
    assert row["growth"] == row["last"] - row["first"] > row["first"]
    assert row["per_hour"] == pytest.approx(row["growth"] / 28, rel=0.1)


def test_a_lost_coverage_is_found_in_its_hour(engine, planted):
    event, start, _ = planted("thp-loss")
    (row,) = fleets.ask(engine, "thp-loss")
    assert (row["host"], row["name"], row["at"]) == (event["host"], event["program"], start)
    assert row["before"] > 0.3
    assert row["after"] < 0.05


def test_coverage_by_program_is_that_of_sql(engine):
    rows = fleets.ask(engine, "thp")
    told = engine.sql(
        "SELECT name, sum(anon_huge) / sum(anon), sum(in_2m) / sum(resident), round(avg(anon))"
        " FROM groups GROUP BY name ORDER BY avg(anon) DESC"
    ).rows
    for row, (name, coverage, contiguous, anon) in zip(rows, told, strict=True):
        assert (row["name"], row["anon"]) == (name, anon)
        assert row["coverage"] == pytest.approx(coverage)
        assert row["contiguous"] == pytest.approx(contiguous)
        assert row["lowest"] <= min(row["first"], row["last"])
    days = fleets.ask(engine, "thp", step="day", by_host=True)
    assert len(days) == 9 * len(rows) * 2
    assert {row["at"] for row in days} == {DAY, DAY + 24 * HOUR}


def test_hours_without_a_huge_page_are_found(engine, planted):
    event, start, end = planted("no-2m")
    rows = fleets.ask(engine, "no-2m")
    assert {row["host"] for row in rows} == {event["host"]}
    assert sorted(row["at"] for row in rows) == [
        start + n * HOUR for n in range((end - start) // HOUR)
    ]
    assert all(row["samples"] == row["without"] == 12 and row["least"] == 0 for row in rows)
    assert all(row["fallbacks"] > 100 and row["failures"] > 100 for row in rows)


def test_growing_page_tables_are_found(engine, planted):
    event, start, _ = planted("page-tables")
    rows = fleets.ask(engine, "page-tables")
    # The host reboots meanwhile, and each boot stands for itself.
    assert {(row["host"], row["name"]) for row in rows} == {(event["host"], event["program"])}
    assert len(rows) == 2
    assert all(row["growth"] == row["last"] - row["first"] > 1 << 20 for row in rows)
    assert all(row["most_at"] >= start for row in rows)


def test_who_swaps_is_found_from_the_first_to_the_last_sample(engine, planted):
    event, start, end = planted("swap")
    (row,) = fleets.ask(engine, "swap")
    assert (row["host"], row["name"]) == (event["host"], event["program"])
    assert (row["since"], row["until"]) == (start, end - timedelta(minutes=5))
    hours = fleets.ask(engine, "swap-hours")
    assert {hour["host"] for hour in hours} == {event["host"]}
    assert {hour["at"] for hour in hours} == {
        start + n * HOUR for n in range((end - start) // HOUR)
    }


def test_compaction_is_counted_by_host_and_hour(engine):
    rows = fleets.ask(engine, "compaction")
    (told,) = engine.sql(
        "SELECT sum(rise) FROM (SELECT compact_isolated - lag(compact_isolated) OVER"
        " (PARTITION BY host, boot ORDER BY since_boot) AS rise FROM machine)"
    ).rows
    assert sum(row["compact_isolated"] for row in rows) == told[0] > 0
    assert rows[0]["compact_isolated"] == max(row["compact_isolated"] for row in rows)


def test_of_a_short_time_a_step_has_five_minutes(made, planted):
    _, start, _ = planted("thp-loss")
    selection = Selection(since=start - 2 * HOUR, until=start + HOUR)
    dataset = Dataset(str(made[0]), selection)
    with DuckDbEngine(dataset) as engine:
        step = questions.usual_step(engine, dataset, open_tables())
        (row,) = fleets.ask(engine, "thp-loss", usual_step=step)
        hours = fleets.ask(engine, "thp-loss", step="hour")
        steps = fleets.ask(engine, "thp", step=step)
    assert step == "5min"
    assert (row["at"], hours[0]["at"]) == (start, start)
    assert {each["at"].minute for each in steps} == set(range(0, 60, 5))
    assert {each["at"].second for each in steps} == {0}


def test_the_step_is_told(made, planted, physview):
    _, start, _ = planted("thp-loss")
    words = ("fleet", made[0], "thp-loss", "--since", (start - HOUR).isoformat())
    short = physview(*words, "--until", (start + HOUR).isoformat()).stdout
    assert "A step is 5 minutes." in short
    assert "A step is an hour." in physview(*words).stdout


def test_a_kernel_that_fragments_memory_is_found(engine, made):
    before, after = fleets.ask(engine, "fragmentation")
    assert (before["kernel"], after["kernel"]) == ("6.12.9", "6.18.2")
    assert after["change"] == pytest.approx(after["fragmented"] - before["fragmented"])
    assert after["change"] > 0.4
    events = list(fleets.iter_events(made[1], "kernel"))
    assert after["hosts"] == len(events) == 3
    assert after["since"] == datetime.fromisoformat(events[0]["from"])
    rows = fleets.ask(engine, "fragmentation", by_host=True)
    worse = [row["host"] for row in rows if (row["change"] or 0) > 0.4]
    assert worse == [row["host"] for row in rows[:3]]
    assert sorted(worse) == sorted(event["host"] for event in events)


def test_hosts_of_one_name_reboots_and_clock_jumps_are_told(engine):
    rows = fleets.ask(engine, "hosts")
    assert [row["host"] for row in rows[-2:]] == ["node-007", "node-007"]
    assert rows[-1]["machine"] != rows[-2]["machine"]
    assert engine.twins == {"node-007"}
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
def test_the_worst_of_a_column_is_that_of_sql(engine, column, lowest, sql):
    rows = fleets.ask(engine, "worst", column=column, lowest=lowest)
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=not lowest)
    assert [(values[0],)] == list(engine.sql(sql).rows)
    assert len(
        {tuple(row[key] for key in row if key not in ("value", "at")) for row in rows}
    ) == len(rows)


def test_a_counter_counts_by_its_rise(engine, planted):
    event, start, end = planted("swap")
    row = fleets.ask(engine, "worst", column="pswpout")[0]
    assert row["host"] == event["host"]
    assert start <= row["at"] < end
    assert row["value"] < fleets.ask(engine, "swap-hours")[0]["pswpout"] * 1.01


def test_only_files_of_the_hosts_and_days_are_read(made):
    folder = str(made[0])
    moment = DAY + 30 * HOUR
    chosen = Dataset(folder, Selection("node-00[12]", DAY + 48 * HOUR, None)).files("groups")
    assert {path.split("/")[-3] for path in chosen} == {"host=node-001", "host=node-002"}
    # A file may go on after midnight, so the day before is read, too.
    assert {path.split("/")[-2] for path in chosen} == {"date=2026-01-06"}
    with DuckDbEngine(Dataset(folder, Selection("*", moment, moment + HOUR))) as engine:
        ((nr, first, last),) = engine.sql("SELECT count(*), min(time), max(time) FROM machine").rows
        assert (first, last) == (moment, moment + 55 * timedelta(minutes=1))
        assert nr == 12 * 9


def test_files_that_are_being_written_are_not_seen(copy, physview):
    folder = fleets.parts(copy, "machine", "node-001")[0].parent
    (folder / ".part-1.parquet").write_bytes(b"PAR1")
    (folder / "_part-1.parquet").write_bytes(b"PAR1")
    (folder / "part-1.parquet.tmp").write_bytes(b"PAR1")
    assert len(fleets.ask_duckdb(copy, "hosts")) == 2


def test_damaged_files_are_named_and_left_out(copy, physview):
    good, bad = fleets.parts(copy, "machine", "node-001")
    bad.write_bytes(bad.read_bytes()[:-9])
    os.mkfifo(good.parent / "pipe.parquet")
    (good.parent / "empty.parquet").touch()
    result = physview("fleet", str(copy), "hosts", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 1
    assert sorted(error["asked"] for error in document["errors"]) == sorted(
        [str(bad), str(good.parent / "pipe.parquet"), str(good.parent / "empty.parquet")]
    )
    assert [row["samples"] for row in document["rows"]] == [288, 576]


def test_a_file_with_a_damaged_inside_is_one_line(copy, physview):
    path = fleets.parts(copy, "machine", "node-001")[0]
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * (len(data) - 8) + b"PAR1")
    assert "cannot read the dataset" in one_line(physview("fleet", str(copy), "hosts"), 1)


def test_a_later_schema_is_refused_in_one_line(copy, physview):
    fleets.rewritten(fleets.parts(copy, "zones")[1], **{"physview.schema": "2"})
    said = one_line(physview("fleet", str(copy), "fragmentation"), 1)
    assert f"version 2, and this physview knows {schema.VERSION}; update physview" in said


def test_a_foreign_file_is_refused_in_one_line(copy, physview):
    place = fleets.parts(copy, "machine")[0].parent / "part-0.parquet"
    pq.write_table(pa.table({"time": [1]}), place)
    assert "record did not write it" in one_line(physview("fleet", str(copy), "hosts"), 1)


def test_missing_columns_are_null_and_unknown_ones_stay(copy):
    for path in fleets.parts(copy, "machine"):
        table = pq.read_table(path, partitioning=None)
        table = table.drop_columns(["skipped", "lost", "kernel", "pswpin"])
        pq.write_table(table.append_column('of "later"', pa.array(["x"] * len(table))), path)
    shutil.rmtree(copy / "zones")
    assert [row["kernel"] for row in fleets.ask_duckdb(copy, "hosts")] == [None, None]
    assert fleets.ask_duckdb(copy, "fragmentation") == []
    with DuckDbEngine(Dataset(str(copy), Selection())) as engine:
        (row,) = engine.sql(
            'SELECT DISTINCT "of ""later""", pswpin, host FROM machine LIMIT 1'
        ).rows
        assert row[:2] == ("x", None)


def test_null_values_do_no_harm(copy):
    """A kernel without THP has no counters of it; a group without a name joins all small ones."""
    for table in schema.TABLES:
        for path in fleets.parts(copy, table):
            rows = pq.read_table(path, partitioning=None)
            kept = {*(column.name for column in schema.MOMENT), "by", "zone", "node", "resident"}
            for at, field in enumerate(rows.schema):
                if field.name not in kept:
                    rows = rows.set_column(at, field, pa.nulls(len(rows), field.type))
            pq.write_table(rows, path)
    with DuckDbEngine(Dataset(str(copy), Selection())) as engine:
        for name in questions.QUESTIONS:
            rows = fleets.ask(engine, name, column="resident" if name == "worst" else None)
            assert rows or name not in ("hosts", "thp", "worst"), name
        assert {row["name"] for row in fleets.ask(engine, "thp")} == {"(all others)"}


def test_files_that_record_removes_meanwhile_are_told_apart(copy):
    dataset = Dataset(str(copy), Selection())
    assert dataset.files("groups")
    fleets.parts(copy)[0].unlink()
    with DuckDbEngine(dataset) as engine, pytest.raises(FilesChanged):
        engine.open_tables()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{outside}')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_csv('http://127.0.0.1:1/')",
        "COPY groups TO '{inside}'",
        "COPY (SELECT 1) TO '{outside}'",
        "ATTACH '{inside}' AS other",
        "INSTALL httpfs",
        "LOAD '{outside}'",
        "SET enable_external_access = true",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY groups TO '{inside}'",
        "CREATE TABLE t AS SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "PRAGMA database_list",
        "",
    ],
)
def test_sql_reads_the_dataset_and_nothing_else(made, engine, tmp_path, sql):
    outside = tmp_path / "secret.parquet"
    outside.write_text("secret")
    before = sorted(map(str, made[0].rglob("*")))
    with pytest.raises(UsageError) as caught:
        engine.sql(
            sql.format(outside=outside, inside=str(made[0] / "new").replace("'", "''"))
        ).collect()
    assert "\n" not in str(caught.value)
    assert sorted(map(str, made[0].rglob("*"))) == before
    assert os.listdir(tmp_path) == ["secret.parquet"]


def test_values_of_sql_are_plain(engine):
    wide = engine.sql("SELECT 1 AS a, 2 AS a, [1.5, NULL], {'x': 1}, 'nan'::double, 3::hugeint")
    assert [column.name for column in wide.columns][:2] == ["a", "a_2"]
    assert list(wide.rows) == [(1, 2, [1.5, None], {"x": 1}, None, 3)]


def test_an_interrupted_question_ends_as_others_do(made):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    try:
        _interrupt(made[0])
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(folder):
    endless = "SELECT count(*) FROM range(100000000000) t(i) WHERE sin(i) > 2"
    with DuckDbEngine(Dataset(str(folder), Selection())) as own:
        own.open_tables()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            own.sql(endless).collect()


def test_memory_is_bounded(made):
    with (
        DuckDbEngine(Dataset(str(made[0]), Selection()), memory=3) as small,
        pytest.raises(PhysviewError, match="give more with --memory"),
    ):
        fleets.ask(small, "leaks")
    with DuckDbEngine(Dataset(str(made[0]), Selection())) as engine:
        (row,) = engine.sql(
            "SELECT current_setting('threads'), current_setting('memory_limit')"
        ).rows
        assert row == (2, "600.0 MiB")


def test_the_forms_of_output_have_the_same_rows(made, physview):
    arguments = ["fleet", str(made[0]), "worst", "resident", "--top", "3"]
    document = json.loads(physview(*arguments, "--json").stdout)
    assert document["columns"] == list(document["rows"][0])
    lines = physview(*arguments, "--format", "jsonl").stdout.splitlines()
    assert list(map(json.loads, lines)) == document["rows"]
    read = csv.DictReader(io.StringIO(physview(*arguments, "--format", "csv").stdout))
    texts = [{name: str(value) for name, value in row.items()} for row in document["rows"]]
    assert list(read) == texts
    shown = physview(*arguments, "--bytes").stdout.splitlines()[-3:]
    for line, row in zip(shown, document["rows"], strict=True):
        assert row["host"] in line
        assert f" {row['value']} " in line
        assert row["machine"][:8] in line  # two hosts of the fleet have one name
    alone = physview(*arguments, "--hosts", "node-00[1-3]").stdout
    assert document["rows"][0]["machine"][:8] not in alone


def test_sql_as_a_table(made, physview):
    sql = "SELECT host, count(*) AS nr_rows FROM groups GROUP BY ALL ORDER BY ALL LIMIT 2"
    lines = physview("fleet", str(made[0]), "--sql", sql).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["host", "nr_rows"],
        ["node-000", "3456"],
        ["node-001", "3456"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["leek"], 2, "do you mean leaks?"),
        ([], 2, "no question is asked"),
        (["hosts", "--sql", "SELECT 1"], 2, "exclude each other"),
        (["worst"], 2, "worst needs a column"),
        (["worst", "residnt"], 2, "do you mean resident or present? --sql 'DESCRIBE groups' (z"),
        (["worst", "nosuch"], 2, "choose one such as resident or zones.free; --sql 'DESCRIBE gro"),
        (["worst", "fault"], 2, "do you mean pgfault or"),
        (["worst", "kernel"], 2, "no column 'kernel' with numbers"),
        (["hosts", "resident"], 2, "COLUMN does not apply to hosts"),
        (["swap", "--by-host"], 2, "--by-host does not apply to swap"),
        (["hosts", "--hosts", "nobody"], 2, "no host is like 'nobody'; choose one of node-000"),
        (["hosts", "--since", "2027-01-01"], 1, "has no rows of these hosts and this time"),
        (["hosts", "--since", "tomorrow"], 2, "'tomorrow' is no moment"),
        (["hosts", "--since", "2026-02-01", "--until", "2026-01-01"], 2, "is not after --since"),
        (["hosts", "--since", "999999w"], 2, "is no moment"),
        (["--sql", "SELECT nope FROM groups"], 2, '"nope" not found'),
        (["--sql", "SELECT FROM"], 2, "cannot run the SQL: Parser Error"),
        (["--sql", "SELECT '\udcff'"], 2, "--sql is not valid UTF-8"),
        (["hosts", "--hosts", "\udcff*"], 2, "no host is like '\\xff*'"),
        (["hosts", "--memory", "lots"], 2, "is not a number from 1 to"),
        (["hosts", "--master", "local"], 2, "--master needs --engine spark"),
        (["report"], 2, "report and -o FILE need each other"),
        (["hosts", "-o", "x.html"], 2, "report and -o FILE need each other"),
    ],
)
def test_bad_input_is_one_line(made, physview, arguments, code, said):
    assert said in one_line(physview("fleet", str(made[0]), *arguments), code)


def test_what_is_no_dataset_is_one_line(physview, tmp_path):
    for path, said in (
        (tmp_path / "none", "it does not exist"),
        (tmp_path, "it has none of the folders groups, zones, machine"),
        ("/etc/passwd", "it is no folder"),
        ("nonsense://user:secret@place/x", "cannot read nonsense://place/x"),
    ):
        assert said in one_line(physview("fleet", str(path), "hosts"), 2)


def test_groups_of_another_kind_are_offered(made, physview):
    result = physview("fleet", str(made[0]), "thp", "--by", "cgroup")
    assert "no groups of --by cgroup; it has --by program" in one_line(result, 0)


def test_an_object_store_is_read_through_pyarrow(made):
    """pyarrow's local file system stands for a store: it takes the same way into DuckDB."""
    dataset = Dataset(made[0].as_uri(), Selection("node-001"))
    with DuckDbEngine(dataset) as engine:
        assert fleets.ask(engine, "leaks") == fleets.ask_duckdb(made[0], "leaks", hosts="node-001")
        with pytest.raises(UsageError):
            engine.sql("SELECT * FROM read_text('/etc/passwd')").collect()


@pytest.mark.parametrize("name", ["[a] *fleet*?", "host=x/date=2026-01-01", 'a "b", {c}'])
def test_a_folder_may_have_any_name(copy, tmp_path, name):
    place = tmp_path / "under" / name
    shutil.copytree(copy / "machine", place / "machine")
    rows = fleets.ask_duckdb(place, "hosts")
    assert [row["host"] for row in rows] == ["node-001", "node-005"]


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_asks_a_fleet(made, physview, open_folder):
    shutil.copytree(made[0], open_folder / "fleet")
    for path in [open_folder / "fleet", *(open_folder / "fleet").rglob("*")]:
        path.chmod(0o755)
    result = physview("fleet", str(open_folder / "fleet"), "hosts", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_generator_makes_what_record_writes(made, tmp_path):
    for table in schema.TABLES:
        for path in fleets.parts(made[0], table, "node-001"):
            found = pq.read_schema(path)
            assert found.equals(schema.arrow_schema(table, pa))
            assert set(schema.METADATA) <= {key.decode() for key in found.metadata}
    fleets.make(tmp_path)
    one, other = (
        {
            path.relative_to(folder): path.read_bytes()
            for folder_ in [folder]
            for path in fleets.parts(folder_)
        }
        for folder in (made[0], tmp_path)
    )
    assert one == other


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
