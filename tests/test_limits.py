# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests that never end are stopped: support/limits.py."""

import os
import re
import signal
import subprocess
import sys

import pytest
from limits import DEFAULT_SIGNALS, SECONDS, SECONDS_WITH_VM
from paths import ROOT

WAITS = """
import os, subprocess, threading

def test_a_childs_end():
    subprocess.run(["sleep", "1000"])

def test_a_pipe():
    os.read(os.pipe()[0], 1)

def test_a_thread():
    thread = threading.Thread(target=os.read, args=(os.pipe()[0], 1), daemon=True)
    thread.start()
    thread.join()
"""


def test_a_test_that_waits_for_ever_fails_and_shows_where(tmp_path):
    (tmp_path / "test_waits.py").write_text(WAITS)
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-o", "timeout=1"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 1
    assert "3 failed" in result.stdout, result.stdout + result.stderr
    assert "thread.join()" in result.stdout


def test_every_test_has_a_limit(request):
    for item in request.session.items:
        assert item.get_closest_marker("timeout").args[0] in (SECONDS, SECONDS_WITH_VM), item
    assert request.node.get_closest_marker("timeout").args == (SECONDS,)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_that_the_shell_ignores_reaches_what_a_test_starts(signum):
    code = f"import os, signal; os.kill(os.getpid(), {int(signum)}); signal.pause()"
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [*DEFAULT_SIGNALS, sys.executable, "-I", "-c", code],
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=os.environ,
        )
    finally:
        signal.signal(signum, before)
    assert process.wait(60) == -signum


def test_tests_that_send_such_signals_start_programs_with_default_actions():
    """Under nohup, SIGHUP would be ignored, and the test wait until its limit."""
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text()
        if re.search(r"\b(send_signal|kill)\(", text) and re.search(r"SIG(INT|HUP|QUIT)\b", text):
            how = ("DEFAULT_SIGNALS", "from screens import", "signal.default_int_handler)")
            assert any(words in text for words in how), path.name
