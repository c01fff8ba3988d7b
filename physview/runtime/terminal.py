# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal taken over for a while: keys one by one, and put back as it was, whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

# What we may be ended by, besides Ctrl-C.
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[7~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
    b"\x1b[8~": "end",
}
"""What terminals send for keys without a character. Source: xterm's ctlseqs, and rxvt's."""


def split_keys(data: bytes) -> tuple[list[str], bytes]:
    r"""Which keys were pressed, and the bytes of one that is not yet whole.

    Keys that have no name here are left out.

    >>> split_keys(b"q\x1b[A\x1b[24~+\x1b[")
    (['q', 'up', '+'], b'\x1b[')
    """
    keys, at = [], 0
    while at < len(data):
        if data[at] != 0x1B:
            if 0x20 <= data[at] < 0x7F:
                keys.append(chr(data[at]))
            at += 1
            continue
        end = at + 2
        if data[at + 1 : end] == b"[":
            while end < len(data) and not 0x40 <= data[end] < 0x7F:
                end += 1
            end += 1
        elif data[at + 1 : end] == b"O":
            end += 1
        if end > len(data):
            return keys, data[at:]
        if data[at:end] in KEYS:
            keys.append(KEYS[data[at:end]])
        at = end
    return keys, b""


class _Ended(BaseException):
    """A signal ends us; as an exception, so that all is put back on the way out."""


class Terminal:
    """The terminal on stdin and stdout, in one's own hands. A context manager.

    Inside, keys come one by one and are not echoed. Ctrl-C is KeyboardInterrupt as ever, Ctrl-Z
    stops us with the terminal put back, and so does what ends us.

    Args:
        enter: Called when the terminal is taken over, also after Ctrl-Z: draw everything.
        leave: Called when it is given back.
    """

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._enter = enter
        self._leave = leave
        self._settings: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._half = b""
        self._stop = False
        self._resized = False
        self._leaving = False
        self._ended_by = 0

    def __enter__(self) -> Terminal:
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for signum in (*ENDING, signal.SIGINT):
            self._handlers[signum] = signal.signal(signum, self._on_ending)
        for signum in (signal.SIGTSTP, signal.SIGWINCH):
            self._handlers[signum] = signal.signal(signum, self._on_event)
        try:
            self._take()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leaving = True
        try:
            self._give_back()
        finally:
            signal.set_wakeup_fd(self._old_wakeup)
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)
        if self._ended_by:
            if self._ended_by != signal.SIGINT:
                signal.signal(self._ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), self._ended_by)

    def _on_ending(self, signum: int, frame: FrameType | None) -> None:
        if self._leaving:  # or the terminal would be left half put back
            self._ended_by = signum
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._ended_by = signum
            raise _Ended

    def _on_event(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTSTP:
            self._stop = True
        else:
            self._resized = True

    def _take(self) -> None:
        self._settings = termios.tcgetattr(0)
        # Not TCSAFLUSH: keys that were pressed before are meant.
        tty.setcbreak(0, termios.TCSADRAIN)
        self._enter()

    def _give_back(self) -> None:
        if self._settings is None:
            return
        settings, self._settings = self._settings, None
        try:
            self._leave()
        except OSError:
            pass  # it was hung up
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, settings)

    def _stop_as_asked(self) -> None:
        self._stop = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Here we go on after fg.
        signal.signal(signal.SIGTSTP, self._on_event)
        self._take()

    def wait(self, seconds: float | None, others: Iterable[int] = ()) -> tuple[list[str], set[int]]:
        """Wait for keys.

        Args:
            seconds: How long at most; None is for ever.
            others: Descriptors that are waited for as well.

        Returns:
            The keys, by their character or name, with "resize" when the window's size has changed;
            and those of the descriptors that can be read.
        """
        others = set(others)
        ready, _, _ = select.select([0, self._wake_read, *others], [], [], seconds)
        keys: list[str] = []
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._stop:
            self._stop_as_asked()
            keys.append("resize")
        if self._resized:
            self._resized = False
            keys.append("resize")
        if 0 in ready:
            data = os.read(0, 4096)
            if not data:
                self._ended_by = signal.SIGHUP
                raise _Ended
            pressed, self._half = split_keys(self._half + data)
            keys += pressed
        return keys, others & set(ready)
