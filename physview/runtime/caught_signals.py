# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that this process handles itself for a while, and that end its waits in select()."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, "FrameType | None"], object]


class CaughtSignals:
    """Handlers of signals, and a pipe that can be read after each signal.

    Python runs a handler only between two steps of the program. The pipe wakes a program that waits
    in select() for other descriptors.
    """

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._before: dict[int, object] = {}

    def catch(self, number: int, handler: Handler) -> None:
        """Handle a signal until `close()`."""
        self._before[number] = signal.signal(number, handler)

    def fileno(self) -> int:
        """The descriptor to wait for, for select()."""
        return self._read_end

    def drain(self) -> None:
        """Read what the signals so far have written, once the descriptor can be read."""
        os.read(self._read_end, 4096)

    def close(self) -> None:
        """Restore the handlers of before."""
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._read_end)
        os.close(self._write_end)
