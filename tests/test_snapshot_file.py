# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot files: written, read by physview and by other tools, and damaged in many ways."""

import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import missing
from failures import notes, one_line
from memory import PAGE
from paths import ROOT
from users import AS_NOBODY

from physview import diff
from physview.errors import PhysviewError
from physview.memory.rows import COLUMNS, iter_each
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, PM_PFRAME_MASK, PagemapEntry
from physview.parquet.snapshot_file import (
    FIELDS,
    MORE_FIELDS,
    SnapshotFile,
    write_rows,
    write_snapshot,
)
from physview.sources import ram

DOC = (ROOT / "docs/parquet.md").read_text()
ALL = list(COLUMNS)


@pytest.fixture
def kept(stopped, tmp_path):
    """A snapshot file, and its rows."""
    path = str(tmp_path / "kept.parquet")
    with Snapshot(stopped.pid) as snapshot:
        rows = np.concatenate(list(snapshot.iter_extents(columns=ALL)))
        write_rows(snapshot, [rows[:100], rows[100:]], path, columns=ALL, complete=True)
    return path, rows


@pytest.mark.needs("pfn", "kpage")
def test_what_was_read_comes_back(kept, stopped):
    path, rows = kept
    with SnapshotFile(path) as file:
        found = np.concatenate(list(file.iter_extents()))
        assert file.columns == ["flags", "mapcount", "node"]
        assert len(found) == len(rows)
        for name in found.dtype.names:
            assert (found[name] == rows[name]).all(), name
        with Snapshot(stopped.pid) as snapshot:
            assert file.vmas == list(snapshot.vmas)


@pytest.mark.needs("pfn", "kpage")
def test_it_keeps_where_ram_is_and_files_without_that_are_read(kept, tmp_path):
    path, _ = kept
    there = ram.read_resources()
    with SnapshotFile(path) as file:
        assert ram.ram_ranges(file.resources) == ram.ram_ranges(there)
        assert {each for each in there if each.depth == 0} <= set(file.resources)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"physview"])
    old = str(tmp_path / "old.parquet")
    for value, resources in (("drop", None), (None, None), ([[1, 2]], "damaged")):
        changed = about | {"resources": value}
        if value == "drop":
            del changed["resources"]
        pq.write_table(table.replace_schema_metadata({b"physview": json.dumps(changed)}), old)
        if resources == "damaged":
            with pytest.raises(PhysviewError, match="its metadata are damaged"):
                SnapshotFile(old)
        else:
            with SnapshotFile(old) as file:
                assert file.resources is None
                assert sum(len(rows) for rows in file.iter_extents()) == len(table)


@pytest.mark.needs("pfn")
@pytest.mark.parametrize("iomem", [b"", b"000a0000-000bffff : PCI Bus 0000:00\n"])
def test_where_ram_is_not_told_what_is_kept_can_be_read(stopped, tmp_path, monkeypatch, iomem):
    """In a container, /proc/iomem may be empty or without RAM."""
    monkeypatch.setattr(
        "physview.parquet.snapshot_file.read_resources", lambda: ram.parse_iomem(iomem)
    )
    path = str(tmp_path / "a.parquet")
    with Snapshot(stopped.pid) as snapshot:
        write_snapshot(snapshot, path, columns=[])
    with SnapshotFile(path) as file:
        assert file.resources is None


@pytest.mark.needs("pfn", "kpage")
def test_pandas_polars_and_duckdb_read_the_same(kept):
    path, rows = kept
    frames = pd.read_parquet(path, dtype_backend="pyarrow")
    assert frames["vaddr"].tolist() == rows["vaddr"].tolist()
    expected = [None if pfn == NO_ENTRY else pfn for pfn in rows["pfn"].tolist()]
    assert [None if pd.isna(pfn) else pfn for pfn in frames["pfn"]] == expected
    assert pl.read_parquet(path)["pfn"].to_list() == expected
    query = f"select pfn from '{path}' order by vaddr"
    assert [pfn for (pfn,) in duckdb.sql(query).fetchall()] == expected
    causes = [PagemapEntry(entry).cause for entry in rows["entry"].tolist()]
    assert pl.read_parquet(path)["cause"].to_list() == [c.value if c else None for c in causes]
    expected = set() if missing("guard") else {"guard"}
    assert set(frames["cause"].dropna()) >= expected or not any(causes)


@pytest.mark.needs("pfn", "kpage")
def test_what_the_page_says_can_be_done(kept, tmp_path, monkeypatch):
    path, rows = kept
    monkeypatch.chdir(tmp_path)
    for name in ("before.parquet", "a.parquet", "b.parquet"):
        shutil.copy(path, tmp_path / name)
    (python,) = re.findall("```python\n(.*?)```", DOC, re.DOTALL)
    subprocess.run([sys.executable, "-c", python], check=True, cwd=tmp_path)
    (sql,) = re.findall("```sql\n(.*?)```", DOC, re.DOTALL)
    # DuckDB's threads may have another current folder: unshare() gives each thread its own.
    sql = re.sub(r"'(\w+\.parquet)'", rf"'{tmp_path}/\1'", sql)
    large, shared = (duckdb.sql(query).fetchall() for query in sql.split(";") if query.strip())
    thp = (rows["flags"] != np.uint64(NO_ENTRY)) & (rows["flags"] >> np.uint64(22) & 1 == 1)
    assert sum(nr for _, nr in large) == rows["nr_pages"][thp].sum()
    assert len(shared) >= (rows["pfn"] != np.uint64(NO_ENTRY)).sum()


@pytest.mark.needs("pfn", "kpage")
def test_every_column_is_documented_with_its_unit_and_says_it_itself(kept):
    schema = pq.read_schema(kept[0])
    fields = [*FIELDS, *(field for more in MORE_FIELDS.values() for field in more)]
    assert schema.names == [name for name, *_ in fields]
    for name, _, unit, meaning in fields:
        assert re.search(rf"^\|.*`{name}`.*\|.*\| {unit} ?\|", DOC, re.MULTILINE), name
        metadata = schema.field(name).metadata
        assert metadata.get(b"unit", b"").decode() == unit
        assert metadata[b"meaning"].decode() == meaning
    about = json.loads(schema.metadata[b"physview"])
    assert [name for name in about if f"`{name}`" not in DOC] == []


def test_the_metadata_say_what_it_is_of(tmp_path, stopped):
    path = str(tmp_path / "a.parquet")
    with Snapshot(stopped.pid) as snapshot:
        write_snapshot(snapshot, path, columns=[])
    stat_fields = Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()
    with SnapshotFile(path) as file:
        about = file.about
        assert about["start_time_ticks"] == int(stat_fields[19])
        assert about["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert about["host"] == os.uname().nodename
        assert about["kernel"] == os.uname().release
        assert about["comm"] == Path(f"/proc/{stopped.pid}/comm").read_text().strip()
        assert 0 <= time.time() - file.time.timestamp() < 300
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.needs("nobody")
def test_an_unprivileged_users_snapshot_has_no_frames(open_folder):
    path = open_folder / "mine.parquet"
    command = [*AS_NOBODY, sys.executable, "-m", "physview", "snapshot", "self", "-o", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    assert "frame numbers are hidden" in result.stderr
    table = pl.read_parquet(path)
    assert table["pfn"].null_count() == len(table) > 50
    assert "hidden" in table["cause"].to_list()


@pytest.mark.needs("pfn", "kpage")
def test_pages_writes_what_was_chosen(physview, stopped, tmp_path):
    path = str(tmp_path / "anon.parquet")
    args = ("pages", str(stopped.pid), "--format", "parquet", "-o", path)
    result = physview(*args, "--flags", "anon", "--each")
    assert (result.returncode, notes(result)) == (0, "")
    table = pl.read_parquet(path)
    assert table["nr_pages"].unique().to_list() == [1]
    assert all("anon" in names.split("|") for names in table["flag_names"])
    assert len(table) > 3000
    assert "it is there already" in one_line(physview(*args), 1)
    assert physview(*args, "--force").returncode == 0
    assert len(pl.read_parquet(path)) != len(table)
    with SnapshotFile(path) as file:
        assert not file.about["complete"]
    assert "only some of the pages" in one_line(physview("diff", path, path), 1)


@pytest.mark.needs("pfn", "kpage")
def test_written_and_said_in_json(physview, stopped, tmp_path):
    path = str(tmp_path / "a.parquet")
    document = json.loads(physview("snapshot", str(stopped.pid), "-o", path, "--json").stdout)
    table = pl.read_parquet(path)
    assert document == {
        "path": path,
        "nr_extents": len(table),
        "nr_pages": table["nr_pages"].sum(),
        "size_bytes": os.path.getsize(path),
        "errors": [],
    }


def test_progress_also_by_its_earlier_name(stopped, tmp_path):
    seen = {}
    for name in ("progress", "on_progress"):
        path = str(tmp_path / f"{name}.parquet")
        calls = seen[name] = []
        with Snapshot(stopped.pid) as snapshot:
            option = {name: lambda *numbers, calls=calls: calls.append(numbers)}
            written = write_snapshot(snapshot, path, columns=(), **option)
        assert calls[-1][0] == written.nr_pages
        with SnapshotFile(path) as file:
            diff(file, file, **option)
            assert calls[-1][1] == file.nr_extents
    assert len(seen["progress"]) == len(seen["on_progress"])


@pytest.mark.needs("pfn")  # without, a second line says so
def test_a_file_that_cannot_be_written(physview, tmp_path):
    there = tmp_path / "there"
    there.write_text("mine")
    (tmp_path / "link").symlink_to(there)
    cases = {
        str(there): "it is there already; choose another name, or add --force",
        str(tmp_path / "link"): "it is there already",
        str(tmp_path): "it is a folder; name a file in it",
        str(tmp_path / "no" / "file"): "there is no folder",
        "/dev/null": "it is a device or a pipe",
        "/proc/nothing.parquet": "choose another folder",
        "-": "physview writes a regular file",
        "": "physview writes a regular file",
    }
    for path, why in cases.items():
        assert why in one_line(physview("snapshot", "self", "-o", path), 1)
    assert there.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]
    assert physview("snapshot", "self", "-o", str(tmp_path / "link"), "--force").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert there.read_bytes()[:4] == b"PAR1"
    assert "choose one of flags, mapcount" in one_line(
        physview("snapshot", "self", "-o", "x", "--columns", "colour"), 2
    )


@pytest.mark.needs("mountns")
def test_a_full_disk_leaves_nothing(tmp_path):
    # One page of 64 KiB has room for the file, and no file system is smaller.
    fill = f"printf x >{tmp_path}/fill" if PAGE > 16 << 10 else ""
    script = f"""
mount -t tmpfs -o size=16k t {tmp_path}
{fill}
{sys.executable} -m physview snapshot self -o {tmp_path}/a.parquet
echo code $?
ls -A {tmp_path}
"""
    command = ["unshare", "-m", "sh", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout == ("code 1\nfill\n" if fill else "code 1\n")
    why = "No space left on device; no part of the file was kept"
    assert result.stderr == f"physview: cannot write {tmp_path}/a.parquet: {why}\n"


def test_a_process_that_ends_leaves_nothing(tmp_path, python):
    child = python()
    with Snapshot(child.pid) as snapshot:
        child.kill()
        child.wait()
        with pytest.raises(PhysviewError, match="is gone: it ended"):
            write_snapshot(snapshot, str(tmp_path / "a.parquet"))
    assert os.listdir(tmp_path) == []


@pytest.mark.needs("root")
def test_through_sudo_it_is_the_callers(tmp_path):
    path = tmp_path / "a.parquet"
    environment = os.environ | {"SUDO_UID": "65534", "SUDO_GID": "65533"}
    command = [sys.executable, "-m", "physview", "snapshot", "self", "-o", str(path)]
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd="/")
    info = path.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (65534, 65533, 0o600)


def test_files_that_are_no_snapshots(physview, tmp_path):
    damaged = tmp_path / "damaged.parquet"
    assert physview("snapshot", "self", "-o", str(damaged)).returncode == 0
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    holed = tmp_path / "holed.parquet"
    holed.write_bytes(data[:64] + bytes(len(data) // 2) + data[64 + len(data) // 2 :])
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    later = tmp_path / "later.parquet"
    about = json.dumps({"format": 2, "physview": "9.1"})
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"physview": about}), later)
    cases = {
        tmp_path / "nowhere": "No such file",
        damaged: "it is not a Parquet file, or it is damaged",
        holed: "damaged",
        foreign: "snapshot PID -o FILE makes one",
        later: "its format is 2, and this physview knows 1; use physview 9.1 or later",
        Path(__file__): "it is not a Parquet file",
        tmp_path: "cannot read",
    }
    for path, why in cases.items():
        assert why in one_line(physview("diff", str(path), str(path)), 1), path


def rows_of(path):
    with SnapshotFile(str(path)) as file:
        return np.concatenate(list(file.iter_extents()))


def test_whatever_is_damaged_is_said(tmp_path):
    path = tmp_path / "a.parquet"
    with Snapshot() as snapshot:
        write_snapshot(snapshot, str(path), columns=[])
    data = path.read_bytes()
    rows = rows_of(path)
    dice = random.Random(22)
    nr_refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        at = dice.randrange(len(data))
        size = dice.choice((1, 8, 1000))
        damaged[at : at + size] = dice.randbytes(min(size, len(data) - at))
        path.write_bytes(damaged)
        try:
            found = rows_of(path)
        except PhysviewError:
            nr_refused += 1
        else:  # it hit what is not read, as the names of flags: more of a file without frames
            assert (found == rows).all()
    assert nr_refused > 50


@pytest.mark.needs("pfn")
def test_without_pyarrow_the_line_says_what_to_install(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('gone', name='pyarrow')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "physview", "snapshot", "self", "-o", str(tmp_path / "a")]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    assert "pyarrow (extra 'parquet') is missing; " in one_line(result, 1)
    assert f"{sys.executable} -I -m pip install pyarrow" in result.stderr


def test_the_pages_of_a_file_are_those_of_the_process(tmp_path):
    path = str(tmp_path / "a.parquet")
    with Snapshot() as snapshot:
        write_snapshot(snapshot, path, columns=[])
    with SnapshotFile(path) as file:
        for rows in file.iter_extents():
            for pages in iter_each(rows, file.about["zero_pfn"]):
                assert (pages["vaddr"] % PAGE == 0).all()
                known = pages["pfn"] != np.uint64(NO_ENTRY)
                shown = pages["entry"] & np.uint64(PM_PFRAME_MASK)
                assert (shown[known] == pages["pfn"][known]).all()
