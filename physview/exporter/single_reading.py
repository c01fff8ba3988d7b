# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets one thread read at a time. Others that ask meanwhile wait, and get the same answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from physview.errors import PhysviewError

Answer = TypeVar("Answer")


class SingleReading(Generic[Answer]):
    """Answers from one reading at a time.

    Args:
        read: Makes an answer.
        min_interval: A younger answer is given again, so that many clients cost as much as one. In
            seconds.
        max_wait: Longest time to wait for a reading of another thread, in seconds.
    """

    def __init__(
        self, read: Callable[[], Answer], *, min_interval: float, max_wait: float = 30
    ) -> None:
        self._read = read
        self._min_interval = min_interval
        self._max_wait = max_wait
        self._changed = threading.Condition()
        self._is_reading = False
        self._nr_ended = 0
        self._last: tuple[float, Answer] | None = None
        self._error: PhysviewError | None = None

    def get(self) -> Answer:
        """Return an answer: a new one, or that of a reading that runs or has just ended.

        Raises:
            PhysviewError: The reading failed, or does not end.
        """
        with self._changed:
            if self._is_reading:
                return self._wait()
            if self._last and time.monotonic() - self._last[0] < self._min_interval:
                return self._last[1]
            self._is_reading = True
        answer, error = None, None
        try:
            answer = (time.monotonic(), self._read())
        except PhysviewError as failure:
            error = failure
            raise
        finally:
            with self._changed:
                self._is_reading = False
                self._nr_ended += 1
                self._last, self._error = answer, error
                self._changed.notify_all()
        return answer[1]

    def _wait(self) -> Answer:
        awaited = self._nr_ended + 1
        if not self._changed.wait_for(lambda: self._nr_ended >= awaited, self._max_wait):
            why = f"a reading has been running for over {self._max_wait:g} seconds"
            raise PhysviewError("cannot read the machine", why, "scrape less often")
        if self._last is None:
            why = self._error.why if self._error else "the reading failed"
            raise PhysviewError("cannot read the machine", why)
        return self._last[1]
