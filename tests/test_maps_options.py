# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns, the order and the formats of maps. Its figures are those of smaps."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import start_stopped
from failures import one_line
from memory import HUGE, PAGE, WAIT, Region
from plain_reads import smaps
from readings import usage_of
from users import AS_NOBODY

from physview.analysis.usage import Usage
from physview.analysis.usage_reader import UsageReader
from physview.memory.snapshot import Snapshot
from physview.reporters.maps import coverage_lines
from physview.reporters.maps_columns import COLUMNS, SMAPS

KIB = 1024
SMAPS_OF = {
    "size": ["Size"],
    "rss": ["Rss"],
    "pss": ["Pss"],
    "uss": ["Private_Clean", "Private_Dirty"],
    "swap": ["Swap"],
    "swappss": ["SwapPss"],
    "anon": ["Anonymous"],
    "referenced": ["Referenced"],
    "dirty": ["Shared_Dirty", "Private_Dirty"],
    "pssdirty": ["Pss_Dirty"],
    "ksm": ["KSM"],
    "lazyfree": ["LazyFree"],
    "locked": ["Locked"],
}


def records(result):
    assert result.returncode == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def sums(fields, name):
    return sum(fields.get(part, 0) for part in SMAPS_OF[name])


def missing(fields, name):
    """Whether this kernel does not write a value."""
    return any(part not in fields for part in SMAPS_OF[name])


@pytest.mark.parametrize("frames", [False, True], ids=["smaps", "smaps and frames"])
def test_every_column_of_smaps(physview, stopped, python, frames):
    if os.uname().machine == "aarch64":  # in its VM, only physview has the same libraries
        start_stopped(python)  # so that their pages are shared, also when physview has ended
    names = ["start", *SMAPS_OF] + (["extents"] if frames else [])
    found = records(physview("maps", str(stopped.pid), "-o", ",".join(names), "--format", "csv"))
    expected = smaps(stopped.pid)
    assert len(found) >= len(expected) - 1  # [vsyscall]
    for row in found:
        fields = expected.get(int(row["start"], 16), {})
        for name in SMAPS_OF if fields else ():
            # Libraries' pages are shared with processes that start and end meanwhile.
            if name in ("pss", "uss") and fields["Shared_Clean"]:
                continue
            theirs = "" if missing(fields, name) else str(sums(fields, name))
            assert row[name] == theirs, (row, name)


# What smaps says of each column that the frames would tell, too.
FROM_SMAPS = {
    "rss": ("Rss",),
    "swap": ("Swap",),
    "anon": ("Anonymous",),
    "excl": ("Private_Clean", "Private_Dirty", "Private_Hugetlb"),
    "shared": ("Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"),
    "huge": (
        *("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"),
        *("Shared_Hugetlb", "Private_Hugetlb"),
    ),
}


def test_columns_that_no_frame_is_read_for_are_sums_of_smaps(physview, stopped):
    names = ["start", *FROM_SMAPS]
    text = physview("maps", str(stopped.pid), "-o", ",".join(names), "--format", "csv").stdout
    expected = smaps(stopped.pid)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) > 10
    for row in rows:
        sizes = expected.get(int(row["start"], 16), {})
        for name, parts in FROM_SMAPS.items() if sizes else ():
            # Libraries' pages are shared with processes that start and end meanwhile.
            if name in ("excl", "shared") and sizes["Shared_Clean"]:
                continue
            assert int(row[name]) == sum(sizes.get(part, 0) for part in parts), (row, name)
    assert any(int(row["excl"]) for row in rows)


def test_offset_device_inode_flags_and_thp(physview, stopped):
    names = "start,end,perm,offset,dev,inode,vmflags,thpeligible,name"
    lines = physview("maps", str(stopped.pid), "-o", names, "--format", "jsonl").stdout
    found = {int(row["start"], 16): row for row in map(json.loads, lines.splitlines())}
    expected = smaps(stopped.pid)
    with open(f"/proc/{stopped.pid}/smaps") as file:
        text = file.read()
    for item in re.split(r"^(?=[0-9a-f]+-)", text, flags=re.M)[1:]:
        head, flags = item.partition("\n")[0], re.search("VmFlags: (.*?) *\n", item).group(1)
        start, end, perm, offset, dev, inode, name = re.match(
            r"(\S+)-(\S+) (\S+) (\S+) (\S+) (\S+) *(.*)", head
        ).groups()
        row = found.get(int(start, 16))
        if row is None:  # [vsyscall]
            continue
        assert row["end"] == hex(int(end, 16))
        values = (row["perm"], row["offset"], row["dev"], row["inode"], row["vmflags"], row["name"])
        assert values == (perm, int(offset, 16), dev, int(inode), flags, name)
        assert ("THPeligible" in text) == (row["thpeligible"] is not None)
    assert set(expected) - set(found) <= {0xFFFFFFFFFF600000}


def test_a_rollup_is_the_kernels(physview, stopped):
    names = "pid,size,rss,pss,uss,swap,swappss,referenced,dirty,locked,tables,command"
    (row,) = records(physview("maps", str(stopped.pid), "--rollup", "-o", names, "--format", "csv"))
    sizes = {}
    for line in Path(f"/proc/{stopped.pid}/smaps_rollup").read_text().splitlines()[1:]:
        words = line.split()
        sizes[words[0].rstrip(":")] = int(words[1]) * KIB
    for name in ("rss", "swap", "swappss", "referenced", "dirty", "locked"):
        assert int(row[name]) == sums(sizes, name), name
    assert abs(int(row["pss"]) - sizes["Pss"]) < 1 << 20  # of libraries that others use, too
    status = Path(f"/proc/{stopped.pid}/status").read_text()
    assert int(row["tables"]) == int(re.search(r"VmPTE:\s+(\d+)", status).group(1)) * KIB
    assert int(row["size"]) == int(re.search(r"VmSize:\s+(\d+)", status).group(1)) * KIB
    assert row["command"] == Path(f"/proc/{stopped.pid}/comm").read_text().rstrip("\n")


@pytest.mark.needs("nobody")
def test_nobody_sees_pss_of_its_own_processes(physview):
    result = physview("maps", "self", "-o", "+pss,swappss", prefix=AS_NOBODY)
    assert result.returncode == 0
    assert " pss swappss " in result.stdout.splitlines()[0]
    result = physview("maps", "self", "-o", "start,pss,name", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (0, "")  # no frame is missed


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-o", "rss,psss"], "no column 'psss'; did you mean pss"),
        (["-o", "qqqqqq"], "no column 'qqqqqq'; choose from pid,start,"),
        (["-o", "+"], "-o names no column"),
        (["-o", ""], "-o names no column"),
        (["-o", "a\nb"], "no column 'a\\nb'"),
        (["--sort", "rs"], "no column 'rs'; did you mean rss"),
        (["--sort=-nam"], "no column 'nam'; did you mean name"),
        (["--sort", ""], "no column ''"),
        (["--rollup", "-o", "start"], "--rollup has no column start"),
        (["--rollup", "--sort", "vmflags"], "--rollup has no column vmflags"),
        (["-o", "tables"], "the column tables needs --rollup"),
        (["--top", "0"], "'0' is not a number from 1"),
        (["--every", "0"], "'0' is not a time from 0.01s to 1d"),
        (["--ticks", "2"], "--ticks needs --every"),
        (["--frames"], "--frames needs --rollup"),
        (["--json", "--every", "1"], "--json and --every exclude each other"),
        (["--json", "--format", "csv"], "--json and --format exclude each other"),
        (["--bytes", "--si"], "--bytes and --si exclude each other"),
        (["--format", "parquet"], "name it with --output FILE"),
        (["--output", "x"], "--output needs --format parquet"),
        (["--format", "csv", "--force"], "--force needs --format parquet"),
    ],
)
def test_wrong_use(physview, words, why):
    assert why in one_line(physview("maps", "self", *words), 2)


@pytest.mark.parametrize("options", [[], ["--rollup"], ["-o", "start,rss,name"]], ids=" ".join)
def test_a_name_that_nothing_has(physview, options):
    result = physview("maps", "self", "--name", "no such*", *options)
    assert result.returncode == 1
    what = "process" if "--rollup" in options else "mapping"
    assert f"nothing to show: the name of no {what} matches 'no such*'" in result.stderr


def test_rows_are_chosen_and_sorted(physview, stopped):
    def read(*words):
        names = "rss,start,name"
        return records(physview("maps", str(stopped.pid), "-o", names, "--format", "csv", *words))

    everything = read()
    by_rss = sorted((int(row["rss"]) for row in everything), reverse=True)
    assert [int(row["rss"]) for row in read("--sort", "rss")] == by_rss
    assert [int(row["rss"]) for row in read("--top", "5")] == by_rss[:5]
    assert [int(row["rss"]) for row in read("--sort", "+rss", "--top", "3")] == by_rss[:-4:-1]
    names = [row["name"] for row in read("--sort", "name")]
    assert names == sorted(names)
    assert [row["name"] for row in read("--sort=-name")] == sorted(names, reverse=True)
    libraries = read("--name", "libc.so*")
    assert libraries
    assert libraries == [
        row for row in everything if os.path.basename(row["name"]).startswith("libc.so")
    ]
    assert read("--name", "/*/libc.so*") == libraries
    total = physview("maps", str(stopped.pid), "--name", "libc.so*").stdout
    assert f"{len(libraries)} mappings" in total


def test_columns_are_added_and_replaced(physview, stopped):
    def head(*words):
        return physview("maps", str(stopped.pid), *words).stdout.splitlines()[0].split()

    default = head()
    assert head("-o", "+PSS,pss,rss") == [*default[:-1], "pss", "name"]
    assert head("-o", "name,rss") == ["name", "rss"]
    narrow = os.environ | {"COLUMNS": "80"}
    line = physview("maps", str(stopped.pid), "-o", "+pss", env=narrow).stdout.splitlines()[0]
    assert " pss " in line
    listed = physview("maps", "self", "-o", "help").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [column.name for column in COLUMNS]
    assert sum(column.needs == SMAPS for column in COLUMNS) >= 10


def test_units(physview, stopped):
    def rss(*words):
        lines = physview("maps", str(stopped.pid), "-o", "rss", *words).stdout.splitlines()
        return lines[-1].split()[0]

    expected = sum(fields["Rss"] for fields in smaps(stopped.pid).values())
    assert rss("--bytes") == str(expected)
    assert rss("--si") == f"{expected / 1e6:.0f}M" if 9.95e6 <= expected < 999e6 else True
    mib = expected / KIB / KIB
    assert rss() == f"{mib:.0f}M" if 9.95 <= mib < 999 else True


@pytest.mark.needs("pfn", "kpage")
def test_json_with_columns(physview, stopped):
    words = ["maps", str(stopped.pid), "-o", "start,rss,pss,nodes,name", "--json"]
    document = json.loads(physview(*words).stdout)
    (process,) = document["processes"]
    expected = smaps(stopped.pid)
    for item in process["mappings"]:
        assert set(item) == {"start", "rss", "pss", "nodes", "name"}
        assert item["rss"] == expected[int(item["start"], 16)]["Rss"]
    assert set(process["total"]) == {"rss", "pss", "nodes"}
    assert process["total"]["rss"] == sum(item["rss"] for item in process["mappings"])
    for more in (["--sort", "rss"], ["--top", "1"], ["--name", "libc.so*"], ["--rollup"]):
        several = ["maps", str(stopped.pid), "self", "--json", *more]
        assert len(json.loads(physview(*several).stdout)["processes"]) == 2
    document = json.loads(physview("maps", "--all", "--rollup", "--json", "--top", "2").stdout)
    assert len(document["processes"]) == 2


def test_parquet_has_what_csv_has(physview, stopped, tmp_path):
    import pyarrow.parquet

    path = tmp_path / "maps.parquet"
    words = ["maps", str(stopped.pid), "-o", "pid,start,rss,anon,offset,name,vmflags"]
    physview(*words, "--format", "parquet", "--output", str(path))
    table = pyarrow.parquet.read_table(path)
    expected = records(physview(*words, "--format", "csv"))
    assert [
        {name: str(value) for name, value in row.items()} for row in table.to_pylist()
    ] == expected
    result = physview(*words, "--format", "parquet", "--output", str(path))
    assert "it is there already" in one_line(result, 1)


def test_again_and_again(physview, stopped):
    words = ["maps", str(stopped.pid), "--every", "0.05", "--ticks", "3", "--top", "1"]
    text = physview(*words).stdout
    assert len(re.findall(r"^\d{4}-\d\d-\d\dT\S+$", text, re.M)) == 3
    lines = physview(*words, "--format", "jsonl").stdout.splitlines()
    times = [json.loads(line)["time"] for line in lines]
    assert len(times) == 3 == len(set(times))
    assert sorted(times) == times
    found = records(physview(*words, "--format", "csv"))
    assert len(found) == 3


def test_again_until_the_process_ends(python, physview):
    child = python("from memory import Region; r = Region(10).touch()")
    command = [sys.executable, "-m", "physview", "maps", str(child.pid), "-o", "rss"]
    with subprocess.Popen(
        [*command, "--every", "0.05"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as reader:
        reader.stdout.readline()
        child.kill()
        child.wait()
        _, message = reader.communicate(timeout=20)
    assert reader.returncode == 1
    assert f"process {child.pid}" in message


# Each second page is protected, so that the kernel keeps 2 * 20,000 mappings apart.
MANY_MAPPINGS = """
from memory import PAGE, Region, libc
region = Region(40_000)
for page in range(0, 40_000, 2):
    libc.mprotect(region.start + page * PAGE, PAGE, 1)
"""


def test_the_first_line_comes_at_once_and_an_early_end_is_quiet(python):
    child = python(MANY_MAPPINGS, wait=WAIT)
    command = [sys.executable, "-m", "physview", "maps", str(child.pid), "-o", "+pss"]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        reader.stdout.readline()
        reader.stdout.readline()
        first = time.monotonic() - started
        reader.stdout.read()
        whole = time.monotonic() - started
    assert first < whole / 2
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        reader.stdout.readline()
        reader.stdout.close()
        assert reader.stderr.read() == b""
    assert -reader.returncode == signal.SIGPIPE
    code = (
        "import os\nfrom physview.commands import main\n"
        f"assert main(['maps', '{child.pid}', '-o', 'start,pss,name']) == 0\n"
        "import re; print(re.search('VmHWM:(.*) kB', open('/proc/self/status').read()).group(1))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) > 40_000
    assert int(lines[-1]) < 60_000


@pytest.mark.needs("pfn", "kpage", "thpmaps")
def test_shares_are_those_of_thpmaps(stopped):
    command = [sys.executable, shutil.which("thpmaps"), "--pid", str(stopped.pid), "--rollup"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = dict(re.findall(r"^(\S+): +\d+ kB \( *(\d+)%\)", output, re.M))
    assert theirs
    total = Usage()
    with Snapshot(stopped.pid) as snapshot, UsageReader() as reader:
        for usage in reader.iter_usage(snapshot):
            total.add(usage)
    nr = 0
    for name, percent in theirs.items():
        kind, _, how, *rest = name.split("-")
        folios = total.folios[kind]
        if how == "pmd":
            size = folios.pmd_bytes
        elif rest[0] == "partial":
            size = folios.partial_bytes
        else:
            size = getattr(folios, rest[0]).get(int(rest[1].removesuffix("kB")) * KIB, 0)
        whole = total.anon_bytes if kind == "anon" else total.file_bytes
        assert f"{size / whole:.0%}" == f"{percent}%", name
        nr += 1
    assert nr
    assert any(f"of {kind})" in line for line in coverage_lines(total) for kind in ("anon", "file"))


@pytest.mark.needs("pfn", "kpage", "thp")
@pytest.mark.parametrize("use_scan", [None, False])
def test_nothing_exceeds_all_with_a_huge_zero_page(use_scan):
    with Region.huge(4) as region:
        region.read(0)  # maps the huge zero page, and so does the next line
        region.read(HUGE // PAGE)
        region.touch(2 * HUGE // PAGE)
        with Snapshot("self", use_scan=use_scan) as snapshot, UsageReader() as reader:
            usage = usage_of(region, list(reader.iter_usage(snapshot)))
        assert usage.zero_bytes >= 2 * HUGE
        assert usage.resident_bytes == smaps("self")[usage.vma.start]["Rss"]
        assert max(usage.contiguous.values()) <= usage.resident_bytes
        assert usage.thp_bytes <= usage.resident_bytes
        assert usage.nr_extents == 1


RESERVES = """
from memory import NORESERVE, PAGE, PRIVATE, Region
nr_pages = (1 << 44) // PAGE
held = [Region(nr_pages, flags=PRIVATE | NORESERVE) for _ in range(3)]
if {touches}:
    held[0].touch(7, 1 << 20, nr_pages - 1)
    held[1].read(nr_pages // 2)
"""


def reading_of(python, *, touches):
    """What is read of a process with 48 TiB, the number of unsearched mappings, and smaps."""
    child = python(RESERVES.format(touches=touches), wait=WAIT)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    before = time.process_time()
    options = {"use_scan": False, "with_mappings": False}
    with Snapshot(child.pid, **options) as snapshot, UsageReader() as reader:
        found = list(reader.iter_usage(snapshot))
    assert time.process_time() - before < 10  # reading the entries of 48 TiB takes minutes
    assert sum(usage.size_bytes for usage in found) > 48 << 40
    expected = smaps(child.pid)
    for usage in found:
        if not usage.vma.path.startswith("/"):  # libraries' pages come and go
            assert usage.resident_bytes == expected[usage.vma.start]["Rss"]
    return [usage for usage in found if usage.size_bytes >= 1 << 44], reader.nr_unsearched


@pytest.mark.needs("pfn", "kpage", "bpf")
def test_terabytes_are_read_at_once_without_pagemap_scan(python):
    large, nr_unsearched = reading_of(python, touches=True)
    assert nr_unsearched == 0
    assert sum(usage.resident_bytes for usage in large) == 3 * PAGE
    assert sum(usage.zero_bytes for usage in large) == PAGE


def test_empty_terabytes_are_skipped_without_bpf(python, monkeypatch):
    monkeypatch.setattr(UsageReader, "_populated", lambda *_: None)
    large, nr_unsearched = reading_of(python, touches=False)
    assert nr_unsearched == len(large) >= 1
    assert {usage.zero_bytes for usage in large} == {None}
    assert {usage.resident_bytes for usage in large} == {0}
