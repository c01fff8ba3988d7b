# SPDX-License-Identifier: GPL-2.0-or-later
"""physview memview, run as a command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from failures import one_line, without_vm_note
from memory import PAGE
from paths import ROOT
from users import AS_NOBODY, WITHOUT_CAPABILITIES

from physview.sources import kmod as abi
from physview.system import hypervisor

REPORT_LINE = re.compile(r"[^:]+:  0x[0-9a-f]{16} -> (0x[0-9a-f]{16}|UNKNOWN)")


@pytest.mark.needs("pfn")
@pytest.mark.parametrize("source", ["auto", "pagemap", "reference"])
def test_the_report_is_a_header_and_40_lines_all_with_an_address(physview, source):
    result = physview("memview", "--source", source)
    assert (result.returncode, without_vm_note(result.stderr)) == (0, "")
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


@pytest.mark.needs("no-capabilities")
def test_virtual_addresses_need_no_privilege(physview):
    result = physview("memview", "--virtual", prefix=WITHOUT_CAPABILITIES)
    assert (result.returncode, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header == "Memory map report (virtual)"
    assert len(lines) == 40
    assert all(re.fullmatch(r"[^:]+:  0x[0-9a-f]{16}", line) for line in lines)
    entries = json.loads(physview("memview", "--virtual", "--json").stdout)["entries"]
    assert [entry["paddr"] for entry in entries] == [None] * 40


VM_NOTE = "physview: this machine is a VM"


@pytest.mark.needs("pfn")
@pytest.mark.parametrize(
    "words", [(), ("--json",), ("--repeat", "3"), ("--repeat", "2", "--sleep", "0.1", "--json")]
)
def test_in_a_vm_stderr_says_once_that_the_addresses_are_guest_physical(physview, words):
    found = hypervisor.detect()
    result = physview("memview", *words)
    assert result.returncode == 0
    lines = [line for line in result.stderr.splitlines() if "guest-physical" in line]
    assert len(lines) == (found is not None)
    assert result.stderr.count(VM_NOTE) == len(lines)
    assert "guest-physical" not in result.stdout
    if found:
        assert f"this machine is {found}: its physical addresses are guest-physical" in lines[0]


@pytest.mark.needs("pfn")
def test_the_note_of_the_vm_comes_after_the_report_in_one_file(physview):
    result = physview("memview", capture_output=False, stdout=subprocess.PIPE, stderr=-2)
    header, *lines = result.stdout.splitlines()
    assert header.startswith("Memory map report")
    assert [VM_NOTE in line for line in lines] == [False] * 40 + [True] * (len(lines) - 40)


@pytest.mark.needs("no-capabilities")
def test_without_physical_addresses_nothing_is_said_of_the_vm(physview):
    assert VM_NOTE not in physview("memview", "--virtual").stderr
    hidden = physview("memview", prefix=WITHOUT_CAPABILITIES)
    assert (VM_NOTE in hidden.stderr) == (" -> 0x" in hidden.stdout and bool(hypervisor.detect()))


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
    assert lines[0].strip() == "2 repetitions, each in a new process"
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
def test_invalid_numbers_are_refused(physview, option):
    assert "is not a " in one_line(physview("memview", *option), 2)


@pytest.mark.needs("no-capabilities")
def test_without_privilege_the_addresses_are_shown_and_the_cause_said(physview):
    result = physview("memview", prefix=WITHOUT_CAPABILITIES)
    line = one_line(result, 1)
    assert "40 addresses are UNKNOWN" in line
    assert "hides its frame number" in line
    assert "root" in line
    assert result.stdout.count(" -> UNKNOWN") == 40
    assert len(result.stdout.splitlines()) == 41


@pytest.mark.needs("nobody")
def test_nobodys_report_ends_with_the_line_that_works(physview):
    line = one_line(physview("memview", prefix=AS_NOBODY), 1)
    assert "40 addresses are UNKNOWN" in line
    words = shlex.split(line.partition("as root: ")[2].removeprefix("sudo "))
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again
    assert len(again.stdout.splitlines()) == 41


@pytest.mark.needs("mountns")
def test_a_kernel_without_pagemap(physview, tmp_path):
    """A copy of /proc's files on another file system, without pagemap."""
    source = ["--source", "pagemap"] if os.path.exists(abi.DEVICE) else []  # else it is the module
    result = physview(
        *["memview", *source],
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
    """A copy of the package without its compiled core, and a Python without packages."""
    package = tmp_path / "physview"
    ignore = "*.so", "__pycache__"

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
    assert "the compiled core is missing" in result.stderr
    assert without_vm_note(result.stderr).count("\n") == 1
    assert len(result.stdout.splitlines()) == 41
    assert "UNKNOWN" not in result.stdout
    assert json.loads(bare_checkout("memview", "--json").stdout)["source"] == "reference"


def test_the_core_that_is_asked_for_and_missing(bare_checkout):
    line = one_line(bare_checkout("memview", "--source", "pagemap"), 1)
    assert "the compiled core is missing" in line
    assert "to build it: install physview again" in line
