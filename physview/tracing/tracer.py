# SPDX-License-Identifier: GPL-2.0-or-later
"""The tracer: reads a kernel event's fields, and the kernel stack that led to the event."""

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
from physview.tracing.events import Event, Losses, RawEvent, StackFrame
from physview.tracing.ftrace import FtraceSource
from physview.tracing.symbols import Symbols, read_symbols

# The longest wait for events in one read, in seconds. It bounds the delay with which the tracer
# notices that the process has ended.
READ_TIMEOUT = 0.1
# Functions of the tracing itself, which are on top of the stack of a tracepoint.
_OWN_FRAMES = re.compile("trace_event_raw_event_|trace_event_buffer|__traceiter_")


class EventSource(Protocol):
    """A source of events: ftrace or breakpoints."""

    def start(self) -> None:
        """Start tracing."""

    def stop(self) -> None:
        """Stop tracing. Recorded events can still be read."""

    def read(self, timeout: float) -> list[RawEvent]:
        """Return the new events."""

    def flush(self) -> list[RawEvent]:
        """Return the remaining events, at the end of the trace."""

    def comms(self) -> dict[int, str]:
        """Return the names of threads by their tids."""

    def losses(self) -> Losses:
        """Return the counts of lost events."""

    def close(self) -> None:
        """Remove everything that the source made in the kernel."""


class Tracer(Closable):
    """Traces a kernel event, on the whole machine or of one process.

    Args:
        event: copy_to_user, copy_from_user, put_user, kmalloc, mm_page_alloc; any tracepoint as
            SUBSYSTEM:EVENT; or any kernel function as FUNCTION, MODULE:FUNCTION or its address.
        pid: The process to trace, with its present threads. None traces all processes except this
            one.
        follow: With a pid, also trace the threads and processes that the process starts.
        from_exec: With a pid, start tracing when the process calls exec().
        stacks: Record the kernel stack of each event.
        buffer_kib: The size of each kernel buffer in KiB. None selects the default size.
        through: Keep only events whose stack passes this function: FUNCTION or MODULE:FUNCTION.

    Raises:
        UsageError: The kernel has no such event or function, or `through` needs the stacks.
        AccessDenied: Only root may trace.
        Unsupported: This kernel can't trace the event.
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
        through: str | None = None,
    ) -> None:
        if through is not None and not stacks:
            raise UsageError("--through and --no-stacks exclude each other", "", "leave out one")
        self.event = event
        self.nr_others = 0
        """The number of events so far whose stack does not pass the function `through`."""
        self.probes: tuple[str, ...] = ()
        """The tracepoints, or the symbols of the functions, that are traced."""
        self.means = ""
        """The method: "tracepoint", "kprobe" or "breakpoint"."""
        self._symbols: Symbols | None = None
        self._through: tuple[str, str] | None = None
        self._comms: dict[int, str] = {}
        self._source: EventSource | None = None
        self._proc = ProcDir(pid) if pid is not None else None
        options = {
            "follow": follow,
            "from_exec": from_exec,
            "stacks": stacks,
            "buffer_kib": buffer_kib,
        }
        try:
            self._start(event, options, through)
        except BaseException:
            self.close()
            raise

    def _start(self, event: str, options: dict[str, Any], through: str | None) -> None:
        tids = self._tids()
        source = self._source = FtraceSource(tids, **options)
        if through is not None:
            self._symbols = read_symbols()
            self._through = targets.find_function(through, self._symbols)
        if event in targets.EVENTS or (":" in event and not self._is_in_module(event, source)):
            self.probes = targets.add_events(source, event)
            self.means = "tracepoint"
            source.start()
            return
        symbols = self._symbols = self._symbols or read_symbols()
        places = targets.find_places(event, symbols, source.tracefs)
        self.probes = tuple(place.label for place in places)
        self.means = "kprobe"
        if not targets.add_kprobes(source, event, places):
            # Trace all places by breakpoints, also those that allow a kprobe: events of one source
            # are in the order of time.
            breakpoints = targets.breakpoints_for(event, places)
            source.close()
            breakpoint_source = self._source = BreakpointSource(breakpoints, tids, **options)
            self.means = "breakpoint"
            breakpoint_source.start()
        else:
            source.start()

    def _is_in_module(self, event: str, source: FtraceSource) -> bool:
        """Whether a name is MODULE:FUNCTION, and not a tracepoint's SUBSYSTEM:EVENT."""
        if source.has_event(event):
            return False
        self._symbols = self._symbols or read_symbols()
        return event.partition(":")[0] in self._symbols.modules

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
        """Yield events as they happen, until the process ends. Without a pid, never end."""
        while not self.has_ended:
            yield from self.read()
        yield from self.finish()

    @property
    def has_ended(self) -> bool:
        """Whether the traced process has ended."""
        if self._proc is None:
            return False
        stat = self._proc.stat()
        return stat is None or stat.has_ended

    def read(self, timeout: float = READ_TIMEOUT) -> list[Event]:
        """Return the events since the last read, in the order of time.

        Args:
            timeout: The longest wait for an event, in seconds.
        """
        return self._events(self._active_source.read(timeout))

    def finish(self) -> list[Event]:
        """Stop tracing, and return the remaining events."""
        source = self._active_source
        source.stop()
        found = source.read(0) + source.flush()
        return self._events(sorted(found, key=lambda event: event.time_ns))

    @property
    def losses(self) -> Losses:
        """The counts of lost events."""
        return self._active_source.losses()

    @property
    def _active_source(self) -> EventSource:
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
        seen = self._active_source.comms()
        names = {**seen, **self._comms}
        events = [
            Event(
                raw.time_ns,
                raw.cpu,
                raw.tid,
                names.get(raw.tid, "") if raw.comm is None else raw.comm,
                raw.name,
                raw.fields,
                raw.addresses,
                raw.in_hex,
                self._stack(raw),
            )
            for raw in found
        ]
        kept = [event for event in events if self._passes(event.stack)]
        self.nr_others += len(events) - len(kept)
        return kept

    def _passes(self, stack: tuple[StackFrame, ...]) -> bool:
        if self._through is None:
            return True
        module, name = self._through
        return any(
            targets.is_function(frame.symbol, name) and module in ("", frame.module)
            for frame in stack
        )

    def _stack(self, raw: RawEvent) -> tuple[StackFrame, ...]:
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
        else:  # on top of the stack, above the probed function, are functions of the probe itself
            names = [frame.symbol for frame in frames]
            start = names.index(raw.name) if raw.name in names else 0
        return tuple(frames[start:])

    def close(self) -> None:
        """Remove everything that the tracer made in the kernel. Closing twice is harmless."""
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
