# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings are kept whatever happens: every file is whole, and at most one sample is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from failures import one_line
from limits import DEFAULT_SIGNALS
from memory import PAGE
from paths import ROOT
from recordings import ABOUT, DAY, NOON, files_of, open_test_spool, sample_at, values_of
from users import AS_NOBODY

from physview.commands import parse
from physview.errors import AccessDenied, PhysviewError
from physview.recording import folder as folders
from physview.recording import journal as journal_module
from physview.recording import parts, schema, spool
from physview.recording.journal import Journal
from physview.recording.machine import machine
from physview.recording.retention import expired

DEFAULT_BUDGET = [sys.executable, "-I", "-m", "physview", "record"]
# An emulated processor would leave out most samples.
RECORD = [*DEFAULT_BUDGET, "--budget", "100%"]
# A file system in $0 that is full but for three pages.
MOUNT_WITH_THREE_PAGES = (
    f"mount -t tmpfs -o size={100 * PAGE} none $0; head -c {97 * PAGE} /dev/zero >$0/fill"
)


@pytest.fixture
def dataset(tmp_path):
    return tmp_path / "data"


def test_a_file_has_the_columns_types_and_metadata_of_the_schema(dataset):
    with open_test_spool(dataset) as samples:
        samples.append(ABOUT, *sample_at(NOON))
    for table in schema.TABLES:
        (path,) = files_of(dataset, table)
        assert path.split("/")[1:3] == ["host=a%2Fb", f"date={parts.date_of(NOON)}"]
        file = pyarrow.parquet.ParquetFile(dataset / path)
        assert file.schema_arrow.names == [column.name for column in schema.TABLES[table]]
        assert file.schema_arrow.equals(schema.arrow_schema(table, pyarrow))
        metadata = {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}
        assert [metadata[name] for name in schema.METADATA] == list(ABOUT.metadata().values())
        assert file.read().column("machine").to_pylist() == [ABOUT.machine]
        assert os.stat(dataset / path).st_mode & 0o777 == 0o600
    assert values_of(dataset, column="host") == ["a/b"]
    assert values_of(dataset, "zones", "free_blocks") == [[1, 2]]


def test_a_day_is_one_file_that_grows_and_the_next_recorder_continues_it(dataset):
    for value in range(3):
        with open_test_spool(dataset) as samples:
            samples.append(ABOUT, *sample_at(NOON + value, value=value))
            samples.flush()
    assert len(files_of(dataset)) == 1
    assert values_of(dataset) == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ((NOON + DAY, ABOUT), "the next day"),
        ((NOON - DAY, ABOUT), "the clock was set back"),
        ((NOON, ABOUT._replace(boot="boot-2")), "the machine was booted again"),
        ((NOON, ABOUT._replace(kernel="6.2")), "another kernel"),
    ],
)
def test_another_file_is_begun_for(dataset, other, why):
    when, about = other
    with open_test_spool(dataset) as samples:
        samples.append(ABOUT, *sample_at(NOON))
        samples.append(about, *sample_at(when, about, 2))
    assert len(files_of(dataset)) == 2, why
    assert sorted(values_of(dataset)) == [1, 2]
    for path in files_of(dataset):
        rows = pyarrow.parquet.read_table(dataset / path)
        assert {f"date={parts.date_of(when)}" in path for when in _micros(rows)} == {True}


def _micros(rows):
    return rows.column("time").cast(pyarrow.int64()).to_pylist()


def test_a_large_file_is_complete_and_row_groups_are_bounded(dataset, monkeypatch):
    monkeypatch.setattr(spool, "MAX_ROWS", 5)
    monkeypatch.setattr(parts, "ROWS_IN_GROUP", 2)
    with open_test_spool(dataset) as samples:
        for value in range(12):
            samples.append(ABOUT, *sample_at(NOON + value, value=value))
    files = [pyarrow.parquet.ParquetFile(dataset / path) for path in files_of(dataset)]
    assert sorted(file.metadata.num_rows for file in files) == [2, 5, 5]
    groups = [
        file.metadata.row_group(at).num_rows for file in files for at in range(file.num_row_groups)
    ]
    assert max(groups) == 2
    assert values_of(dataset) == list(range(12))


def test_a_journal_that_is_cut_anywhere_keeps_its_whole_samples(tmp_path):
    with folders.open_folder(str(tmp_path / "journal")) as folder:
        path = parts.new_path("groups", ABOUT, NOON)
        ends = []
        with Journal(folder, "groups", ABOUT, path) as journal:
            for value in range(3):
                moment, tables = sample_at(NOON + value, value=value)
                ends.append(journal.nr_bytes)
                journal.append(tables["groups"], moment)
            ends.append(journal.nr_bytes)
        whole = (tmp_path / "journal/groups.arrows").read_bytes()
        assert len(whole) == ends[-1]
        for cut in range(ends[0], len(whole) + 1, 29):
            (tmp_path / "journal/groups.arrows").write_bytes(whole[:cut])
            with Journal.recover(folder, "groups") as journal:
                nr = sum(end <= cut for end in ends[1:])
                assert journal.nr_rows == nr, cut
                assert (journal.path, journal.about) == (path, ABOUT)
                moment, tables = sample_at(NOON + 9, value=9)
                journal.append(tables["groups"], moment)
                assert journal.rows().column("resident").to_pylist() == [*range(nr), 9]


def test_a_damaged_journal_is_set_aside(dataset):
    with open_test_spool(dataset) as samples:
        samples.append(ABOUT, *sample_at(NOON))
    (journal,) = dataset.glob(".recording/*/groups.arrows")
    whole = journal.read_bytes()
    for damage in (b"", b"x" * 100, whole[:50], bytes(len(whole)), whole[:8] + b"\xff" * 200):
        journal.write_bytes(damage)
        with open_test_spool(dataset) as samples:
            (note,) = samples.notes
            assert "set aside" in note
            samples.append(ABOUT, *sample_at(NOON))
    assert len(list(journal.parent.glob("*.aside"))) == 5


def test_a_journal_of_a_later_version_is_set_aside(dataset, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(parts, "VERSION", schema.VERSION + 1)
        with open_test_spool(dataset) as samples:
            samples.append(ABOUT, *sample_at(NOON))
    with open_test_spool(dataset) as samples:
        assert len(samples.notes) == 3
        assert "later version of physview" in samples.notes[0]


def test_a_journal_whose_path_leads_elsewhere_is_set_aside(dataset):
    with (
        folders.open_folder(str(dataset)) as folder,
        folder.enter(".recording") as hidden,
        hidden.enter(ABOUT.machine[:16]) as own,
    ):
        for path in ("../../etc/x.parquet", "groups/host=a/date=2026-01-01/../x.parquet"):
            Journal(own, "groups", ABOUT, path).close()
            with open_test_spool(dataset) as samples:
                assert "set aside" in samples.notes[0]
    assert not files_of(dataset)


def test_the_same_machine_is_refused_twice_and_another_machine_is_not(dataset):
    with open_test_spool(dataset) as samples:
        with pytest.raises(PhysviewError, match=f"another recorder.*process {os.getpid()}"):
            open_test_spool(dataset)
        other = ABOUT._replace(machine="ff" * 16)
        with spool.open_spool(str(dataset), other.machine) as others:
            others.append(other, *sample_at(NOON, other, 2))
            samples.append(ABOUT, *sample_at(NOON))
    # Two machines with the same host name: two files in one folder.
    assert len(files_of(dataset)) == 2
    assert set(values_of(dataset, column="machine")) == {ABOUT.machine, other.machine}
    with open_test_spool(dataset) as samples:  # the lock is free again
        assert samples.notes == []


def test_old_files_are_removed_but_not_those_of_others(dataset):
    other = ABOUT._replace(machine="ff" * 16)
    for about in (ABOUT, other):
        with spool.open_spool(str(dataset), about.machine) as samples:
            for day in range(5):
                samples.append(about, *sample_at(NOON + day * DAY, about, day))
    note = dataset / "groups/host=a%2Fb" / f"date={parts.date_of(NOON)}" / "notes.txt"
    note.write_text("mine")
    today = parts.date_of(NOON + 4 * DAY)
    with open_test_spool(dataset) as samples:
        samples.remove_old(today, ABOUT.host, ABOUT.machine, keep_days=2, limit_bytes=None)
        own = [path for path in files_of(dataset) if f"part-{ABOUT.machine[:8]}" in path]
        assert [path.split("/")[2] for path in own] == [
            f"date={parts.date_of(NOON + day * DAY)}" for day in (2, 3, 4)
        ]
        samples.remove_old(today, ABOUT.host, ABOUT.machine, keep_days=None, limit_bytes=1)
        own = [path for path in files_of(dataset) if f"part-{ABOUT.machine[:8]}" in path]
        assert len(own) == 1  # the file of the present day
    assert len([path for path in files_of(dataset) if f"part-{other.machine[:8]}" in path]) == 5
    assert note.read_text() == "mine"


def test_a_limit_removes_the_oldest_of_all_tables():
    found = [
        parts.Part(f"{table}/host=a/date=2026-01-0{day}/x", 10)
        for day in (1, 2, 3)
        for table in "ab"
    ]
    gone = expired(found, "2026-01-03", limit_bytes=30, in_use=[found[-1].path])
    assert gone == found[:3]
    assert expired(found, "2026-01-03") == []


def test_what_others_could_change_is_refused(dataset, tmp_path, monkeypatch):
    dataset.mkdir()
    (dataset / "groups").symlink_to(tmp_path)
    with (
        pytest.raises(PhysviewError, match="symbolic link or no folder; choose another"),
        open_test_spool(dataset) as samples,
    ):
        samples.append(ABOUT, *sample_at(NOON))
    assert not list(tmp_path.glob("host=*"))
    (dataset / "groups").unlink()
    os.chmod(dataset, 0o777)
    with pytest.raises(AccessDenied, match="other users may write"):
        open_test_spool(dataset)
    os.chmod(dataset, 0o755)
    (dataset / "file").write_text("")
    with pytest.raises(PhysviewError, match="no folder; choose another"):
        open_test_spool(dataset / "file")
    with pytest.raises(PhysviewError, match="there is no folder"):
        open_test_spool(dataset / "missing/deeper")
    with pytest.raises(PhysviewError, match="folder of its own"):
        folders.open_folder("/")
    os.chmod(tmp_path, 0o777)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AccessDenied, match=f"may rename folders in {tmp_path};"):
        folders.open_folder("memory")


@pytest.mark.needs("root", "nobody")
def test_root_records_into_no_folder_of_another_user(dataset):
    dataset.mkdir()
    os.chown(dataset, 65534, 65534)
    with pytest.raises(AccessDenied, match="belongs to another user"):
        open_test_spool(dataset)
    # A link that the user puts into a dataset of before is not followed either.
    os.chown(dataset, 0, 0)
    with open_test_spool(dataset) as samples:
        samples.append(ABOUT, *sample_at(NOON))
    (folder,) = dataset.glob("groups/*")
    os.chown(folder, 65534, 65534)
    with (
        pytest.raises(PhysviewError, match="belongs to another user"),
        open_test_spool(dataset) as samples,
    ):
        samples.append(ABOUT, *sample_at(NOON + DAY))


def test_samples_wait_in_memory_while_the_disk_is_full(dataset, monkeypatch):
    real, full = os.pwrite, [True]

    def pwrite(fd, data, at):
        if full[0]:
            real(fd, bytes(data)[:10], at)
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(spool, "MAX_PENDING_ROWS", 9)
    with open_test_spool(dataset) as samples:
        full[0] = False
        samples.append(ABOUT, *sample_at(NOON, value=0))
        monkeypatch.setattr(journal_module.os, "pwrite", pwrite)
        full[0] = True
        for value in range(1, 6):
            with pytest.raises(PhysviewError, match="the disk is full"):
                samples.append(ABOUT, *sample_at(NOON + value, value=value))
        assert samples.take_lost() == 2
        full[0] = False
        samples.append(ABOUT, *sample_at(NOON + 6, value=6))
        monkeypatch.undo()
    assert values_of(dataset) == [0, 3, 4, 5, 6]
    assert values_of(dataset, "machine", "pgfault") == [0, 3, 4, 5, 6]


@pytest.mark.needs("root", "mountns")
def test_a_disk_that_is_full_from_the_start_is_told_in_one_line(tmp_path):
    script = 'mount -t tmpfs -o size=1m none $0; head -c 1m /dev/zero >$0/fill; exec "$@"'
    run = [*RECORD, f"{tmp_path}/data", "--samples", "1"]
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), *run],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert one_line(result, 1) == (
        f"physview: cannot record to {tmp_path}/data: the disk is full;"
        " free some space, or choose another dataset\n"
    )


@pytest.mark.needs("root")
def test_a_real_full_disk_is_told_once_and_recording_goes_on(tmp_path):
    script = (
        f"{MOUNT_WITH_THREE_PAGES};"
        ' "$@" & read go; rm $0/fill; wait $!; find $0 -name "*.parquet" | wc -l'
    )
    run = [
        *RECORD,
        f"{tmp_path}/data",
        "--every",
        "0.2s",
        "--samples",
        "9",
        "--frames-every",
        "never",
    ]
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), *run],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        told = process.stderr.readline()
        assert "the disk is full" in told
        assert "recording goes on" in told
        output, rest = process.communicate("go\n")
    assert output.endswith("\n3\n"), output
    assert rest.count("\n") == 1
    assert "this is over" in rest


@pytest.mark.needs("root")
def test_what_is_lost_with_a_disk_that_stays_full_is_told(tmp_path):
    script = f'{MOUNT_WITH_THREE_PAGES}; exec "$@"'
    often = ("--every", "0.2s", "--samples", "3", "--frames-every", "never")
    run = [*RECORD, f"{tmp_path}/data", *often]
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path), *run],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    told = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"physview: cannot write to {tmp_path}/data/.recording/\w+: the disk is full;"
        r" samples lost: [123]; free some space: the next recorder completes the dataset's files",
        told,
    ), told


def test_samples_that_the_budget_leaves_out_are_told_once(dataset):
    often = ("--every", "0.1s", "--frames-every", "never")
    run = [*DEFAULT_SIGNALS, *DEFAULT_BUDGET, str(dataset), "--budget", "0.01%", *often]
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as recorder:
        told = recorder.stderr.readline()
        time.sleep(0.5)  # more samples are left out
        recorder.terminate()
        output, rest = recorder.communicate()
    assert (recorder.returncode, rest) == (0, "")
    wait = re.fullmatch(
        r"physview: a sample cost more than the budget of 0\.01% of a core: the next is in (\d+) s"
        r" or later; a larger --budget takes more samples\n",
        told,
    )
    assert wait, told
    assert int(wait[1]) > 10
    assert re.search(r": 1 sample, \d+ left out for the budget, ", output)


@pytest.fixture
def recording(dataset):
    """A recorder that has taken two samples, in a process of its own."""
    run = [
        *DEFAULT_SIGNALS,
        *RECORD,
        str(dataset),
        "--every",
        "0.1s",
        "--json",
        "--host",
        "h",
        "--frames-every",
        "never",
    ]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_with_whole_files(recording, dataset, number):
    recording.send_signal(number)
    rest, errors = recording.communicate()
    assert recording.returncode == 0, errors
    nr = 2 + rest.count(b"\n")
    assert len(values_of(dataset, "machine", "time")) == nr
    assert len(set(values_of(dataset, column="time"))) == nr


def test_a_killed_recorder_loses_one_sample_at_most(recording, dataset):
    recording.send_signal(signal.SIGKILL)
    rest = recording.communicate()[0]
    nr = 2 + rest.count(b"\n")
    assert not files_of(dataset)
    result = subprocess.run(
        [*RECORD, str(dataset), "--samples", "1", "--host", "h"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ": 1 sample, " in result.stdout
    for table in schema.TABLES:
        assert len(files_of(dataset, table)) == 1
        times = set(values_of(dataset, table, "time"))
        assert nr + 1 <= len(times) <= nr + 2  # one may have been kept and not yet printed


def test_the_documents_tell_what_is_recorded(dataset):
    run = [*RECORD, str(dataset), "--every", "0.2s", "--samples", "3", "--json", "--by", "pid"]
    run += ["--host", b"../\xff ="]
    output = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    told = [json.loads(line) for line in output.splitlines()]
    assert [document["interval"] is None for document in told] == [True, False, False]
    assert len(values_of(dataset)) == sum(document["nr_groups"] for document in told)
    costs = values_of(dataset, "machine", "cost")
    assert costs == [document["cost"] for document in told]
    assert all(cost > 0 for cost in costs)
    assert values_of(dataset, "machine", "interval")[1:] == [
        document["interval"] for document in told[1:]
    ]
    assert set(values_of(dataset, "machine", "machine")) == {machine()}
    # A host may have any name.
    assert [path.split("/")[1] for path in files_of(dataset)] == ["host=..%2F%5Cxff%20%3D"]
    assert set(values_of(dataset, column="host")) == {"../\\xff ="}


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_is_told_what_root_adds(open_folder):
    """The dataset is in a folder such as /tmp, where others may add files but not rename it."""
    run = [*AS_NOBODY, *RECORD, f"{open_folder}/data", "--samples", "1"]
    result = subprocess.run(run, capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") == 1
    assert "without extents, large folios and frames" in result.stderr
    assert "1 sample" in result.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["x", "--every", "0"], "is not a time"),
        (["x", "--budget", "0%"], "is not a share"),
        (["x", "--budget", "101%"], "is not a share"),
        (["x", "--limit", "5"], "is not a size"),
        (["x", "--keep", "0"], "is not a number"),
        (["x", "--for", "1m", "--samples", "2"], "not allowed with"),
        (["x", "--samples", "1", "--host", "x" * 256], "too long"),
        (["s3://", "--samples", "1"], "cannot use s3://"),
        (["", "--samples", "1"], "cannot "),
    ],
)
def test_a_wrong_use_is_one_line(physview, words, why):
    result = physview("record", *words)
    assert result.returncode in (1, 2)
    assert result.stderr.count("\n") == 1, result.stderr
    assert why in result.stderr


UNITS = sorted((ROOT / "packaging/systemd").glob("*"))


@pytest.mark.parametrize("unit", [u for u in UNITS if u.match("*record*.service")], ids=str)
def test_the_command_line_of_a_unit_parses(unit):
    text = unit.read_text()
    (command,) = re.findall(r"^ExecStart=physview (.*)$", text, re.MULTILINE)
    values = dict(re.findall(r'^Environment="?(\w+)=([^"\n]*)', text, re.MULTILINE))
    for name, value in values.items():
        command = command.replace(f"${name}", value)
    args = parse(command.split(" "))
    assert args.dataset.startswith("/var/lib/physview/")
    assert args.keep == 30
    assert "StateDirectory=physview\n" in text


@pytest.mark.needs("systemd-analyze")
def test_systemd_takes_the_units(tmp_path):
    assert len(UNITS) == 4
    for unit in UNITS:
        text = unit.read_text().replace("ExecStart=physview", "ExecStart=/bin/true")
        (tmp_path / unit.name).write_text(text)
    copies = [str(tmp_path / unit.name) for unit in UNITS]
    run = ["systemd-analyze", "verify", "--man=no", *copies]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
