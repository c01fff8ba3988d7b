# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that tests start, for physview to look at."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from memory import KINDS, WAIT
from paths import ROOT


@contextlib.contextmanager
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts Python processes. All of them end with the `with` block.

    The function returns when the process has run `code`. The process then runs `wait`, which by
    default blocks until it is killed. It can import the modules of tests/support.
    """
    started = []

    def start(
        code: str = "", *, prefix: list[str] | tuple[str, ...] = (), wait: str = "input()"
    ) -> subprocess.Popen[str]:
        program = f"{code}\nprint('ready', flush=True)\n{wait}"
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests/support")},
        )
        started.append(process)
        assert process.stdout
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait until a condition is true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_stopped(start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A stopped process with memory of every kind: see memory.KINDS."""
    child = start(KINDS, wait=WAIT)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    return child
