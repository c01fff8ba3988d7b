# SPDX-License-Identifier: GPL-2.0-or-later
"""The command fleet: its forms of output, SQL, limits, and what it refuses."""

import csv
import io
import json
import os
import shutil
import signal
import threading
from datetime import timedelta

import fleets
import pytest
from failures import one_line
from users import AS_NOBODY

from physview.errors import PhysviewError, UsageError
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine

HOUR = timedelta(hours=1)


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
def test_sql_reads_the_dataset_and_nothing_else(fleet_made, fleet_engine, tmp_path, sql):
    outside = tmp_path / "secret.parquet"
    outside.write_text("secret")
    before = sorted(map(str, fleet_made[0].rglob("*")))
    with pytest.raises(UsageError) as caught:
        fleet_engine.sql(
            sql.format(outside=outside, inside=str(fleet_made[0] / "new").replace("'", "''"))
        ).collect()
    assert "\n" not in str(caught.value)
    assert sorted(map(str, fleet_made[0].rglob("*"))) == before
    assert os.listdir(tmp_path) == ["secret.parquet"]


def test_values_of_sql_are_plain(fleet_engine):
    wide = fleet_engine.sql(
        "SELECT 1 AS a, 2 AS a, [1.5, NULL], {'x': 1}, 'nan'::double, 3::hugeint"
    )
    assert [column.name for column in wide.columns][:2] == ["a", "a_2"]
    assert list(wide.rows) == [(1, 2, [1.5, None], {"x": 1}, None, 3)]


def test_an_interrupted_question_ends_as_others_do(fleet_made):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    try:
        _interrupt(fleet_made[0])
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(folder):
    endless = "SELECT count(*) FROM range(100000000000) t(i) WHERE sin(i) > 2"
    with DuckDbEngine(Dataset(str(folder), Selection())) as own:
        own.open_tables()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            own.sql(endless).collect()


def test_memory_is_bounded(fleet_made):
    with (
        DuckDbEngine(Dataset(str(fleet_made[0]), Selection()), memory=3) as small,
        pytest.raises(PhysviewError, match="give more with --memory"),
    ):
        fleets.ask(small, "leaks")
    with DuckDbEngine(Dataset(str(fleet_made[0]), Selection())) as engine:
        (row,) = engine.sql(
            "SELECT current_setting('threads'), current_setting('memory_limit')"
        ).rows
        assert row == (2, "600.0 MiB")


def test_the_forms_of_output_have_the_same_rows(fleet_made, physview):
    arguments = ["fleet", str(fleet_made[0]), "worst", "resident", "--top", "3"]
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


def test_sql_as_a_table(fleet_made, physview):
    sql = "SELECT host, count(*) AS nr_rows FROM groups GROUP BY ALL ORDER BY ALL LIMIT 2"
    lines = physview("fleet", str(fleet_made[0]), "--sql", sql).stdout.splitlines()
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
        (["worst", "residnt"], 2, "do you mean resident or present or resident_approx? --sql '"),
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
def test_bad_input_is_one_line(fleet_made, physview, arguments, code, said):
    assert said in one_line(physview("fleet", str(fleet_made[0]), *arguments), code)


def test_groups_of_another_kind_are_offered(fleet_made, physview):
    result = physview("fleet", str(fleet_made[0]), "thp", "--by", "cgroup")
    assert "no groups of --by cgroup; it has --by program" in one_line(result, 0)


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_asks_a_fleet(fleet_made, physview, open_folder):
    shutil.copytree(fleet_made[0], open_folder / "fleet")
    for path in [open_folder / "fleet", *(open_folder / "fleet").rglob("*")]:
        path.chmod(0o755)
    result = physview("fleet", str(open_folder / "fleet"), "hosts", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_step_is_told(fleet_made, planted, physview):
    _, start, _ = planted("thp-loss")
    words = ("fleet", fleet_made[0], "thp-loss", "--since", (start - HOUR).isoformat())
    short = physview(*words, "--until", (start + HOUR).isoformat()).stdout
    assert "A step is 5 minutes." in short
    assert "A step is an hour." in physview(*words).stdout
