# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows long output of a terminal in a pager, which starts after the first screenful.

A user's PAGER is a command that this user chose. For root it may be another user's choice, as under
sudo, so root gets only the system's own less. LESSSECURE=1 forbids it to start programs and to
write files: otherwise who may run physview as root could run anything.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from typing import Any

from physview.text.colour import knows_escapes
from physview.text.output import exchange_sink

SECONDS_BEFORE = 0.5
"""After this time, the lines so far are shown, even if they are less than a screenful."""

LESS_OPTIONS = "FRX"  # end if it is one screenful; show colours; leave the text on the screen
_FOLDERS = ("/usr/bin", "/bin")
_KEPT = ("TERM", "LANG", "LC_ALL", "LC_CTYPE", "LINES", "COLUMNS")

Command = tuple[list[str], dict[str, str]]


def find_pager() -> Command | None:
    """Return the pager's command line and environment; None if there shall be none."""
    wanted = os.environ.get("PAGER", "less")
    if wanted in ("", "cat") or not knows_escapes():
        return None
    if os.geteuid() == 0 or os.geteuid() != os.getuid():
        return _safe_less()
    import shlex
    import shutil

    try:
        words = shlex.split(wanted)
    except ValueError:  # a quote is missing
        return None
    program = shutil.which(words[0]) if words else None
    if not program or not os.path.isabs(program):
        return None
    return [program, *words[1:]], {"LESS": LESS_OPTIONS, **os.environ}


def _safe_less() -> Command | None:
    for folder in _FOLDERS:
        path = f"{folder}/less"
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            own = {"LESSSECURE": "1", "LESS": LESS_OPTIONS, "LESSHISTFILE": "-"}
            kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
            return [path], {**kept, **own, "PATH": ":".join(_FOLDERS)}
    return None


class Pager:
    """The sink of stdout while output may be paged. A context manager.

    Args:
        command: What `find_pager()` returned.
        nr_lines: The height of the terminal.
    """

    def __init__(self, command: Command, nr_lines: int) -> None:
        self._command = command
        self._nr_left = nr_lines - 1
        self._held = bytearray()
        self._later: list[str] = []
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._process: Any = None
        self.has_left = False

    @property
    def is_running(self) -> bool:
        """Whether the pager has the screen."""
        return self._process is not None

    def __enter__(self) -> Pager:
        sys.stdout.flush()
        self._sink = exchange_sink(sys.stdout, self)
        _active.append(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        """Wait until the user leaves the pager. A user who leaves it early has seen enough."""
        try:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()
            with self._lock:
                if self._timer:
                    self._timer.cancel()
                exchange_sink(sys.stdout, self._sink)
                _active.remove(self)
                if self._process is None:
                    self._sink.write(bytes(self._held))
                    self._sink.flush()
        finally:
            if self._process is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
                while self._process.returncode is None:
                    with contextlib.suppress(KeyboardInterrupt):  # the pager handles Ctrl-C
                        self._process.wait()
            for text in self._later:
                print(text, file=sys.stderr, flush=True)
        return self.has_left and isinstance(error, BrokenPipeError)

    def say_later(self, text: str) -> None:
        """Print a line on stderr after the pager has ended, so that it does not disturb it."""
        self._later.append(text)

    def write(self, data: bytes) -> int:
        """Show bytes, or hold them until there is a screenful."""
        with self._lock:
            if self._process is None:
                self._held += data
                self._nr_left -= data.count(b"\n")
                if self._nr_left < 0:
                    self._start()
                elif self._timer is None:
                    self._timer = threading.Timer(SECONDS_BEFORE, self._start)
                    self._timer.daemon = True
                    self._timer.start()
                return len(data)
            self._pass_on(data)
        return len(data)

    def _pass_on(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self.has_left = True
            raise

    def _start(self) -> None:
        import subprocess

        with self._lock:
            if self._process is not None or current() is not self:
                return
            words, env = self._command
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, env=env, cwd="/")
            held, self._held = bytes(self._held), bytearray()
            if threading.current_thread() is threading.main_thread():
                self._pass_on(held)
            else:  # the next write of the main thread finds out
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.write(held)
                    self._process.stdin.flush()

    def flush(self) -> None:
        """Do nothing: what is written is shown at once, or after a screenful."""

    def isatty(self) -> bool:
        """The output is for a person."""
        return True

    def fileno(self) -> int:
        """The descriptor of the terminal."""
        return int(self._sink.fileno())


_active: list[Pager] = []


def current() -> Pager | None:
    """Return the pager of this run, if output may be paged."""
    return _active[-1] if _active else None


def is_possible() -> bool:
    """Whether stdout is a terminal that this process may write to and read from."""
    try:
        return sys.stdout.isatty() and os.tcgetpgrp(1) == os.getpgrp()
    except OSError:
        return False
