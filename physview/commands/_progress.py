# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress bars for long work, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from physview.runtime import pager

# Work that is done sooner shows no bar, and does not wait for the import of rich.
SECONDS_BEFORE = 0.5


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Show on stderr how much of some work is done, if stderr is a terminal.

    Args:
        what: What is being done.

    Yields:
        A function to call with (amount done, total amount or None if unknown) as the work goes
        on; None if stderr is no terminal.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(what)
    try:
        yield bar.show
    finally:
        bar.close()


class _Bar:
    def __init__(self, what: str) -> None:
        import threading  # not at the top: without a terminal it would only make the start slower

        self._what = what
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Any = None

    def show(self, done: int, total: int | None) -> None:
        if time.monotonic() - self._start < SECONDS_BEFORE:
            return
        paged = pager.current()
        if paged and paged.is_running:  # it has the screen
            self.close()
            return
        from rich.progress import Progress

        from physview.reporters.drawing import open_console

        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    console=open_console(sys.stderr),
                    transient=True,
                    redirect_stdout=False,  # rich must not print the report
                    redirect_stderr=False,
                )
                self._progress.start()
                self._task = self._progress.add_task(self._what, total=total)
            self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
