# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces the kernel: which functions lead to an event, and what the event tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Protocol

from physview.errors import UsageError
from physview.files.descriptor import Closable
from physview.sources.procfs import ProcDir
from physview.text import proctext
from physview.tracing import targets
from physview.tracing.breakpoints import BreakpointSource
from physview.tracing.events import Event, Frame, Losses, RawEvent
from physview.tracing.ftrace import FtraceSource
from physview.tracing.symbols import Symbols, read_symbols

# How long a read waits for events at most, in seconds: as soon is seen that a process ended.
WAIT = 0.1
# What a tracepoint puts on top of a stack by being traced.
_OWN_FRAMES = re.compile("trace_event_raw_event_|trace_event_buffer|__traceiter_")


class Source(Protocol):
    """Where events come from."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def read(self, timeout: float) -> list[RawEvent]:
        """What happened."""

    def flush(self) -> list[RawEvent]:
        """What is left at the end."""

    def comms(self) -> dict[int, str]:
        """Names of threads."""

    def losses(self) -> Losses:
        """What was lost."""

    def close(self) -> None:
        """Remove all."""


class Tracer(Closable):
    """Traces an event of the kernel's, in the whole machine or of one process.

    Args:
        event: copy_to_user, copy_from_user, put_user, kmalloc, mm_page_alloc; any tracepoint as
            SUBSYSTEM:EVENT; or any function of the kernel.
        pid: The process: its threads as they are now. None traces all but this one.
        follow: With a pid, trace threads and processes that it starts, too.
        from_exec: With a pid, begin when it runs another program.
        stacks: Have the kernel's stack with each event.
        buffer_kib: How large the buffers are; None takes what is usual.

    Raises:
        UsageError: There is no such event.
        AccessDenied: Tracing is root's.
        Unsupported: This kernel cannot.
        ProcessGone: There is no such process.
    """

    def __init__(
        self,
        event: str,
        *,
        pid: int | None = None,
        follow: bool = False,
        from_exec: bool = False,
        stacks: bool = True,
        buffer_kib: int | None = None,
    ) -> None:
        self.event = event
        self.probes: tuple[str, ...] = ()
        """What is traced: tracepoints, or functions by their symbols."""
        self.means = ""
        """How: "tracepoint", "kprobe" or "breakpoint"."""
        self._symbols: Symbols | None = None
        self._comms: dict[int, str] = {}
        self._source: Source | None = None
        self._proc = ProcDir(pid) if pid is not None else None
        options = {
            "follow": follow,
            "from_exec": from_exec,
            "stacks": stacks,
            "buffer_kib": buffer_kib,
        }
        try:
            self._start(event, options)
        except BaseException:
            self.close()
            raise

    def _start(self, event: str, options: dict[str, Any]) -> None:
        tids = self._tids()
        source = self._source = FtraceSource(tids, **options)
        if ":" in event or event in targets.EVENTS:
            self.probes = targets.add_events(source, event)
            self.means = "tracepoint"
            source.start()
            return
        self._symbols = read_symbols()
        symbols = targets.symbols_of(event, self._symbols, source.tracefs)
        refused = targets.add_kprobes(source, event, symbols)
        self.probes = tuple(symbols)
        self.means = "kprobe"
        if refused:
            # All of them by one means, so that their order in time is known.
            places = targets.places_of(event, symbols, self._symbols)
            source.close()
            breakpoints = self._source = BreakpointSource(places, tids, **options)
            self.means = "breakpoint"
            breakpoints.start()
        else:
            source.start()

    def _tids(self) -> list[int] | None:
        if self._proc is None:
            return None
        stat = self._proc.stat()
        if stat is None or stat.has_ended:
            raise self._proc.gone()
        try:
            return sorted(map(int, os.listdir(f"{self._proc.path}/task")))
        except OSError:
            raise self._proc.gone() from None

    def __iter__(self) -> Iterator[Event]:
        """Yield events as they happen, until the process ends; without a pid for ever."""
        while not self.has_ended:
            yield from self.read()
        yield from self.finish()

    @property
    def has_ended(self) -> bool:
        """Whether the process that is traced has ended."""
        if self._proc is None:
            return False
        stat = self._proc.stat()
        return stat is None or stat.has_ended

    def read(self, timeout: float = WAIT) -> list[Event]:
        """Events that happened since, in the order of time.

        Args:
            timeout: How long to wait for one, in seconds.
        """
        return self._events(self._at_work.read(timeout))

    def finish(self) -> list[Event]:
        """Stop, and read what is left."""
        source = self._at_work
        source.stop()
        found = source.read(0) + source.flush()
        return self._events(sorted(found, key=lambda event: event.time_ns))

    @property
    def losses(self) -> Losses:
        """How many events are missing."""
        return self._at_work.losses()

    @property
    def _at_work(self) -> Source:
        if self._source is None:
            raise UsageError("cannot read the trace", "the tracer is closed")
        return self._source

    def _events(self, found: list[RawEvent]) -> list[Event]:
        if not found:
            return []
        for tid in {event.tid for event in found if event.comm is None}:
            comm = _comm(tid)
            if comm:
                self._comms[tid] = comm
        seen = self._at_work.comms()
        names = {**seen, **self._comms}
        return [
            Event(
                raw.time_ns,
                raw.cpu,
                raw.tid,
                names.get(raw.tid, "") if raw.comm is None else raw.comm,
                raw.name,
                raw.fields,
                raw.addresses,
                self._stack(raw),
            )
            for raw in found
        ]

    def _stack(self, raw: RawEvent) -> tuple[Frame, ...]:
        if not raw.stack:
            return ()
        if self._symbols is None:
            self._symbols = read_symbols()
        frames = [self._symbols.frame(raw.stack[0], is_caller=False)]
        frames += map(self._symbols.frame, raw.stack[1:])
        start = 0
        if self.means == "tracepoint":
            while start < len(frames) - 1 and _OWN_FRAMES.match(frames[start].symbol):
                start += 1
        else:  # what a probe puts on top lies before the function
            names = [frame.symbol for frame in frames]
            start = names.index(raw.name) if raw.name in names else 0
        return tuple(frames[start:])

    def close(self) -> None:
        """Remove what was made in the kernel. Closing twice is harmless."""
        if self._source is not None:
            self._source.close()
            self._source = None
        if self._proc is not None:
            self._proc.close()


def _comm(tid: int) -> str:
    if tid == 0:
        return "<idle>"
    try:
        with open(f"/proc/{tid}/comm", "rb") as file:
            return os.fsdecode(proctext.value(file.read()))
    except OSError:
        return ""
