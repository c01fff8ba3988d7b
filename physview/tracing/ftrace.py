# SPDX-License-Identifier: GPL-2.0-or-later
"""The event source for tracepoints and kprobes: ftrace, the kernel's own tracer."""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Sequence
from typing import NamedTuple

from physview.errors import Unsupported
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.events import Format, Losses, RawEvent, parse_format
from physview.tracing.instance import Instance
from physview.tracing.processors import PROCESSORS, with_caller
from physview.tracing.trace_buffer import Record, StackMatcher, iter_records
from physview.tracing.tracefs import Tracefs

READ_SIZE = 1 << 16  # larger than any page of the trace buffer
EXEC = "sched/sched_process_exec"
# A stack follows its record immediately, but possibly in a later read. After this time it is lost.
STACK_TIMEOUT_NS = 1_000_000_000
INIT_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h
# The field in which a kprobe fetches the register with the return address: see with_caller().
LINK = "physview_link"


class Fetch(NamedTuple):
    """The values that a kprobe fetches.

    Args:
        arguments: The values, as kprobe_events takes them.
        addresses: The names of those that are addresses. None: the kernel takes the types from BTF.
    """

    arguments: str
    addresses: frozenset[str] | None


class FtraceSource:
    """An event source: a private ftrace instance. The caller adds events and then calls `start()`.

    Args:
        tids: The threads to trace. None traces all processes except this one.
        follow: Whether to trace the threads and processes that these threads start, too.
        from_exec: Whether to drop the events that precede a thread's exec().
        stacks: Whether to record stacks.
        buffer_kib: The size in KiB of each processor's buffer. None keeps the kernel's default.

    Raises:
        PhysviewError: tracefs is not usable.
    """

    def __init__(
        self,
        tids: Sequence[int] | None,
        *,
        follow: bool,
        from_exec: bool,
        stacks: bool,
        buffer_kib: int | None,
    ) -> None:
        self._instance = Instance(tracefs.find_tracefs())
        self._events: list[str] = []
        self._formats: dict[int, Format] = {}
        self._names: dict[int, str] = {}
        self._fds: list[int] = []
        self._cpus: list[int] = []
        self._stacks: dict[int, StackMatcher] = {}
        self._exec_number: int | None = None
        # The time of each thread's exec(); None until it happens.
        self._exec_ns: dict[int, int | None] = dict.fromkeys(tids or ()) if from_exec else {}
        self._before_exec: list[RawEvent] = []
        self._stopped = False
        try:
            self._prepare(tids, follow, stacks, buffer_kib)
        except BaseException:
            self.close()
            raise

    def _prepare(
        self, tids: Sequence[int] | None, follow: bool, stacks: bool, buffer_kib: int | None
    ) -> None:
        self._instance.set("tracing_on", "0")
        self._instance.set("trace_clock", "mono")
        if self._instance.has("buffer_percent"):  # since 5.0; older kernels wake at half full
            self._instance.set("buffer_percent", "0")
        if buffer_kib:
            self._instance.set("buffer_size_kb", str(buffer_kib))
        if stacks:
            self._instance.set("options/stacktrace", "1")
        self._with_stacks = stacks
        if follow:
            self._instance.set("options/event-fork", "1")
        if tids is None:
            if self._instance.has("set_event_notrace_pid"):  # since 5.7
                own = sorted(map(int, os.listdir("/proc/self/task")))
                self._instance.set("set_event_notrace_pid", " ".join(map(str, own)))
            return
        if os.stat("/proc/self/ns/pid").st_ino != INIT_PID_NAMESPACE:
            why = "this container has its own pid namespace, and ftrace knows only the host's pids"
            raise Unsupported("cannot trace one process", why, "run outside of the container")
        self._instance.set("set_event_pid", " ".join(map(str, tids)))

    @property
    def tracefs(self) -> Tracefs:
        """The tracefs that contains the instance."""
        return self._instance.tracefs

    def has_event(self, name: str) -> bool:
        """Whether the kernel has this tracepoint, SUBSYSTEM:EVENT."""
        return self._instance.has(f"events/{name.replace(':', '/')}/format")

    def add_event(self, name: str) -> None:
        """Add a tracepoint, SUBSYSTEM:EVENT."""
        self._add(name.replace(":", "/"), name.partition(":")[2])

    def add_kprobe(
        self, place: str, function: str, fetches: Sequence[Fetch], *, is_start: bool
    ) -> None:
        """Add a kprobe.

        Args:
            place: The place in the kernel's code: FUNCTION, MODULE:FUNCTION or an address.
            function: The function's name.
            fetches: Alternative lists of values to fetch. The first list that the kernel accepts is
                used.
            is_start: Whether the place is the beginning of the function.

        Raises:
            OSError: The kernel accepts none of them, because it does not trace this function.
            Unsupported: This kernel has no kprobes.
        """
        if not self.tracefs.has("kprobe_events"):
            why = "this kernel has no kprobes"
            remedy = "boot a kernel with CONFIG_KPROBE_EVENTS=y"
            raise Unsupported(
                f"cannot probe {function}", why, f"{remedy}, or {tracefs.trace_in_vm()}"
            )
        event = "p_" + re.sub(r"\W", "_", function)[:50]
        processor = PROCESSORS.get(os.uname().machine)
        link = processor.link if processor and is_start and self._with_stacks else ""
        more = f" {LINK}=%{link}:x64" if link else ""
        last = None
        for fetch in fetches:
            try:
                self._instance.add_probe(event, f"{place} {fetch.arguments}{more}")
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM):
                    path = f"{self.tracefs.path}/kprobe_events"
                    raise tracefs.refused(f"cannot probe {function}", error, path) from None
                last = error
                continue
            return self._add(f"{self._instance.owner.group}/{event}", function, fetch)
        assert last
        raise last

    def _add(self, folder: str, name: str, fetch: Fetch | None = None) -> None:
        # A new probe appears in every instance as soon as it is defined.
        path = f"events/{folder}/format"
        if self._instance.has(path):
            path = f"{self._instance.folder}/{path}"
        form = parse_format(self.tracefs.read(path))
        if fetch:
            # With types from BTF, the kernel prints pointers in hexadecimal, and nothing else.
            in_hex = form.in_hex - {LINK}
            addresses = in_hex if fetch.addresses is None else fetch.addresses
            form = form._replace(addresses=addresses, in_hex=in_hex)
        self._formats[form.number] = form
        self._names[form.number] = name
        self._events.append(folder)

    def start(self) -> None:
        """Start tracing.

        Raises:
            PhysviewError: The kernel refused.
        """
        if self._exec_ns:
            form = parse_format(self.tracefs.read(f"events/{EXEC}/format"))
            self._exec_number = form.number
            self._instance.set(f"events/{EXEC}/enable", "1")
        layout = parse_format(self.tracefs.read("events/ftrace/kernel_stack/format"))
        offsets = {field.name: field.offset for field in layout.fields}
        folder = f"{self._instance.folder}/per_cpu"
        for cpu in sorted(int(name[3:]) for name in self.tracefs.names(folder)):
            path = f"{folder}/cpu{cpu}/trace_pipe_raw"
            try:
                self._fds.append(self.tracefs.open(path, os.O_RDONLY | os.O_NONBLOCK))
            except OSError as error:
                path = f"{self.tracefs.path}/{path}"
                raise tracefs.refused("cannot read the trace", error, path) from None
            self._cpus.append(cpu)
            self._stacks[cpu] = StackMatcher(layout.number, offsets["size"], offsets["caller"])
        self._poll = select.poll()
        for fd in self._fds:
            self._poll.register(fd, select.POLLIN)
        for event in self._events:
            self._instance.set(f"events/{event}/enable", "1")
        self._instance.set("tracing_on", "1")

    def stop(self) -> None:
        """Stop tracing. Recorded events can still be read."""
        self._instance.set("tracing_on", "0")
        self._stopped = True

    def read(self, timeout: float) -> list[RawEvent]:
        """Return the events since the last read, in the order of time.

        Args:
            timeout: The longest wait for an event, in seconds.
        """
        self._poll.poll(timeout * 1000)
        found = []
        for cpu, fd in zip(self._cpus, self._fds, strict=True):
            complete = []
            newest = 0
            for page in self._pages(fd):
                for record in iter_records(page):
                    newest = record.time_ns
                    complete += self._feed(cpu, record)
            complete += self._stacks[cpu].flush(newest - STACK_TIMEOUT_NS)
            found += [self._event(cpu, record, stack) for record, stack in complete]
        return self._drop_before_exec(found)

    def _drop_before_exec(self, found: list[RawEvent]) -> list[RawEvent]:
        """Return events in the order of time, without those that precede their thread's exec().

        A thread can call exec() on another processor, whose buffer is read earlier or later. The
        time of the exec() therefore decides. Until it is known, the events wait.
        """
        found, self._before_exec = self._before_exec + found, []
        kept = []
        for event in found:
            since = self._exec_ns.get(event.tid, 0)
            if since is None:
                self._before_exec.append(event)
            elif event.time_ns >= since:
                kept.append(event)
        return sorted(kept, key=lambda event: event.time_ns)

    def _pages(self, fd: int) -> list[bytes]:
        pages: list[bytes] = []
        while self._stopped or len(pages) < 64:  # the other processors' buffers need reading, too
            try:
                page = os.read(fd, READ_SIZE)
            except BlockingIOError:
                break
            if not page:
                break
            pages.append(page)
        return pages

    def _feed(self, cpu: int, record: Record) -> list[tuple[Record, tuple[int, ...]]]:
        if record.number == self._exec_number:
            first = self._exec_ns.get(record.tid, 0)
            if first is None or record.time_ns < first:  # a thread may call exec() again later
                self._exec_ns[record.tid] = record.time_ns
        complete = self._stacks[cpu].feed(record) if self._with_stacks else (record, ())
        return [complete] if complete and complete[0].number in self._formats else []

    def flush(self) -> list[RawEvent]:
        """Return the events whose stacks were lost. Call it when no more events can be read."""
        found = [
            self._event(cpu, record, stack)
            for cpu, stacks in self._stacks.items()
            for record, stack in stacks.flush()
            if record.number in self._formats
        ]
        return self._drop_before_exec(found)

    def _event(self, cpu: int, record: Record, stack: tuple[int, ...]) -> RawEvent:
        form = self._formats[record.number]
        fields = form.decode(record.content)
        caller = fields.pop(LINK, 0)
        assert isinstance(caller, int)
        return RawEvent(
            record.time_ns,
            cpu,
            record.tid,
            None,
            self._names[record.number],
            fields,
            form.addresses,
            form.in_hex,
            with_caller(stack, caller),
        )

    def comms(self) -> dict[int, str]:
        """Return the names of threads by their tids. The kernel remembers only a few threads."""
        return parse_saved_cmdlines(self.tracefs.read("saved_cmdlines"))

    def losses(self) -> Losses:
        """Return the counts of lost events so far."""
        overrun = 0
        for cpu in self._cpus:
            path = f"{self._instance.folder}/per_cpu/cpu{cpu}/stats"
            stats = proctext.fields_by_name(self.tracefs.read(path))
            names = (b"overrun", b"commit overrun", b"dropped events")
            overrun += sum(int(stats.get(name, 0)) for name in names)
        return Losses(overrun, 0)

    def close(self) -> None:
        """Remove the instance and its probes. Closing twice is harmless."""
        for fd in self._fds:
            os.close(fd)
        self._fds, self._cpus = [], []
        self._instance.close()


def parse_saved_cmdlines(data: bytes) -> dict[int, str]:
    r"""Return the names of threads by their tids. Source: saved_cmdlines_show() in kernel/trace/.

    A thread's name may contain "\n", and can therefore imitate a line of the kernel's. The kernel
    writes each thread once. If a tid occurs twice, neither line is trusted.

    >>> parse_saved_cmdlines(b"7 a\nb c\n8 d\n0 <idle>\n8 e\n")
    {7: 'a\nb c', 0: '<idle>'}
    """
    found: dict[int, list[bytes]] = {}
    names: list[bytes] = []
    for line in proctext.lines(data):
        tid, blank, comm = line.partition(b" ")
        if blank and tid.isdigit():
            names = found.setdefault(int(tid), [])
            names.append(comm)
        elif names:
            names[-1] += b"\n" + line
    return {tid: os.fsdecode(names[0]) for tid, names in found.items() if len(names) == 1}
