# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the memory of processes live: their pages, how they change, and where in RAM they are.

One PID: its mappings. Several, --cgroup or --all: a line for each process. On a terminal, the
screen is updated again and again and takes keys; q quits. Changes are found by comparing two
readings: a page that came and went between the two is not seen. --ticks and --json print readings
instead.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.files.descriptor import Closable
from physview.runtime import invocation
from physview.runtime.resolve_pid import find_pid
from physview.sources.procfs import ProcDir
from physview.text.colour import knows_escapes

if TYPE_CHECKING:
    from physview.analysis.watch import Reading
    from physview.analysis.watch_processes import ProcessesReading
    from physview.reporters.screen import Rows, State

NAME = "watch"
HELP = "the memory of processes live: which pages come, go, move or are swapped, and where in RAM"

STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
MIN_PAUSES = 4
"""Pause at least this many times the duration of a reading."""


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "processes", metavar="PID", nargs="*", help="a pid, self, or the name of one process"
    )
    _common.add_cgroup_option(parser)
    _common.add_all_option(parser)
    parser.add_argument(
        "--interval",
        "--every",
        type=_common.duration(STEPS[0], 86400),
        metavar="S",
        default=1.0,
        help="seconds between readings, or as 5m (1)",
    )
    parser.add_argument(
        "--ticks",
        type=_common.count(),
        metavar="N",
        help="print N readings as text, then end; for pipes",
    )
    _common.add_track_writes_option(
        parser, "also show the pages that were written in place since the last reading"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON document per reading, each on one line"
    )


def run(args: argparse.Namespace) -> int:
    """Show readings on the terminal, or print them."""
    _common.check_processes(args)
    prints = args.ticks is not None or args.json
    if not prints:
        _check_terminal()
    view = _view(args)
    if view is None:
        if args.json:
            from physview.reporters import documents

            documents.write_line({"processes": []})
        return 1
    with view:
        if prints:
            _print(view, args)
        else:
            _show(view, args.interval)
    return 0


def _view(args: argparse.Namespace) -> _View[Any] | None:
    """Return what is to be watched; None if all PIDs failed, which has been said."""
    if len(args.processes) == 1:
        return _OneProcess(find_pid(args.processes[0]), args.track_writes)
    if args.all:
        from physview.sources.procfs import list_pids

        return _Processes(list_pids, args.track_writes)
    if args.cgroup is not None:
        _common.say_if_threaded(args.cgroup)
        return _Processes(lambda: _common.cgroup_pids(args.cgroup), args.track_writes)
    pids = []
    for pid, word in _common.find_pids(args.processes).items():
        with _common.attempt(word), ProcDir(pid) as proc:
            os.close(proc.open_pagemap())
            pids.append(proc.pid)
    if not pids:
        return None
    if len(pids) == 1:
        return _OneProcess(pids[0], args.track_writes)
    return _Processes(lambda: pids, args.track_writes)


def _check_terminal() -> None:
    maps = invocation.physview("maps PID")
    remedy = f"--ticks N prints readings, and {maps} prints the present state"
    if not (sys.stdin and sys.stdin.isatty() and os.isatty(1)):
        raise UsageError("cannot draw", "stdin and stdout are not both a terminal", remedy)
    if not knows_escapes():
        raise UsageError("cannot draw", "TERM names a terminal without a movable cursor", remedy)


T = TypeVar("T", "Reading", "ProcessesReading")


class _View(Closable, Generic[T]):
    """What is watched, and how its readings are shown."""

    orders: Mapping[str, str]
    """The orders of the table, by their keys."""

    def read(self) -> T:
        """Read once."""
        raise NotImplementedError

    def print_reading(self, reading: T, width: int) -> None:
        """Print a reading as text."""
        raise NotImplementedError

    def print_document(self, reading: T) -> None:
        """Print a reading as one line of JSON."""
        raise NotImplementedError

    def compose(self, reading: T, state: State, width: int, height: int, plain: bool) -> Rows:
        """Make the lines of the screen."""
        raise NotImplementedError

    def nr_rows(self, reading: T) -> int:
        """Return the number of rows of the table."""
        raise NotImplementedError

    def open_pidfds(self) -> list[int]:
        """Open descriptors that tell at once when there is nothing to watch any more."""
        return []


class _OneProcess(_View["Reading"]):
    """One process, by its mappings."""

    def __init__(self, pid: int | str, track_writes: bool) -> None:
        from physview.analysis.watch import Watcher
        from physview.reporters import watch, watch_screen

        self._watcher = Watcher(pid, track_writes=track_writes)
        self._reporter, self._screen = watch, watch_screen
        self.orders = watch_screen.ORDERS

    def close(self) -> None:
        self._watcher.close()

    def read(self) -> Reading:
        return self._watcher.read()

    def print_reading(self, reading: Reading, width: int) -> None:
        self._reporter.print_reading(reading, width)

    def print_document(self, reading: Reading) -> None:
        self._reporter.print_document(reading)

    def compose(self, reading: Reading, state: State, width: int, height: int, plain: bool) -> Rows:
        return self._screen.compose(reading, state, width, height, plain=plain)

    def nr_rows(self, reading: Reading) -> int:
        return len(reading.vmas)

    def open_pidfds(self) -> list[int]:
        try:
            return [os.pidfd_open(self._watcher.proc.pid)]
        except OSError:  # before Linux 5.3
            return []


class _Processes(_View["ProcessesReading"]):
    """Several processes, a row for each."""

    def __init__(self, list_pids: Callable[[], Iterable[int]], track_writes: bool) -> None:
        from physview.analysis.watch_processes import ProcessesWatcher
        from physview.reporters import watch_processes, watch_processes_screen

        self._watcher = ProcessesWatcher(list_pids, track_writes=track_writes)
        self._track_writes = track_writes
        self._reporter, self._screen = watch_processes, watch_processes_screen
        self.orders = watch_processes_screen.ORDERS

    def close(self) -> None:
        self._watcher.close()

    def read(self) -> ProcessesReading:
        reading = self._watcher.read()
        if not reading.readings:
            why = "none has user memory"
            if reading.nr_denied:
                why = f"you may not examine these {reading.nr_denied} processes"
            raise PhysviewError("nothing to watch", why, _common.root_remedy())
        return reading

    def print_reading(self, reading: ProcessesReading, width: int) -> None:
        self._reporter.print_reading(reading, width, track_writes=self._track_writes)

    def print_document(self, reading: ProcessesReading) -> None:
        self._reporter.print_document(reading)

    def compose(
        self, reading: ProcessesReading, state: State, width: int, height: int, plain: bool
    ) -> Rows:
        del plain  # no characters but ASCII
        writes = self._track_writes
        return self._screen.compose(reading, state, width, height, track_writes=writes)

    def nr_rows(self, reading: ProcessesReading) -> int:
        return len(reading.readings)


def _print(view: _View[T], args: argparse.Namespace) -> None:
    from physview.units import terminal_width

    width, nr = terminal_width(), 0
    while True:
        began = time.monotonic()
        reading = view.read()
        if args.json:
            view.print_document(reading)
        else:
            view.print_reading(reading, width)
        sys.stdout.flush()
        nr += 1
        if nr == args.ticks:
            break
        time.sleep(_pause(args.interval, began))
    if not reading.knows_frames:
        _common.say(
            "frame numbers are hidden, so moved pages and places in RAM are not known;"
            f" {_common.root_remedy()}"
        )


def _pause(interval: float, began: float) -> float:
    """Return the seconds to wait after a reading that began at the time `began`."""
    took = time.monotonic() - began
    return max(interval - took, MIN_PAUSES * took)


def _show(view: _View[T], interval: float) -> None:
    from physview.reporters.screen import Screen, State
    from physview.runtime.terminal import Terminal

    state = State(interval, view.orders)
    reading = view.read()  # first, so that an error comes before anything is drawn
    if not reading.knows_frames:
        state.remedy = _common.root_remedy()
    screen = Screen()
    gone = view.open_pidfds()
    try:
        with Terminal(screen.enter, screen.leave) as terminal:
            due = time.monotonic() + interval
            clocks = time.monotonic(), time.process_time()
            while True:
                screen.draw(partial(view.compose, reading, state))
                wait = None if state.paused else max(0.0, due - time.monotonic())
                keys, ended = terminal.wait(wait, gone)
                for key in keys:
                    if key == "q":
                        return
                    _handle_key(key, state, view.nr_rows(reading))
                if {" ", "p"} & set(keys):
                    due = time.monotonic()
                elif {"+", "-"} & set(keys):
                    due, state.lengthened = time.monotonic() + state.interval, None
                if ended:  # the next reading raises the error that says how it ended
                    os.close(gone.pop())
                if not ended and (state.paused or time.monotonic() < due):
                    continue
                began = time.monotonic()
                reading = view.read()
                state.own_share = (time.process_time() - clocks[1]) / (began - clocks[0])
                clocks = began, time.process_time()
                pause = _pause(state.interval, began)
                due = time.monotonic() + pause
                longer = due - began
                state.lengthened = longer if longer > state.interval * 1.05 else None
    finally:
        for fd in gone:
            os.close(fd)


def _handle_key(key: str, state: State, nr_rows: int) -> None:
    if key in (" ", "p"):
        state.paused = not state.paused
    elif key == "+":
        state.interval = next((step for step in STEPS if step > state.interval), state.interval)
    elif key == "-":
        shorter = [step for step in STEPS if step < state.interval]
        state.interval = shorter[-1] if shorter else state.interval
    elif key in state.orders:
        state.sort, state.first = key, 0
    else:
        state.scroll(key, nr_rows)
