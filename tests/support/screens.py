# SPDX-License-Identifier: GPL-2.0-or-later
"""A command in a pseudo-terminal. pyte makes the screen from its output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import pyte
from limits import DEFAULT_SIGNALS

LEFT = "\x1b[?1049l"


class Screen(pyte.Screen):
    """A screen that counts how often text wraps at the last column."""

    nr_wraps = 0

    def draw(self, data: str) -> None:
        for char in data:
            if self.cursor.x == self.columns:
                self.nr_wraps += 1
            super().draw(char)


class PtyRun:
    """A command in its own terminal. The command leads the terminal's session.

    Args:
        command: The command to run.
        columns: Width of the terminal.
        lines: Height of the terminal.
        env: Environment variables in addition to those of this process.
    """

    def __init__(
        self, command: list[str], *, columns: int = 80, lines: int = 24, env: Any = None
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.raw = b""
        self._resize(columns, lines)
        self.screen = Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.settings = termios.tcgetattr(self.slave)
        variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*DEFAULT_SIGNALS, *command],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd="/",
            env=variables | {"TERM": "xterm-256color", "PAGER": "cat"} | (env or {}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal. The kernel sends SIGWINCH to the command."""
        self.screen.resize(lines, columns)
        self._resize(columns, lines)

    def __enter__(self) -> PtyRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without trailing spaces."""
        return [line.rstrip() for line in self.screen.display]

    def press(self, keys: str) -> None:
        """Type keys."""
        os.write(self.master, keys.encode())

    def _has_output(self, seconds: float) -> bool:
        # select.select() refuses descriptors from 1024 on.
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def read(self, seconds: float) -> None:
        """Read what the command has written. Wait for it at most this long."""
        if self._has_output(seconds):
            data = os.read(self.master, 1 << 16)
            self.raw += data
            self._stream.feed(data)

    def nr_written_in(self, seconds: float) -> int:
        """Read for a time; return the number of bytes that the command has written meanwhile."""
        before, end = len(self.raw), time.monotonic() + seconds
        while time.monotonic() < end:
            self.read(0.2)
        return len(self.raw) - before

    def until(self, seen: Callable[[list[str]], object], seconds: float = 60) -> list[str]:
        """Wait until a condition on the screen's lines is true; return the lines."""
        end = time.monotonic() + seconds
        while not seen(self.lines):
            assert time.monotonic() < end, "\n".join(self.lines)
            self.read(0.1)
        return self.lines

    def shows(self, text: str) -> list[str]:
        """Wait until a line contains this text; return the lines."""
        return self.until(lambda lines: any(text in line for line in lines))

    def wait(self) -> int:
        """Wait until the command ends; return its exit code."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end, "\n".join(self.lines)
            self.read(0.1)
        while self._has_output(0.1):
            self.read(0)
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the command restored the terminal: its settings, the main screen, the cursor."""
        text = self.raw.decode()
        return (
            termios.tcgetattr(self.slave) == self.settings
            and text.count("\x1b[?1049h") == text.count(LEFT)
            and text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
        )


def watch(pid: int, *options: str, **terminal: Any) -> PtyRun:
    """Run physview watch in a terminal."""
    command = [sys.executable, "-m", "physview", "watch", str(pid), *options]
    return PtyRun(command, **terminal)
