# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that tests start, for physview to look at."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

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


def start_stopped(start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A stopped process with memory of every kind: see memory.KINDS."""
    child = start(KINDS, wait=WAIT)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    return child
