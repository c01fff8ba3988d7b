# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes over the terminal to read single keys, and always restores it at the end."""

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

from physview.runtime.caught_signals import CaughtSignals

# The signals that end physview, besides SIGINT (Ctrl-C).
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
"""The escape sequences of keys that have no character. Source: ctlseqs of xterm and of rxvt"""


def split_keys(data: bytes) -> tuple[list[str], bytes]:
    r"""Split terminal input into keys. Keys that are not in KEYS are left out.

    Args:
        data: Bytes read from the terminal.

    Returns:
        The keys, and the bytes of an incomplete escape sequence at the end.

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


class _EndedBySignal(BaseException):
    """A signal ends physview. As an exception, it lets all `finally` blocks run first."""


class Terminal:
    """Control of the terminal on stdin and stdout. A context manager.

    Inside, each key is read at once and is not echoed. Ctrl-C raises KeyboardInterrupt, as usual.
    Ctrl-Z stops the process, and a signal of ENDING ends it; both restore the terminal first.

    Args:
        enter: Called when the terminal is taken over, and again after Ctrl-Z and fg. It draws
            everything.
        leave: Called when the terminal is given back.
    """

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        self._enter = enter
        self._leave = leave
        self._settings: list[Any] | None = None
        self._incomplete_key = b""
        self._stop_requested = False
        self._resized = False
        self._leaving = False
        self._ended_by = 0

    def __enter__(self) -> Terminal:
        self._signals = CaughtSignals()
        for signum in (*ENDING, signal.SIGINT):
            self._signals.catch(signum, self._on_ending)
        for signum in (signal.SIGTSTP, signal.SIGWINCH):
            self._signals.catch(signum, self._on_event)
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
            self._signals.close()
        if self._ended_by:
            if self._ended_by != signal.SIGINT:
                signal.signal(self._ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), self._ended_by)

    def _on_ending(self, signum: int, frame: FrameType | None) -> None:
        if self._leaving:  # finish restoring the terminal first
            self._ended_by = signum
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self._ended_by = signum
            raise _EndedBySignal

    def _on_event(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGTSTP:
            self._stop_requested = True
        else:
            self._resized = True

    def _take(self) -> None:
        self._settings = termios.tcgetattr(0)
        # Not TCSAFLUSH: keys that were pressed before belong to physview, too.
        tty.setcbreak(0, termios.TCSADRAIN)
        self._enter()

    def _give_back(self) -> None:
        if self._settings is None:
            return
        settings, self._settings = self._settings, None
        try:
            self._leave()
        except OSError:
            pass  # the terminal was hung up
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, settings)

    def _stop_until_fg(self) -> None:
        self._stop_requested = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # The process continues here after fg.
        signal.signal(signal.SIGTSTP, self._on_event)
        self._take()

    def wait(self, seconds: float | None, others: Iterable[int] = ()) -> tuple[list[str], set[int]]:
        """Wait until a key is pressed, the window is resized, or a descriptor is readable.

        Args:
            seconds: The longest time to wait; None waits without a limit.
            others: Descriptors to wait for as well.

        Returns:
            The keys, by their character or name, with "resize" if the size of the window may have
            changed; and the descriptors of `others` that are readable.
        """
        others = set(others)
        readers: list[Any] = [0, self._signals, *others]
        ready, _, _ = select.select(readers, [], [], seconds)
        keys: list[str] = []
        if self._signals in ready:
            self._signals.drain()
        if self._stop_requested:
            self._stop_until_fg()
            keys.append("resize")
        if self._resized:
            self._resized = False
            keys.append("resize")
        if 0 in ready:
            data = os.read(0, 4096)
            if not data:
                self._ended_by = signal.SIGHUP
                raise _EndedBySignal
            pressed, self._incomplete_key = split_keys(self._incomplete_key + data)
            keys += pressed
        return keys, others & set(ready)
