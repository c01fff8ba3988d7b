# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files of a dataset are read, and what becomes of damaged, foreign and other ones."""

import json
import os
import shutil
from datetime import datetime, timedelta, timezone

import fleets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failures import one_line

from physview.errors import UsageError
from physview.fleet import questions
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.engine import FilesChanged
from physview.recording import schema

HOUR = timedelta(hours=1)
DAY = datetime(2026, 1, 5, tzinfo=timezone.utc)


def test_only_files_of_the_hosts_and_days_are_read(fleet_made):
    folder = str(fleet_made[0])
    moment = DAY + 30 * HOUR
    chosen = Dataset(folder, Selection("node-00[12]", DAY + 48 * HOUR, None)).files("groups")
    assert {path.split("/")[-3] for path in chosen} == {"host=node-001", "host=node-002"}
    # A file may go on after midnight, so the day before is read, too.
    assert {path.split("/")[-2] for path in chosen} == {"date=2026-01-06"}
    with DuckDbEngine(Dataset(folder, Selection("*", moment, moment + HOUR))) as engine:
        ((nr, first, last),) = engine.sql("SELECT count(*), min(time), max(time) FROM machine").rows
        assert (first, last) == (moment, moment + 55 * timedelta(minutes=1))
        assert nr == 12 * 9


def test_files_that_are_being_written_are_not_seen(fleet_copy, physview):
    folder = fleets.parts(fleet_copy, "machine", "node-001")[0].parent
    (folder / ".part-1.parquet").write_bytes(b"PAR1")
    (folder / "_part-1.parquet").write_bytes(b"PAR1")
    (folder / "part-1.parquet.tmp").write_bytes(b"PAR1")
    assert len(fleets.ask_duckdb(fleet_copy, "hosts")) == 2


def test_damaged_files_are_named_and_left_out(fleet_copy, physview):
    good, bad = fleets.parts(fleet_copy, "machine", "node-001")
    bad.write_bytes(bad.read_bytes()[:-9])
    os.mkfifo(good.parent / "pipe.parquet")
    (good.parent / "empty.parquet").touch()
    result = physview("fleet", str(fleet_copy), "hosts", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 1
    assert sorted(error["asked"] for error in document["errors"]) == sorted(
        [str(bad), str(good.parent / "pipe.parquet"), str(good.parent / "empty.parquet")]
    )
    assert [row["samples"] for row in document["rows"]] == [288, 576]


def test_a_file_with_a_damaged_inside_is_one_line(fleet_copy, physview):
    path = fleets.parts(fleet_copy, "machine", "node-001")[0]
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * (len(data) - 8) + b"PAR1")
    assert "cannot read the dataset" in one_line(physview("fleet", str(fleet_copy), "hosts"), 1)


def test_a_later_schema_is_refused_in_one_line(fleet_copy, physview):
    fleets.rewritten(fleets.parts(fleet_copy, "zones")[1], **{"physview.schema": "2"})
    said = one_line(physview("fleet", str(fleet_copy), "fragmentation"), 1)
    assert f"version 2, and this physview knows {schema.VERSION}; update physview" in said


def test_a_foreign_file_is_refused_in_one_line(fleet_copy, physview):
    place = fleets.parts(fleet_copy, "machine")[0].parent / "part-0.parquet"
    pq.write_table(pa.table({"time": [1]}), place)
    assert "record did not write it" in one_line(physview("fleet", str(fleet_copy), "hosts"), 1)


def test_missing_columns_are_null_and_unknown_ones_stay(fleet_copy):
    for path in fleets.parts(fleet_copy, "machine"):
        table = pq.read_table(path, partitioning=None)
        table = table.drop_columns(["skipped", "lost", "kernel", "pswpin"])
        pq.write_table(table.append_column('of "later"', pa.array(["x"] * len(table))), path)
    shutil.rmtree(fleet_copy / "zones")
    assert [row["kernel"] for row in fleets.ask_duckdb(fleet_copy, "hosts")] == [None, None]
    assert fleets.ask_duckdb(fleet_copy, "fragmentation") == []
    with DuckDbEngine(Dataset(str(fleet_copy), Selection())) as engine:
        (row,) = engine.sql(
            'SELECT DISTINCT "of ""later""", pswpin, host FROM machine LIMIT 1'
        ).rows
        assert row[:2] == ("x", None)


def test_null_values_do_no_harm(fleet_copy):
    """A kernel without THP has no counters of it; a group without a name joins all small ones."""
    for table in schema.TABLES:
        for path in fleets.parts(fleet_copy, table):
            rows = pq.read_table(path, partitioning=None)
            kept = {*(column.name for column in schema.MOMENT), "by", "zone", "node", "resident"}
            for at, field in enumerate(rows.schema):
                if field.name not in kept:
                    rows = rows.set_column(at, field, pa.nulls(len(rows), field.type))
            pq.write_table(rows, path)
    with DuckDbEngine(Dataset(str(fleet_copy), Selection())) as engine:
        for name in questions.QUESTIONS:
            rows = fleets.ask(engine, name, column="resident" if name == "worst" else None)
            assert rows or name not in ("hosts", "thp", "worst"), name
        assert {row["name"] for row in fleets.ask(engine, "thp")} == {"(all others)"}


def test_files_that_record_removes_meanwhile_are_told_apart(fleet_copy):
    dataset = Dataset(str(fleet_copy), Selection())
    assert dataset.files("groups")
    fleets.parts(fleet_copy)[0].unlink()
    with DuckDbEngine(dataset) as engine, pytest.raises(FilesChanged):
        engine.open_tables()


def test_an_object_store_is_read_through_pyarrow(fleet_made):
    """pyarrow's local file system stands for a store: it takes the same way into DuckDB."""
    dataset = Dataset(fleet_made[0].as_uri(), Selection("node-001"))
    with DuckDbEngine(dataset) as engine:
        assert fleets.ask(engine, "leaks") == fleets.ask_duckdb(
            fleet_made[0], "leaks", hosts="node-001"
        )
        with pytest.raises(UsageError):
            engine.sql("SELECT * FROM read_text('/etc/passwd')").collect()


@pytest.mark.parametrize("name", ["[a] *fleet*?", "host=x/date=2026-01-01", 'a "b", {c}'])
def test_a_folder_may_have_any_name(fleet_copy, tmp_path, name):
    place = tmp_path / "under" / name
    shutil.copytree(fleet_copy / "machine", place / "machine")
    rows = fleets.ask_duckdb(place, "hosts")
    assert [row["host"] for row in rows] == ["node-001", "node-005"]


def test_the_generator_makes_what_record_writes(fleet_made, tmp_path):
    for table in schema.TABLES:
        for path in fleets.parts(fleet_made[0], table, "node-001"):
            found = pq.read_schema(path)
            assert found.equals(schema.arrow_schema(table, pa))
            assert set(schema.METADATA) <= {key.decode() for key in found.metadata}
    fleets.make(tmp_path)

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in fleets.parts(folder)}

    assert contents(fleet_made[0]) == contents(tmp_path)


def test_what_is_no_dataset_is_one_line(physview, tmp_path):
    for path, said in (
        (tmp_path / "none", "it does not exist"),
        (tmp_path, "it has none of the folders groups, zones, machine"),
        ("/etc/passwd", "it is no folder"),
        ("nonsense://user:secret@place/x", "cannot read nonsense://place/x"),
    ):
        assert said in one_line(physview("fleet", str(path), "hosts"), 2)
