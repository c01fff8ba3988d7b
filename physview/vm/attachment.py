# SPDX-License-Identifier: GPL-2.0-or-later
"""Connects a command in a VM with this process's files, or with its terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, BinaryIO

from physview.runtime.caught_signals import CaughtSignals
from physview.vm import messages
from physview.vm.failures import refused_error

CHUNK_SIZE = 1 << 15
SECONDS_UNTIL_NEXT_LOOK = 1.0
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_PASSED_ON = (signal.SIGINT, signal.SIGQUIT)

# What a program that is lost may leave switched on, except the alternate screen: a hidden cursor,
# bracketed paste, the keypad's application mode, colours. Source: ctlseqs of xterm
_RESET = b"\x1b[?25h\x1b[?2004l\x1b[?1l\x1b>\x1b[0m\r\n"
_ALTERNATE, _NORMAL = b"\x1b[?1049h", b"\x1b[?1049l"


class _EndedBySignal(BaseException):
    """A signal ends physview. As an exception, it lets all `finally` blocks run first."""


def has_terminal() -> bool:
    """Whether this process reads from and writes to its terminal, in the foreground."""
    try:
        return os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


class Attachment:
    """The ends of a command's stream on this side. Used as a context manager.

    With a terminal, the terminal is raw inside the `with` block: each key goes to the command,
    which has a terminal of its own. Without, the command has pipes.

    Args:
        send: Sends a message of the stream: its kind and its content.
        stdin: The descriptor that the command's stdin is read from; None for an empty stdin.
        stdout: The file that receives the command's stdout, or all that its terminal shows.
        stderr: The file that receives the command's stderr.
        is_terminal: Whether stdin and stdout are this process's terminal.
        passes_signals_on: Whether the first Ctrl-C is the command's, without a terminal, too.
    """

    def __init__(
        self,
        send: Callable[[int, bytes], None],
        stdin: int | None,
        stdout: BinaryIO,
        stderr: BinaryIO,
        *,
        is_terminal: bool = False,
        passes_signals_on: bool = False,
    ) -> None:
        self._send = send
        self._stdin = stdin
        self._files = {messages.STDOUT: stdout, messages.STDERR: stderr}
        self._is_terminal = is_terminal
        self._signals_passed_on = _PASSED_ON if passes_signals_on and not is_terminal else ()
        self._settings: list[Any] = termios.tcgetattr(stdin) if is_terminal else []  # type: ignore[arg-type]
        self._room = messages.WINDOW
        self._signals: CaughtSignals | None = None
        self._resized = False
        self._caught: list[int] = []
        self._interrupted = False
        self._ended_by = 0
        self._ended = False
        self._last_output = b""
        self._on_alternate_screen = False

    @property
    def request(self) -> dict[str, Any] | None:
        """What the guest needs to know of the terminal; None without one. JSON can hold it."""
        if not self._is_terminal:
            return None
        *modes, characters = self._settings
        numbers = [each[0] if isinstance(each, bytes) else each for each in characters]
        size = os.get_terminal_size(self._stdin or 0)
        return {"settings": [*modes, numbers], "size": [size.lines, size.columns]}

    def __enter__(self) -> Attachment:
        if self._is_terminal or self._signals_passed_on:
            signals = self._signals = CaughtSignals()
            for number in self._signals_passed_on:
                if signal.getsignal(number) != signal.SIG_IGN:  # as with nohup
                    signals.catch(number, self._on_passed_on)
            if self._is_terminal:
                for number in _ENDING:
                    signals.catch(number, self._on_ending)
                signals.catch(signal.SIGWINCH, self._on_resize)
        if self._is_terminal:
            # Not TCSAFLUSH: keys that were pressed before belong to the command, too.
            tty.setraw(self._stdin or 0, termios.TCSADRAIN)
        if self._stdin is None:
            self._send(messages.END_OF_STDIN, b"")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_terminal:
            with contextlib.suppress(OSError):  # the terminal was hung up
                if not self._ended:
                    self._write(messages.STDOUT, _NORMAL * self._on_alternate_screen + _RESET)
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._stdin or 0, termios.TCSADRAIN, self._settings)
        if self._signals:
            self._signals.close()
        if self._ended_by:
            signal.signal(self._ended_by, signal.SIG_DFL)
            os.kill(os.getpid(), self._ended_by)

    def readers(self) -> list[Any]:
        """What to wait for with select(). Call `read()` when one can be read."""
        found: list[Any] = [self._signals] if self._signals else []
        return [self._stdin, *found] if self._may_read() else found

    @property
    def longest_wait(self) -> float | None:
        """The number of seconds after which to ask for `readers()` again; None for no limit."""
        if self._stdin is None or self._is_terminal or not self._room:
            return None
        return SECONDS_UNTIL_NEXT_LOOK if not self._may_read() else None

    def _may_read(self) -> bool:
        """Whether stdin may be read: a job in the background would be stopped (SIGTTIN)."""
        if not self._room or self._stdin is None:
            return False
        try:
            return self._is_terminal or os.tcgetpgrp(self._stdin) == os.getpgrp()
        except OSError:
            return True  # not this process's terminal

    def read(self, readable: set[Any]) -> None:
        """Send what can be read, and what signals have asked for."""
        if self._signals and self._signals in readable:
            self._signals.drain()
        while self._caught:
            self._send(messages.SIGNAL, messages.NUMBER.pack(self._caught.pop(0)))
        if self._resized:
            self._resized = False
            size = os.get_terminal_size(self._stdin or 0)
            self._send(messages.RESIZE, messages.SIZE.pack(size.lines, size.columns))
        if self._stdin is None or self._stdin not in readable:
            return
        try:
            data = os.read(self._stdin, min(CHUNK_SIZE, self._room))
        except OSError:
            data = b""
        if data:
            self._room -= len(data)
            self._send(messages.STDIN, data)
        elif self._is_terminal:  # it was hung up
            self._ended_by = signal.SIGHUP
            raise _EndedBySignal
        else:
            self._stdin = None
            self._send(messages.END_OF_STDIN, b"")

    def receive(self, kind: int, content: bytes) -> int | None:
        """Handle a message of the stream.

        Returns:
            The command's exit code if it has ended, or None.

        Raises:
            VmUnusable: The guest refuses to start the command.
            OSError: The output can't be written.
        """
        if kind in self._files:
            self._write(kind, content)
            self._send(messages.TAKEN, messages.NUMBER.pack(len(content)))
        elif kind == messages.TAKEN:
            self._room += messages.NUMBER.unpack(content)[0]
        elif kind == messages.EXIT:
            self._ended = True
            return int(messages.NUMBER.unpack(content)[0])
        elif kind == messages.REFUSED:
            raise refused_error(content)
        return None

    def _write(self, kind: int, content: bytes) -> None:
        if self._is_terminal:
            seen = self._last_output + content
            on, off = seen.rfind(_ALTERNATE), seen.rfind(_NORMAL)
            if on != off:  # one of them is there
                self._on_alternate_screen = on > off
            self._last_output = seen[-len(_NORMAL) :]
        self._files[kind].write(content)
        self._files[kind].flush()

    def _on_ending(self, number: int, frame: FrameType | None) -> None:
        if not self._ended_by:
            self._ended_by = number
            raise _EndedBySignal

    def _on_passed_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self._caught.append(number)

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        self._resized = True
