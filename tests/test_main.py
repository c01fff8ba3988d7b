# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of all commands: wrong use, streams and signals."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module

import pytest
from failures import one_line
from limits import DEFAULT_SIGNALS
from memory import USER_END

from physview.commands import COMMANDS


@pytest.mark.parametrize(
    "args", [[], ["memvew"], ["memview", "--sourc", "auto"], ["translate", "1"]]
)
def test_wrong_use_is_one_line(physview, args):
    assert "--help" in one_line(physview(*args, interpreter=True), 2)


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(physview, option):
    result = physview(option, interpreter=True)
    assert re.fullmatch(r"physview \d+\.\d+\.\d+\n", result.stdout)


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
    (command,) = re.findall(r"[;?] ([^;?]*) shows its usage\n$", line)
    assert command.endswith(f" {words[0]} --help")
    assert shell(command) == physview(words[0], "--help").stdout


def shell(command):
    """What a command of a message prints. The user copies it as it is."""
    done = subprocess.run(
        ["sh", "-c", command], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


def test_a_misspelt_command_gets_the_nearest_names_and_a_line_that_lists_all(physview):
    line = one_line(physview("mpas"), 2)
    (command,) = re.findall(
        r"^physview: there is no command 'mpas'; do you mean maps or pages\? (.*) lists all"
        r" commands\n$",
        line,
    )
    listed = shell(command)
    assert listed == physview("--help").stdout
    (each,) = re.findall(
        r"^(.*)\s+help\s+COMMAND\s+describes\s+a\s+command\.$", listed, re.MULTILINE
    )
    assert shell(f"{each} help maps") == physview("maps", "--help").stdout


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_its_lines_at_words_to_fit_the_terminal(physview, name, columns):
    module = import_module(f"physview.commands.{name}")
    text = physview(name, "--help", env=os.environ | {"COLUMNS": str(columns)}).stdout
    usage, *paragraphs = re.split(r"\n\n", text)
    described = module.__doc__.strip().split("\n\n")
    for paragraph, words in zip(paragraphs, described, strict=False):
        assert paragraph.split() == words.split()
    long = [line for line in text.removeprefix(usage).splitlines() if len(line) > columns]
    if columns >= 80:
        assert long == []
    # A single word may be longer than a narrow terminal, and so may choices and a usage.
    long = [line for line in long if "{" not in line]
    assert [line for line in long if " " in line.strip()] == []


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
    command = f"{sys.executable} -m physview translate {child.pid} 0-{USER_END:#x} | head -n 3"
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
