# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of all commands: wrong use, streams and signals."""

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


def test_version(physview):
    assert re.fullmatch(r"physview \d+\.\d+\.\d+\n", physview("--version").stdout)


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
