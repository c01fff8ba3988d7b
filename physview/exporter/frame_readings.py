# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads all frames of the machine now and then, beside the scrapes.

This takes about 30 milliseconds per GiB of RAM. On a large machine a scrape that waited for it
would reach Prometheus' time limit.
"""

from __future__ import annotations

import threading
import time

from physview.errors import PhysviewError
from physview.recording.zone_frames import read_frames

Frames = dict[tuple[int, str], dict[str, int]]
"""The columns of the recording's schema that frames tell, by node and zone."""


class FrameReadings:
    """Reads all frames at the first call, and later in a thread of its own.

    Args:
        every: Seconds from the begin of a reading to that of the next one, at least.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._began = 0.0
        self._found: Frames | PhysviewError | None = None
        self._thread: threading.Thread | None = None

    def last(self) -> Frames:
        """Return the last reading, and begin another one if it is time. One thread may call this.

        Raises:
            PhysviewError: That reading failed.
        """
        if self._found is None:
            self._read()
        elif not self._is_running() and time.monotonic() - self._began >= self._every:
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        found = self._found
        if isinstance(found, PhysviewError):
            raise found
        assert found is not None
        return found

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _read(self) -> None:
        self._began = time.monotonic()
        try:
            self._found = read_frames()
        except PhysviewError as error:
            self._found = error
