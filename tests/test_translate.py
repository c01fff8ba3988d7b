# SPDX-License-Identifier: GPL-2.0-or-later
"""physview translate, run as a command."""

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from failures import ends_while_written, one_line
from memory import PAGE, USER_END, every_second_page, pfnmap_ranges
from users import AS_NOBODY


@pytest.mark.needs("pfn", "cc")
def test_100_000_random_addresses_are_where_an_independent_reader_finds_them(
    physview, python, compiled
):
    child = python(
        "import memory, random\n"
        "dense = memory.Region(20000).touch()\n"
        "sparse = memory.Region(50000).touch(*random.Random(3).sample(range(50000), 5000))\n"
        "with memory.Region.huge(4) as huge: huge.touch()\n"
        "import sys; sys.stdout.write(f'{dense.start} {sparse.start} {huge.start}\\n')",
        wait="import signal; signal.pause()",
    )
    os.kill(child.pid, signal.SIGSTOP)

    maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
    ranges = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in maps]
    choose = random.Random(4)
    weights = [min(end - start, 1 << 30) for start, end in ranges]
    addresses = [
        hex(choose.randrange(*span)) for span in choose.choices(ranges, weights, k=100_000)
    ]
    stdin = "\n".join(addresses)
    ours = physview("translate", str(child.pid), "-", input=stdin)
    theirs = subprocess.run(
        [compiled("reader"), str(child.pid)],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ours.returncode == 1
    got = []
    for line, address in zip(ours.stdout.splitlines(), addresses, strict=True):
        vaddr, arrow, paddr = line.split()[:3]
        assert (int(vaddr, 16), arrow) == (int(address, 16), "->")
        got.append("-" if paddr == "UNKNOWN" else hex(int(paddr, 16)))
    assert got == theirs.stdout.split()
    assert sum(paddr != "-" for paddr in got) > 20_000


@pytest.mark.needs("pfn")
def test_each_line_says_what_lies_there_and_why_it_is_nowhere(physview, sleeper):
    maps = Path(f"/proc/{sleeper.pid}/maps").read_text().splitlines()
    stack = next(int(m.split("-")[1].split()[0], 16) for m in maps if m.endswith("[stack]")) - 8
    result = physview("translate", str(sleeper.pid), hex(stack), "0", hex((1 << 64) - PAGE))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"0x{stack:016x} -> 0x[0-9a-f]{{16}}  rw-p \[stack\]", lines[0])
    assert re.fullmatch("0x0{16} -> UNKNOWN +nothing is mapped at this address", lines[1])
    assert "beyond the process's user address space" in lines[2]
    assert [line.split(":")[1][:21] for line in result.stderr.splitlines()] == [
        " 1 address is UNKNOWN"
    ] * 2


@pytest.mark.needs("pfn")
def test_a_range_and_its_json(physview, python):
    child = python(
        "import memory; r = memory.Region(100).touch(*range(10, 20)); print(r.start)",
        wait="import signal; signal.pause()",
    )
    maps = Path(f"/proc/{child.pid}/smaps").read_text()
    line = rf"\n([0-9a-f]+)-[0-9a-f]+ rw-p .*\n(?:Size: +{100 * PAGE // 1024} kB)"
    start = int(re.search(line, maps).group(1), 16)
    where = f"{start:#x}-{start + 100 * PAGE:#x}"
    result = physview("translate", str(child.pid), where)
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 12
    assert "(10 pages)" in result.stdout.splitlines()[0]
    assert "(80 pages)" in result.stdout.splitlines()[-1]
    document = json.loads(physview("translate", str(child.pid), where, "--json").stdout)
    assert (document["source"], document["pid"]) == ("pagemap", child.pid)
    entries = document["entries"]
    assert [entry.get("nr_pages", 1) for entry in entries] == [10, *[1] * 10, 80]
    assert sum(entry["paddr"] is not None for entry in entries) == 10
    assert entries[0]["cause"] == "absent"
    assert entries[0]["mapping"]["perms"] == "rw-p"


def test_a_range_of_terabytes_is_a_few_lines(physview, sleeper):
    start = time.monotonic()
    result = physview("translate", str(sleeper.pid), f"0-{1 << 64:#x}")
    assert result.returncode == 1
    assert "nothing is mapped at this address" in result.stdout
    assert time.monotonic() - start < 30  # reading it through would take hours


def test_addresses_come_from_stdin_in_order(physview):
    result = physview("translate", "self", "5", "-", "7", input="0x10\n\n 0x20 \n")
    assert [int(line.split()[0], 16) for line in result.stdout.splitlines()] == [5, 16, 32, 7]


def test_nothing_on_stdin_is_nothing_to_do(physview):
    result = physview("translate", "self", "-", input="")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    document = json.loads(physview("translate", "self", "-", "--json", input="").stdout)
    assert document["entries"] == []


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("hello", "'hello' is no address"),
        ("400000", "'400000' may be 0x400000 or, as decimal, 0x61a80; write one of these"),
        ("0x1000-400000", "'400000' may be 0x400000 or, as decimal, 0x61a80"),
        ("-5", "negative"),
        ("-0x10", "negative"),
        ("0x1ffffffffffffffff", "more than 64 bits"),
        ("1_000", "is no address"),
        ("٣", "is no address"),
        ("0x", "is no address"),
        ("", "is no address"),
        ("0x2000-0x1000", "ends before it starts"),
        ("0x1000-0x1000", "ends before it starts, or is empty"),
        ("1-2-3", "is no range"),
        ("0x1000-", "is no range"),
        ("0x1000-7fff000g", "is no address"),
    ],
)
def test_invalid_addresses_are_refused(physview, word, why):
    assert why in one_line(physview("translate", "self", word), 2)
    if word:
        result = physview("translate", "self", "-", input=f"0x1000\n{word}\n")
        assert f"stdin line 2: '{word}"[:15] in one_line(result, 2) or not word.isascii()
        assert result.stdout == ""  # nothing half written


def test_bytes_on_stdin_that_are_no_text(physview):
    result = physview("translate", "self", "-", input=b"\xff\xfe\n", text=False)
    assert result.returncode == 2
    assert b"stdin line 1" in result.stderr


@pytest.mark.parametrize("pid", ["4194305", "99999999999999999999999"])
def test_no_such_pid(physview, pid):
    assert "no process" in one_line(physview("translate", pid, "0"), 1)


def test_a_name_that_no_process_has(physview):
    line = one_line(physview("translate", "no-such-program", "0"), 1)
    assert "no process is named 'no-such-program'" in line


def test_a_name_that_one_process_has_and_one_that_two_have(physview, tmp_path):
    program = tmp_path / "physview-sleep"
    program.symlink_to("/bin/sleep")
    first = subprocess.Popen([program, "60"])
    second = None
    try:
        result = physview("translate", "physview-sleep", "0", "--json")
        assert json.loads(result.stdout)["pid"] == first.pid
        second = subprocess.Popen([program, "60"])
        line = one_line(physview("translate", "physview-sleep", "0"), 2)
        assert "2 processes have that name" in line
        assert str(first.pid) in line
        assert str(second.pid) in line
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()


@pytest.mark.needs("kthread")
def test_a_kernel_thread(physview):
    assert "kernel thread, which has no user memory" in one_line(physview("translate", "2", "0"), 1)


def test_a_process_that_ends_while_its_range_is_read(python):
    child = python(every_second_page(200_000, 800))
    ends_while_written(child, 50, "translate", str(child.pid), f"0-{USER_END:#x}")


@pytest.mark.needs("nobody")
def test_nobody_translates_to_unknown_and_is_refused_others(physview, sleeper):
    result = physview("translate", "self", "0", prefix=AS_NOBODY)
    assert result.returncode == 1
    line = one_line(physview("translate", str(sleeper.pid), "0", prefix=AS_NOBODY), 1)
    assert f"you may not examine process {sleeper.pid}; run as root" in line


@pytest.mark.needs("pfn", "pfnmap")
def test_a_device_mapping_is_called_one(physview, sleeper):
    vvar = pfnmap_ranges(sleeper.pid)[0].start
    result = physview("translate", str(sleeper.pid), hex(vvar))
    assert re.fullmatch(
        rf"0x{vvar:016x} -> UNKNOWN +r--p \[vvar\]  a device mapping.*\n", result.stdout
    )
