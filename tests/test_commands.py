# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a person meets it: every case in a process of its own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import AS_NOBODY, ROOT, WITHOUT_CAPABILITIES
from memory import PAGE

REPORT_LINE = re.compile(r"[^:]+:  0x[0-9a-f]{16} -> (0x[0-9a-f]{16}|UNKNOWN)")


def one_line(result, code):
    """The one line that a failed run says."""
    assert result.returncode == code, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("physview")
    return result.stderr


# memview


@pytest.mark.needs("pfn")
@pytest.mark.parametrize("source", ["auto", "pagemap", "reference"])
def test_the_report_is_a_header_and_40_lines_all_with_an_address(physview, source):
    result = physview("memview", "--source", source)
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header == "Memory map report (virtual -> physical)"
    assert len(lines) == 40
    for line in lines:
        assert REPORT_LINE.fullmatch(line), line
        assert "UNKNOWN" not in line
    assert [line.split(":")[0] for line in lines[:3]] == ["argv", "argv[0]", "envp"]


@pytest.mark.needs("pfn")
def test_the_reports_json(physview):
    result = physview("memview", "--json")
    document = json.loads(result.stdout)
    assert document["source"] == "pagemap"
    assert isinstance(document["pid"], int)
    assert len(document["entries"]) == 40
    for entry in document["entries"]:
        assert int(entry["paddr"], 16) == entry["pfn"] * PAGE + int(entry["vaddr"], 16) % PAGE
        assert entry["cause"] is None
        assert "present" in entry["flags"]


def test_virtual_addresses_need_nobody(physview):
    result = physview("memview", "--virtual", prefix=WITHOUT_CAPABILITIES)
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header == "Memory map report (virtual)"
    assert len(lines) == 40
    assert all(re.fullmatch(r"[^:]+:  0x[0-9a-f]{16}", line) for line in lines)
    entries = json.loads(physview("memview", "--virtual", "--json").stdout)["entries"]
    assert [entry["paddr"] for entry in entries] == [None] * 40


@pytest.mark.needs("pfn")
def test_repeated_runs_are_new_processes_and_file_pages_stay(physview):
    result = physview("memview", "--repeat", "3", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert len({run["pid"] for run in document["runs"]}) == 3
    by_label = {item["label"]: item for item in document["labels"]}
    assert len(by_label) == 40
    # main, lmsg and gmsg lie in clean pages of the page cache; the stack is made anew.
    assert {by_label[name]["physical"] for name in ("main", "lmsg", "gmsg")} == {"stayed"}
    assert by_label["main"]["nr_physical"] == 1
    assert by_label["&lmsg"]["nr_virtual"] in (1, 2, 3)


@pytest.mark.needs("pfn")
def test_the_repeat_table_has_a_line_for_each_label(physview):
    lines = physview("memview", "--repeat", "2").stdout.splitlines()
    assert lines[0].strip() == "2 runs, a new process each"
    assert len(lines) == 42
    assert lines[2].split()[0] == "argv"


def test_sleep_says_the_pid_before_it_sleeps():
    command = [sys.executable, "-m", "physview", "memview", "--virtual", "--sleep", "30"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert f"pid {process.pid} sleeps for 30 s" in line
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("option", [["--repeat", "0"], ["--repeat", "x"], ["--sleep", "-1"]])
def test_numbers_that_are_none(physview, option):
    assert "is not a number" in one_line(physview("memview", *option), 2)


def test_without_privilege_the_addresses_are_shown_and_the_cause_said(physview):
    result = physview("memview", prefix=WITHOUT_CAPABILITIES)
    line = one_line(result, 1)
    assert "40 addresses are UNKNOWN" in line
    assert "hides its frame number" in line
    assert "CAP_SYS_ADMIN" in line
    assert result.stdout.count(" -> UNKNOWN") == 40
    assert len(result.stdout.splitlines()) == 41


# What nobody sees


@pytest.mark.needs("nobody")
def test_nobodys_report_ends_with_the_line_that_works(physview):
    line = one_line(physview("memview", prefix=AS_NOBODY), 1)
    assert "40 addresses are UNKNOWN" in line
    words = shlex.split(line.partition("run as root: ")[2])
    assert words[0] == "sudo"
    again = subprocess.run(words[1:], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again
    assert len(again.stdout.splitlines()) == 41


@pytest.mark.needs("nobody")
def test_nobody_translates_to_unknown_and_is_refused_others(physview, sleeper):
    result = physview("translate", "self", "0", prefix=AS_NOBODY)
    assert result.returncode == 1
    line = one_line(physview("translate", str(sleeper.pid), "0", prefix=AS_NOBODY), 1)
    assert f"process {sleeper.pid} is not yours to look into; run as root" in line


@pytest.mark.needs("nobody")
def test_nobodys_doctor_tells_the_truth(physview):
    result = physview("doctor", "--json", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (1, "")
    found = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert found["user"]["details"] == {
        "uid": 65534,
        "capabilities": [],
        "first_user_namespace": True,
    }
    assert found["pagemap"]["state"] == "part"
    assert found["pagemap"]["details"]["frames"] is False
    assert found["pagemap"]["remedy"].startswith("run as root: sudo ")
    assert found["kpage files"]["state"] == "no"


# translate


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
    import random

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
    vvar = next(int(m.split("-")[0], 16) for m in maps if m.endswith("[vvar]"))
    result = physview("translate", str(sleeper.pid), hex(stack), hex(vvar), "0", str(1 << 63))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"0x{stack:016x} -> 0x[0-9a-f]{{16}}  rw-p \[stack\]", lines[0])
    assert re.fullmatch(rf"0x{vvar:016x} -> UNKNOWN +r--p \[vvar\]  a device mapping.*", lines[1])
    assert lines[2].endswith("nothing is mapped at this address")
    assert "beyond the process's user address space" in lines[3]
    assert [line.split(":")[1][:21] for line in result.stderr.splitlines()] == [
        " 1 address is UNKNOWN"
    ] * 3


@pytest.mark.needs("pfn")
def test_a_range_and_its_json(physview, python):
    child = python(
        "import memory; r = memory.Region(100).touch(*range(10, 20)); print(r.start)",
        wait="import signal; signal.pause()",
    )
    maps = Path(f"/proc/{child.pid}/smaps").read_text()
    start = int(re.search(r"\n([0-9a-f]+)-[0-9a-f]+ rw-p .*\n(?:Size: +400 kB)", maps).group(1), 16)
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
    result = physview("translate", "self", "5", "-", "7", input="0x10\n\n 32 \n")
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
        ("7ffd3a", "hexadecimal needs 0x; write 0x7ffd3a"),
        ("-5", "negative"),
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
def test_what_is_no_address(physview, word, why):
    assert why in one_line(physview("translate", "self", word), 2)
    if word:
        result = physview("translate", "self", "-", input=f"0x1000\n{word}\n")
        assert f"stdin line 2: '{word}"[:15] in one_line(result, 2) or not word.isascii()
        assert result.stdout == ""  # nothing half written


def test_bytes_on_stdin_that_are_no_text(physview):
    result = physview("translate", "self", "-", input=b"\xff\xfe\n", text=False)
    assert result.returncode == 2
    assert b"stdin line 1" in result.stderr


# Which process


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


@pytest.mark.needs("kthread", "root")
def test_a_kernel_thread(physview):
    assert "kernel thread, which has no user memory" in one_line(physview("translate", "2", "0"), 1)


def test_a_process_that_ends_while_its_range_is_read(python):
    child = python("import memory; r = memory.Region(200000).touch()")
    command = [sys.executable, "-m", "physview", "translate", str(child.pid), f"0-{1 << 47:#x}"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(50):
        reader.stdout.readline()
    child.kill()  # the reader is held up by its full pipe
    child.wait()
    _, stderr = reader.communicate()
    assert reader.returncode == 1
    assert stderr == (
        f"physview: process {child.pid} is gone: it ended while it was read; start again with a"
        " living process\n"
    )


# Streams and signals


def test_a_reader_that_has_seen_enough(python):
    child = python("import memory; r = memory.Region(50000).touch()")
    command = f"{sys.executable} -m physview translate {child.pid} 0-{1 << 47} | head -n 3"
    script = f"set -o pipefail; {command}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 128 + signal.SIGPIPE
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == ""


def test_ctrl_c_ends_it_at_once_and_in_silence():
    command = [sys.executable, "-m", "physview", "memview", "--sleep", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "sleeps" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert (stdout, stderr) == ("", "")


def test_a_full_disk():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "physview", "memview", "--virtual"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert "No space left on device" in one_line(result, 1)


def test_a_closed_stdout():
    command = f"{sys.executable} -m physview memview --virtual >&-"
    result = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert "standard output is closed" in one_line(result, 1)


# Kernels and installations that lack something


@pytest.mark.needs("mountns")
def test_a_kernel_without_pagemap(physview, tmp_path):
    """Real files of /proc on another file system, where pagemap is what is missing."""
    result = physview(
        "memview",
        prefix=[
            *["unshare", "-m", "sh", "-c"],
            f"cp /proc/self/stat /proc/self/maps {tmp_path} && mount -t tmpfs none /proc"
            f' && mkdir /proc/self && cp {tmp_path}/stat {tmp_path}/maps /proc/self && exec "$@"',
            "sh",
        ],
    )
    line = one_line(result, 1)
    assert "cannot read /proc/self/pagemap: this kernel was built without it" in line
    assert "CONFIG_PROC_PAGE_MONITOR" in line
    assert result.stdout == ""


@pytest.mark.needs("mountns")
def test_no_proc_at_all(physview):
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    assert "/proc is not mounted" in one_line(physview("memview", prefix=hide), 1)


@pytest.fixture
def bare_checkout(tmp_path):
    """The package without its compiled core, for a Python that has nothing installed."""
    package = tmp_path / "physview"
    ignore = "*.so", "__pycache__"
    import shutil

    shutil.copytree(ROOT / "physview", package, ignore=shutil.ignore_patterns(*ignore))

    def run(*args):
        command = [sys.executable, "-I", "-S", "-c"]
        program = (
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = 'physview'\n"
            "from physview.commands import main; sys.exit(main())"
        )
        return subprocess.run(
            [*command, program, *args], capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.needs("pfn")
def test_without_the_core_the_reference_serves_and_says_so(bare_checkout):
    result = bare_checkout("memview")
    assert result.returncode == 0
    assert "the compiled core is not there" in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(result.stdout.splitlines()) == 41
    assert "UNKNOWN" not in result.stdout
    assert json.loads(bare_checkout("memview", "--json").stdout)["source"] == "reference"


def test_the_core_that_is_asked_for_and_missing(bare_checkout):
    line = one_line(bare_checkout("memview", "--source", "pagemap"), 1)
    assert "the compiled core is not there" in line
    assert "./scripts/run" in line


# The rest


@pytest.mark.parametrize(
    "args", [[], ["memvew"], ["memview", "--sourc", "auto"], ["translate", "1"]]
)
def test_wrong_use_is_one_line(physview, args):
    assert "--help" in one_line(physview(*args), 2)


def test_version(physview):
    assert re.fullmatch(r"physview \d+\.\d+\.\d+\n", physview("--version").stdout)


@pytest.mark.needs("pfn")
def test_doctor_finds_the_main_job_possible(physview):
    result = physview("doctor")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert any(re.match(r"yes +pagemap +frame numbers are shown", line) for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_doctor_names_what_gets_the_rest(physview):
    findings = json.loads(physview("doctor", "--json").stdout)["findings"]
    for finding in findings:
        assert finding["state"] in ("yes", "part", "no")
        assert finding["value"]
    assert len({finding["name"] for finding in findings}) == len(findings) == 14
