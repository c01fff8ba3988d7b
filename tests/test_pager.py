# SPDX-License-Identifier: GPL-2.0-or-later
"""Long output on a terminal is shown in a pager; colours follow the environment."""

import os
import sys
import termios

import pytest
from screens import PtyRun
from users import AS_NOBODY

from physview.runtime import pager

ROWS = 20
PROMPT = ":"
ESCAPE = "\x1b["


def run(*words, prefix=(), **env):
    """Run physview on a terminal of few lines."""
    command = [*prefix, sys.executable, "-m", "physview", *words]
    return PtyRun(command, columns=100, lines=ROWS, env={"PAGER": "less", "LESS": "FRX"} | env)


def waits(lines):
    """Whether less waits for a key."""
    return any(line.strip().startswith((PROMPT, "(END)", "lines ")) for line in lines[-2:])


def has_pipe(pid):
    """Whether a process still writes to its pager."""
    folder = f"/proc/{pid}/fd"
    return any(os.readlink(f"{folder}/{fd}").startswith("pipe:") for fd in os.listdir(folder))


@pytest.mark.needs("less")
def test_more_than_a_screenful_is_paged_and_q_ends_it():
    with run("maps", "self") as shown:
        lines = shown.until(waits)
        assert lines[0].startswith("start ")
        shown.press("q")
        assert shown.wait() == 0
        assert termios.tcgetattr(shown.slave) == shown.settings
        assert "Traceback" not in shown.raw.decode()


@pytest.mark.needs("less")
@pytest.mark.parametrize(
    ("words", "env"),
    [
        (["maps", "self", "--no-pager"], {}),
        (["maps", "self"], {"PAGER": "cat"}),
        (["maps", "self"], {"PAGER": ""}),
        (["maps", "self"], {"TERM": "dumb"}),
        (["translate", "self", "0x0"], {}),
    ],
)
def test_what_is_not_paged(words, env):
    with run(*words, **env) as shown:
        assert shown.wait() in (0, 1)
        assert not waits(shown.lines)


@pytest.mark.needs("less")
def test_messages_come_after_the_pager():
    with run("maps", "self", "4194305") as shown:
        shown.until(waits)
        while has_pipe(shown.process.pid):  # else q would end it before it knows of the other pid
            shown.read(0.1)
        assert "no process 4194305" not in "\n".join(shown.lines)
        shown.press("q")
        assert shown.wait() == 1
        assert any("no process 4194305" in line for line in shown.lines)


@pytest.mark.needs("root", "less")
def test_root_gets_a_less_that_starts_nothing(tmp_path):
    evil = tmp_path / "pager"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\ncat\n")
    evil.chmod(0o755)
    filters = {"LESSOPEN": f"|{evil} %s", "LESSCLOSE": str(evil), "LESSKEY": str(evil)}
    with run("maps", "self", PAGER=str(evil), **filters) as shown:
        shown.until(waits)
        shown.press("!")
        shown.shows("not available")
        shown.press("\r")
        shown.until(waits)
        shown.press("q")
        assert shown.wait() == 0
    assert not (tmp_path / "was-run").exists()


@pytest.mark.needs("nobody")
@pytest.mark.parametrize("program", ["/bin/true", "head -n 1", "no-such-pager", "unbalanced '"])
def test_a_pager_of_ones_own_that_ends_early_or_is_none(program):
    with run("maps", "self", prefix=AS_NOBODY, PAGER=program) as shown:
        assert shown.wait() == 0
        assert "Traceback" not in shown.raw.decode()
        if program == "head -n 1":
            assert shown.lines[0].startswith("start ")


def test_a_pager_by_a_relative_path_is_not_started(monkeypatch, tmp_path):
    (tmp_path / "less").write_text("#!/bin/sh\n")
    (tmp_path / "less").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("PAGER", "./less")
    assert pager.find_pager() is None


def test_no_pager_in_a_pipe_and_no_colours(physview):
    result = physview("maps", "self", env=os.environ | {"PAGER": "/bin/false", "TERM": "xterm"})
    assert result.returncode == 0
    assert ESCAPE not in result.stdout


@pytest.mark.parametrize(
    ("env", "is_coloured"),
    [
        ({}, False),
        ({"CLICOLOR": "1"}, False),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"CLICOLOR_FORCE": "0"}, False),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": ""}, True),
    ],
)
def test_colours_in_a_pipe(physview, env, is_coloured):
    doctor = physview("doctor", env=os.environ | env)
    assert (ESCAPE in doctor.stdout) is is_coloured
    assert (ESCAPE in physview("pages", "4194305", env=os.environ | env).stderr) is is_coloured


@pytest.mark.parametrize(
    ("env", "is_coloured"), [({}, True), ({"CLICOLOR": "0"}, False), ({"NO_COLOR": "1"}, False)]
)
def test_colours_on_a_terminal(env, is_coloured):
    with run("pages", "4194305", **env) as shown:
        assert shown.wait() == 1
        assert ("\x1b[31mphysview:" in shown.raw.decode()) is is_coloured
