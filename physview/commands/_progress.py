# SPDX-License-Identifier: GPL-2.0-or-later
"""How far long work is, on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Work that is done sooner is not announced, and does not wait for rich to be imported.
SECONDS_BEFORE = 0.5


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Show on stderr, when that is a terminal, how much is done; yields what to tell it to.

    Args:
        what: What is being done.

    Yields:
        A function of (how much is done, how much there is to do or None), or None.
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
        self._what = what
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._progress: Any = None

    def show(self, done: int, total: int | None) -> None:
        if time.monotonic() - self._start < SECONDS_BEFORE:
            return
        from rich.progress import Progress

        from physview.reporters.drawing import open_console

        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    console=open_console(sys.stderr),
                    transient=True,
                    redirect_stdout=False,  # the report is nobody else's to print
                    redirect_stderr=False,
                )
                self._progress.start()
                self._task = self._progress.add_task(self._what, total=total)
            self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
