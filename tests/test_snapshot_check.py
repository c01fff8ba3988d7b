# SPDX-License-Identifier: GPL-2.0-or-later
"""Any hostile snapshot file is read, or refused with one line and exit code 1, with little memory.

PHYSVIEW_HOSTILE_FILES=1000 tests this many files. The default is 68, the same in each run: four of
most kinds.
"""

import json
import os
import random
import resource
import subprocess
import sys

import hostile_bytes
import hostile_files
import pytest
import snapshot_maker
from failures import one_line
from paths import ROOT

from physview.errors import PhysviewError
from physview.parquet.snapshot_check import MAX_MAPPINGS
from physview.parquet.snapshot_file import SnapshotFile
from physview.parquet.thrift import Reader

NR_FILES = int(os.environ.get("PHYSVIEW_HOSTILE_FILES", "68"))
SEED = int(os.environ.get("PHYSVIEW_HOSTILE_SEED", "1"))
SCRIPT = str(ROOT / "tests/support/hostile_files.py")
MAX_BYTES = 85_000_000  # without the libraries: NumPy and Arrow take 62 to 100 MB


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, SCRIPT, "make", str(folder), str(NR_FILES), str(SEED)]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def max_bytes():
    """The limit for a whole process, with its libraries, whose memory depends on their versions."""
    imports = "import numpy, pyarrow.parquet, rich.table, resource as r;"
    code = f"{imports} print(r.getrusage(r.RUSAGE_SELF).ru_maxrss << 10)"
    # Not by fork(), of which the peak would be this process's.
    command = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout) + MAX_BYTES


def test_every_hostile_file_is_read_or_refused(corpus, max_bytes):
    command = [sys.executable, SCRIPT, "check", str(corpus)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    print(json.dumps(found, indent=1))  # for who ran all
    assert found["crashed"] == {}
    assert found["valid"] == ""
    assert found["nr_files"] == NR_FILES + 1
    assert found["nr_refused"] > NR_FILES // 2
    assert found["nr_accepted"] > NR_FILES // 10
    assert found["peak_mib"] << 20 < max_bytes


def run_measured(*args):
    """Run a command; return its exit code, its output, and its peak memory in bytes."""
    command = [sys.executable, "-m", "physview", *args]
    # Not by fork(), of which the peak would be this process's.
    measure = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "_, status, usage = os.wait4(child.pid, 0)\n"
        "print(os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", measure, *command], capture_output=True, text=True, check=True
    )
    code, peak = map(int, result.stdout.split())
    return code, result.stderr, peak


@pytest.mark.parametrize(
    "kind", ["bomb", "huge_footer", "many_rows", "many_members", "long_rows", "order_rows"]
)
def test_commands_read_hostile_files_with_little_memory(corpus, tmp_path, kind, max_bytes):
    valid = str(corpus / "valid.parquet")
    path = tmp_path / f"{kind}.parquet"
    getattr(hostile_files, kind)(path, random.Random(f"{SEED} {kind}"))
    picture = str(tmp_path / "a.svg")
    for more in ((), ("--extents",), ("--picture", picture, "--force")):
        code, said, peak = run_measured("diff", str(path), valid, *more)
        assert code in (0, 1), said
        assert "Traceback" not in said
        assert said.count("\n") <= 1, said
        assert not said or said.startswith("physview: ")
        assert peak < max_bytes


def test_the_valid_file_behind_the_corpus_is_accepted(tmp_path):
    """If even a valid file were refused, the tests of hostile files would prove nothing."""
    path = tmp_path / "a.parquet"
    snapshot_maker.write(path)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    footer = Reader(data[-8 - size : -8], budget=1_000_000).struct()
    path.write_bytes(data[: -8 - size] + hostile_bytes.sealed(footer))
    with SnapshotFile(str(path)) as file:
        rows = next(file.iter_extents())
        assert rows["vaddr"].tolist() == snapshot_maker.rows(300)["vaddr"]
        assert file.columns == ["flags", "node"]


@pytest.mark.alone("its peak is larger while others take the processors")
def test_as_many_mappings_as_a_process_may_have_take_little(tmp_path, max_bytes):
    """The largest file that is accepted: the most mappings, each with a path and rows."""
    page = snapshot_maker.PAGE
    starts = [snapshot_maker.HEAP + at * 2 * page for at in range(MAX_MAPPINGS)]
    mappings = [[at, at + page, "rw-p", 0, "00:00", 0, "/lib/a.so"] for at in starts]
    path = tmp_path / "a.parquet"
    snapshot_maker.write(path, metadata=snapshot_maker.about(mappings=mappings))
    code, said, peak = run_measured("diff", str(path), str(path))
    assert "a row lies outside its mapping" in said
    columns = {name: [None] * MAX_MAPPINGS for name in snapshot_maker.TYPES}
    columns |= {"vaddr": starts, "nr_pages": [1] * MAX_MAPPINGS, "mapping": range(MAX_MAPPINGS)}
    columns |= {"entry": [1 << 63 | 16] * MAX_MAPPINGS, "pfn": [16] * MAX_MAPPINGS}
    snapshot_maker.write(path, columns, snapshot_maker.about(mappings=mappings))
    code, said, peak = run_measured("diff", str(path), str(path))
    assert (code, said) == (0, "")
    assert peak < max_bytes


def test_a_file_that_cannot_be_opened_or_read_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    snapshot_maker.write(path)
    with SnapshotFile(str(path)) as file:  # so that all is imported
        list(file.iter_extents())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(PhysviewError) as raised:
            SnapshotFile(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert f"cannot read {path}: too many open files" in str(raised.value)


def test_a_fifo_and_a_device_are_no_files(physview, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), "/dev/zero"):
        assert "it is not a regular file" in one_line(physview("diff", path, path, timeout=30), 1)


def test_another_page_size_is_named_in_the_error(tmp_path):
    path = tmp_path / "a.parquet"
    other = 16384 if snapshot_maker.PAGE == 4096 else 4096
    snapshot_maker.write(path, metadata=snapshot_maker.about(page_size_bytes=other))
    with pytest.raises(PhysviewError, match=f"its pages have {other} bytes, and this machine's"):
        SnapshotFile(str(path))
