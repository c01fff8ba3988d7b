# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace events in the kernel, and show for each event which functions led to it.

EVENT is copy_to_user, copy_from_user, put_user, kmalloc, mm_page_alloc, any tracepoint as
SUBSYSTEM:EVENT, or any function of the kernel as FUNCTION, MODULE:FUNCTION or its address. PID is
the process to trace. A command after -- is started, and traced from its first instruction. Without
PID and command, the whole machine is traced. Tracing ends after N events, when the process ends, or
with Ctrl-C. Exits with 1 if there was no event. Needs root.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.runtime import invocation
from physview.runtime.resolve_pid import find_pid

if TYPE_CHECKING:
    from physview.analysis.trace import KernelMap, Trace
    from physview.frames.owners import Ownership
    from physview.model import Vma
    from physview.tracing import Tracer
    from physview.tracing.traced_command import TracedCommand

NAME = "trace"
HELP = "kernel stacks of copy_to_user, kmalloc, mm_page_alloc, or any other event or function"
STARTS_PROGRAM = True

MAX_EVENTS = 1_000_000
MAX_BUFFER_KIB = 1 << 20
# The frames of at most this many events are looked up afterwards; more would take long.
MAX_LOOKED_UP = 5000
SECONDS_BETWEEN_MAPS = 0.5


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = f"physview {NAME} EVENT [OPTIONS] [PID | -- CMD…]"
    parser.add_argument("event", metavar="EVENT", help="what to trace")
    parser.add_argument(
        "process", metavar="PID", nargs="?", help="a pid, self, or the name of one process"
    )
    parser.add_argument("--pid", metavar="PID", help="the same as PID")
    parser.add_argument(
        "-n",
        "--number",
        type=_common.count(MAX_EVENTS),
        metavar="N",
        default=100,
        help="end after N events (default: 100)",
    )
    parser.add_argument(
        "--seconds",
        type=_common.duration(0.001),
        metavar="S",
        help="end after S seconds (or 5m, 2h), even if nothing happened",
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="with a process: also trace the threads and processes that it starts",
    )
    parser.add_argument(
        "--through",
        metavar="FUNCTION",
        help="keep only events whose stack passes FUNCTION, such as the ioctl of the module:"
        " physicalview_ioctl",
    )
    parser.add_argument(
        "--summary", action="store_true", help="count the events by stack, most frequent first"
    )
    parser.add_argument("--no-stacks", action="store_true", help="show events without stacks")
    parser.add_argument(
        "--buffer",
        type=_common.count(MAX_BUFFER_KIB),
        metavar="KIB",
        help="size of the kernel's buffers; make them larger if events were lost",
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Trace, and print the events."""
    pid = _find_pid(args)
    from physview.analysis.trace import read_kernel_map

    with _signals() as caught:
        trace, launched = _trace(args, pid, caught)
    exit_code = _wait(launched) if launched else 0
    if caught and caught[0] != signal.SIGINT:
        _common.die_of(signal.Signals(caught[0]).name)
    kernel = read_kernel_map()
    ownership = _find_frames(trace, kernel)
    _print(args, trace, ownership, kernel)
    _say_what_is_missing(trace, kernel)
    if exit_code and not caught:
        ended = f"exit code {exit_code}" if exit_code > 0 else f"signal {-exit_code}"
        _common.say(f"{args.command[0]} ended with {ended}")
    return int(not trace.events or bool(exit_code and not caught))


def _find_pid(args: argparse.Namespace) -> int | None:
    """Return the pid to trace; None for a command or for the whole machine."""
    given = [word for word in (args.process, args.pid) if word is not None]
    if args.command is not None:
        if not args.command:
            line = invocation.physview(f"{NAME} EVENT -- CMD…")
            raise UsageError("nothing to run", "", line)
        given.append(args.command[0])
    if len(given) > 1:
        raise UsageError("too many processes", "trace takes one PID, --pid or command")
    if args.follow and not given:
        raise UsageError("nothing to follow", "--follow needs a process")
    if not given or args.command is not None:
        return None
    found = find_pid(given[0])
    return os.getpid() if isinstance(found, str) else found


def _trace(
    args: argparse.Namespace, pid: int | None, caught: list[int]
) -> tuple[Trace, TracedCommand | None]:
    from physview.tracing import Tracer
    from physview.tracing.traced_command import TracedCommand

    launched = None
    if args.command:
        launched = TracedCommand(args.command, 2 if args.json else 1)
        pid = launched.pid
    try:
        with Tracer(
            args.event,
            pid=pid,
            follow=args.follow,
            from_exec=launched is not None,
            stacks=not args.no_stacks,
            buffer_kib=args.buffer,
            through=args.through,
        ) as tracer:
            if launched:
                launched.run()
            trace = _gather(args, tracer, pid, caught)
    except BaseException:
        if launched:
            launched.send_signal(signal.SIGKILL)
            launched.wait()
        raise
    if launched and caught:
        launched.send_signal(caught[0])
    elif launched and len(trace.events) >= args.number:
        traced = "1 event is" if args.number == 1 else f"{args.number} events are"
        _common.say(f"{traced} traced; waiting for {args.command[0]} to end")
    return trace, launched


def _wait(launched: TracedCommand) -> int:
    """Wait for the command. Ctrl-C ends it; after a second Ctrl-C we no longer wait."""
    try:
        return launched.wait()
    except KeyboardInterrupt:
        launched.send_signal(signal.SIGINT)
        return launched.wait()


def _gather(args: argparse.Namespace, tracer: Tracer, pid: int | None, caught: list[int]) -> Trace:
    from physview.analysis.trace import Trace, read_memory
    from physview.commands import _progress
    from physview.tracing import Event

    events: list[Event] = []
    memory: list[Vma] = []
    start = time.monotonic()
    look_at = start
    with _progress.progress_bar("tracing") as progress:
        while not caught and len(events) < args.number:
            now = time.monotonic()
            if args.seconds is not None and now - start >= args.seconds:
                break
            # Keep the last mappings: they matter after the process has ended, too.
            if pid is not None and now >= look_at:
                memory = read_memory(pid) or memory
                look_at = now + SECONDS_BETWEEN_MAPS
            ended = tracer.has_ended
            events += tracer.read()
            if ended:
                break
            if progress:
                progress(len(events), args.number)
        events += tracer.finish()
    if pid is not None:
        memory = read_memory(pid) or memory
    seconds = time.monotonic() - start
    return Trace(
        args.event,
        tracer.probes,
        tracer.means,
        pid,
        seconds,
        events[: args.number],
        tracer.losses,
        memory,
        args.through,
        tracer.nr_others,
    )


def _find_frames(trace: Trace, kernel: KernelMap) -> Ownership | None:
    """Look up what the frames are now; if this fails, say why and return None."""
    from physview.analysis.trace import frames_now, frames_of, object_frames

    if len(trace.events) > MAX_LOOKED_UP:
        if any(frames_of(event) or object_frames(event, kernel) for event in trace.events):
            _common.say(
                "what the frames are now is not looked up for more than"
                f" {MAX_LOOKED_UP} events; use -n {MAX_LOOKED_UP} or less"
            )
        return None
    try:
        return frames_now(trace.events, kernel)
    except PhysviewError as error:
        _common.say(f"what the frames are now is not known: {error}")
        return None


def _print(
    args: argparse.Namespace, trace: Trace, ownership: Ownership | None, kernel: KernelMap
) -> None:
    from physview.reporters import documents
    from physview.reporters import trace as reporter
    from physview.reporters.frames import table_width

    if args.json:
        documents.write(reporter.document(trace, ownership, kernel, summary=args.summary))
        return
    if args.summary:
        lines = reporter.iter_path_lines(trace)
    else:
        lines = reporter.iter_event_lines(trace, ownership, kernel)
    width = table_width()
    for line in chain(lines, reporter.iter_ending_lines(trace, ownership, kernel)):
        for part in reporter.wrapped(line, width):
            sys.stdout.write(part + "\n")


def _say_what_is_missing(trace: Trace, kernel: KernelMap) -> None:
    from physview.analysis.trace import KCORE, address_ranges

    nr_lost, nr_throttled = trace.losses
    if nr_lost:
        _common.say(
            f"events lost: {nr_lost} more happened while the buffer was full; make it larger with"
            " --buffer KIB"
        )
    if nr_throttled:
        _common.say(
            "events lost: they came so fast that the kernel paused tracing"
            f" {nr_throttled} times; sysctl kernel.perf_event_max_sample_rate raises the limit"
        )
    pid = trace.pid
    is_gone = pid is not None and not trace.memory and not os.path.exists(f"/proc/{pid}")
    if kernel.direct and not is_gone:
        return
    ranges = address_ranges(trace.events, kernel)
    if ranges and is_gone:
        _common.say(
            f"where process {pid} had its heap and stack is not known: it ended before its mappings"
            " could be read"
        )
    if not kernel.direct and any(found.area == "kernel" for found in ranges):
        why = "does not tell" if os.path.exists(KCORE) else "does not exist (CONFIG_PROC_KCORE)"
        _common.say(
            "which addresses of the kernel lie in the direct map is not known, nor what their"
            f" frames are now: {KCORE} {why}"
        )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Catch signals that would end us, so that no probe stays in the kernel.

    Yields:
        The numbers of the signals caught so far.
    """
    caught: list[int] = []
    signums = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signums.append(signal.SIGHUP)
    before = {n: signal.signal(n, lambda signum, _: caught.append(signum)) for n in signums}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
