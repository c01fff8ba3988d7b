# SPDX-License-Identifier: GPL-2.0-or-later
"""Show a process's memory live: its pages, how they change, and where in RAM they are.

On a terminal, the screen is updated again and again and takes keys; q quits. Changes are found by
comparing two readings: a page that came and went between the two is not seen. --ticks and --json
print readings instead.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import UsageError
from physview.runtime import invocation
from physview.runtime.resolve_pid import find_pid

if TYPE_CHECKING:
    from physview.analysis.watch import Reading, Watcher
    from physview.reporters.watch_screen import State

NAME = "watch"
HELP = "a process's memory live: which pages come, go, move or are swapped, and where in RAM"

STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
MIN_PAUSES = 4
"""Pause at least this many times the duration of a reading."""


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument(
        "--interval",
        type=_common.seconds(STEPS[0], 86400),
        metavar="S",
        default=1.0,
        help="seconds between readings (1)",
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
    pid = find_pid(args.process)
    prints = args.ticks is not None or args.json
    if not prints:
        _check_terminal()
    from physview.analysis.watch import Watcher

    with Watcher(pid, track_writes=args.track_writes) as watcher:
        if prints:
            _print(watcher, args)
        else:
            _show(watcher, args.interval)
    return 0


def _check_terminal() -> None:
    maps = invocation.physview("maps PID")
    remedy = f"--ticks N prints readings, and {maps} prints the present state"
    if not (sys.stdin and sys.stdin.isatty() and os.isatty(1)):
        raise UsageError("cannot draw", "stdin and stdout are not both a terminal", remedy)
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        raise UsageError("cannot draw", "TERM names a terminal without a movable cursor", remedy)


def _print(watcher: Watcher, args: argparse.Namespace) -> None:
    from physview.reporters import watch as reporter
    from physview.units import terminal_width

    width, nr = terminal_width(), 0
    while True:
        began = time.monotonic()
        reading = watcher.read()
        if args.json:
            reporter.print_document(reading)
        else:
            reporter.print_reading(reading, width)
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


def _show(watcher: Watcher, interval: float) -> None:
    from physview.reporters.watch_screen import Screen, State
    from physview.runtime.terminal import Terminal

    state = State(interval)
    reading = watcher.read()  # first, so that an error comes before anything is drawn
    if not reading.knows_frames:
        state.remedy = _common.root_remedy()
    screen = Screen()
    gone = _open_pidfd(reading.pid)
    try:
        with Terminal(screen.enter, screen.leave) as terminal:
            due = time.monotonic() + interval
            clocks = time.monotonic(), time.process_time()
            while True:
                screen.draw(reading, state)
                wait = None if state.paused else max(0.0, due - time.monotonic())
                keys, ended = terminal.wait(wait, gone)
                for key in keys:
                    if key == "q":
                        return
                    _handle_key(key, state, reading)
                if {" ", "p"} & set(keys):
                    due = time.monotonic()
                elif {"+", "-"} & set(keys):
                    due, state.lengthened = time.monotonic() + state.interval, None
                if ended:  # the next reading raises the error that says how it ended
                    os.close(gone.pop())
                if not ended and (state.paused or time.monotonic() < due):
                    continue
                began = time.monotonic()
                reading = watcher.read()
                state.own_share = (time.process_time() - clocks[1]) / (began - clocks[0])
                clocks = began, time.process_time()
                pause = _pause(state.interval, began)
                due = time.monotonic() + pause
                longer = due - began
                state.lengthened = longer if longer > state.interval * 1.05 else None
    finally:
        for fd in gone:
            os.close(fd)


def _handle_key(key: str, state: State, reading: Reading) -> None:
    from physview.reporters.watch_screen import SORTS

    if key in (" ", "p"):
        state.paused = not state.paused
    elif key == "+":
        state.interval = next((step for step in STEPS if step > state.interval), state.interval)
    elif key == "-":
        shorter = [step for step in STEPS if step < state.interval]
        state.interval = shorter[-1] if shorter else state.interval
    elif key in SORTS:
        state.sort, state.first = key, 0
    else:
        state.scroll(key, len(reading.vmas))


def _open_pidfd(pid: int) -> list[int]:
    """Open a pidfd, which tells at once when the process ends; none before Linux 5.3."""
    try:
        return [os.pidfd_open(pid)]
    except OSError:
        return []
