# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of all commands: wrong use, streams and signals."""

import json
import re
import signal
import subprocess
import sys

import pytest
from failures import one_line
from limits import DEFAULT_SIGNALS


@pytest.mark.parametrize(
    "args", [[], ["memvew"], ["memview", "--sourc", "auto"], ["translate", "1"]]
)
def test_wrong_use_is_one_line(physview, args):
    assert "--help" in one_line(physview(*args), 2)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(physview, option):
    assert re.fullmatch(r"physview \d+\.\d+\.\d+\n", physview(option).stdout)


@pytest.mark.parametrize("words", [[], ["maps"], ["vm"], ["trace"]])
def test_help_is_a_command_too(physview, words):
    result = physview("help", *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == physview(*words, "--help").stdout
    assert result.stdout.startswith("usage: physview")


@pytest.mark.parametrize(
    "words",
    [
        ["maps", "--bogus"],
        ["pages"],
        ["module", "fly"],
        ["vm", "--cpus", "x"],
        ["trace"],
        ["owners"],
    ],
)
def test_wrong_use_of_a_command_points_to_its_own_help(physview, words):
    line = one_line(physview(*words), 2)
    assert line.startswith(f"physview {words[0]}: ")
    assert line.endswith(f" see 'physview {words[0]} --help'\n")


def test_options_stand_before_between_and_after_arguments(physview):
    where = [["--json", "self", "0x0", "0x1"], ["self", "--json", "0x0", "0x1"]]
    for words in (*where, ["self", "0x0", "--json", "0x1"], ["self", "0x0", "0x1", "--json"]):
        entries = json.loads(physview("translate", *words).stdout)["entries"]
        assert [entry["vaddr"] for entry in entries] == ["0x0", "0x1"]
    assert physview("maps", "self", "--rollup", "self").returncode == 0


def test_an_empty_name_is_no_process(physview):
    line = one_line(physview("maps", ""), 2)
    assert line == "physview: '' is no process: the name is empty; ps -e lists the processes\n"


def test_a_reader_that_has_seen_enough(python):
    # Every other page, so that no two lines are folded into one: more than a pipe takes.
    child = python("import memory; r = memory.Region(50000).touch(*range(0, 50000, 2))")
    command = f"{sys.executable} -m physview translate {child.pid} 0-{1 << 47:#x} | head -n 3"
    script = f"set -o pipefail; {command}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 128 + signal.SIGPIPE
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == ""


def test_ctrl_c_ends_it_at_once_and_in_silence():
    command = [*DEFAULT_SIGNALS, sys.executable, "-m", "physview", "memview", "--sleep", "60"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
