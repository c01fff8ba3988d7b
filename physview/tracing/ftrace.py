# SPDX-License-Identifier: GPL-2.0-or-later
"""Events by the kernel's own tracer: tracepoints and kprobes, from an instance in tracefs."""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Sequence

from physview.errors import Unsupported
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.events import Format, Losses, RawEvent, parse_format
from physview.tracing.instance import Instance
from physview.tracing.ring import Record, Stacks, iter_records
from physview.tracing.tracefs import Tracefs

READ_SIZE = 1 << 16  # more than any page of the buffer
EXEC = "sched/sched_process_exec"
# A stack comes right behind its record, but perhaps not in the same read.
NS_BEFORE_LOST = 1_000_000_000
INIT_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h


class FtraceSource:
    """Events of an instance of one's own. The caller adds events, and then starts it.

    Args:
        tids: Threads to trace; None traces all but this process.
        follow: Trace what these start, too.
        from_exec: Nothing counts that happened before the thread ran another program.
        stacks: Have stacks.
        buffer_kib: How large the buffer is, for each processor; None leaves the kernel's size.

    Raises:
        PhysviewError: tracefs cannot be had.
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
        self._stacks: dict[int, Stacks] = {}
        self._exec_number: int | None = None
        # When each became its program; None before it did.
        self._exec_ns: dict[int, int | None] = dict.fromkeys(tids or ()) if from_exec else {}
        self._early: list[RawEvent] = []
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
        if self._instance.has("buffer_percent"):  # 5.0: else it wakes when it is half full
            self._instance.set("buffer_percent", "0")
        if buffer_kib:
            self._instance.set("buffer_size_kb", str(buffer_kib))
        if stacks:
            self._instance.set("options/stacktrace", "1")
        self._with_stacks = stacks
        if follow:
            self._instance.set("options/event-fork", "1")
        if tids is None:
            if self._instance.has("set_event_notrace_pid"):  # 5.7
                own = sorted(map(int, os.listdir("/proc/self/task")))
                self._instance.set("set_event_notrace_pid", " ".join(map(str, own)))
            return
        if os.stat("/proc/self/ns/pid").st_ino != INIT_PID_NAMESPACE:
            why = "pids are numbered otherwise in this container, and the kernel knows its own"
            raise Unsupported("cannot trace one process", why, "run outside of the container")
        self._instance.set("set_event_pid", " ".join(map(str, tids)))

    @property
    def tracefs(self) -> Tracefs:
        """The tracefs that it traces with."""
        return self._instance.tracefs

    def has_event(self, name: str) -> bool:
        """Whether there is a tracepoint SUBSYSTEM:EVENT."""
        return self._instance.has(f"events/{name.replace(':', '/')}/format")

    def add_event(self, name: str) -> None:
        """Have a tracepoint, SUBSYSTEM:EVENT."""
        self._add(name.replace(":", "/"), name.partition(":")[2])

    def add_kprobe(self, function: str, fetches: Sequence[str]) -> None:
        """Have a probe where a function begins.

        Args:
            function: Its name.
            fetches: What to fetch there: the first that the kernel takes.

        Raises:
            OSError: The kernel takes none. EINVAL: it traces this function not at all; ENOENT:
                there is none of this name; EADDRNOTAVAIL: several.
            Unsupported: There are no kprobes.
        """
        if not self.tracefs.has("kprobe_events"):
            why, remedy = "this kernel has no kprobes", "it takes one with CONFIG_KPROBE_EVENTS=y"
            raise Unsupported(
                f"cannot probe {function}", why, f"{remedy}, or {tracefs.trace_in_vm()}"
            )
        event = "p_" + re.sub(r"\W", "_", function)[:50]
        last = None
        for fetch in fetches:
            try:
                self._instance.add_probe(event, f"{function} {fetch}")
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM):
                    path = f"{self.tracefs.path}/kprobe_events"
                    raise tracefs.refused(f"cannot probe {function}", error, path) from None
                last = error
                continue
            return self._add(f"{self._instance.owner.group}/{event}", function)
        assert last
        raise last

    def _add(self, folder: str, name: str) -> None:
        # A probe is there in every instance as soon as it is defined.
        path = f"events/{folder}/format"
        if self._instance.has(path):
            path = f"{self._instance.folder}/{path}"
        form = parse_format(self.tracefs.read(path))
        self._formats[form.number] = form
        self._names[form.number] = name
        self._events.append(folder)

    def start(self) -> None:
        """Begin.

        Raises:
            PhysviewError: The kernel refuses.
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
            self._stacks[cpu] = Stacks(layout.number, offsets["size"], offsets["caller"])
        self._poll = select.poll()
        for fd in self._fds:
            self._poll.register(fd, select.POLLIN)
        for event in self._events:
            self._instance.set(f"events/{event}/enable", "1")
        self._instance.set("tracing_on", "1")

    def stop(self) -> None:
        """Let nothing more happen; what happened can still be read."""
        self._instance.set("tracing_on", "0")
        self._stopped = True

    def read(self, timeout: float) -> list[RawEvent]:
        """Events that happened meanwhile, by time.

        Args:
            timeout: How long to wait for one, in seconds.
        """
        self._poll.poll(timeout * 1000)
        found = []
        for cpu, fd in zip(self._cpus, self._fds, strict=True):
            whole = []
            newest = 0
            for page in self._pages(fd):
                for record in iter_records(page):
                    newest = record.time_ns
                    whole += self._feed(cpu, record)
            whole += self._stacks[cpu].flush(newest - NS_BEFORE_LOST)
            found += [self._event(cpu, record, stack) for record, stack in whole]
        return self._since_exec(found)

    def _since_exec(self, found: list[RawEvent]) -> list[RawEvent]:
        """Events by time, without those of before a thread became its program.

        A program may begin on another processor, which is read sooner or later: time decides, and
        until that is known, they wait.
        """
        found, self._early = self._early + found, []
        kept = []
        for event in found:
            since = self._exec_ns.get(event.tid, 0)
            if since is None:
                self._early.append(event)
            elif event.time_ns >= since:
                kept.append(event)
        return sorted(kept, key=lambda event: event.time_ns)

    def _pages(self, fd: int) -> list[bytes]:
        pages: list[bytes] = []
        while self._stopped or len(pages) < 64:  # others wait, too
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
            if first is None or record.time_ns < first:  # it may run others afterwards
                self._exec_ns[record.tid] = record.time_ns
        whole = self._stacks[cpu].feed(record) if self._with_stacks else (record, ())
        return [whole] if whole and whole[0].number in self._formats else []

    def flush(self) -> list[RawEvent]:
        """Events whose stacks were lost, when there is nothing more to read."""
        found = [
            self._event(cpu, record, stack)
            for cpu, stacks in self._stacks.items()
            for record, stack in stacks.flush()
            if record.number in self._formats
        ]
        return self._since_exec(found)

    def _event(self, cpu: int, record: Record, stack: tuple[int, ...]) -> RawEvent:
        form = self._formats[record.number]
        return RawEvent(
            record.time_ns,
            cpu,
            record.tid,
            None,
            self._names[record.number],
            form.decode(record.content),
            form.addresses,
            stack,
        )

    def comms(self) -> dict[int, str]:
        """Names of threads that the tracer has seen; it keeps a few."""
        return parse_saved_cmdlines(self.tracefs.read("saved_cmdlines"))

    def losses(self) -> Losses:
        """What was lost so far."""
        overrun = 0
        for cpu in self._cpus:
            path = f"{self._instance.folder}/per_cpu/cpu{cpu}/stats"
            stats = proctext.fields_by_name(self.tracefs.read(path))
            names = (b"overrun", b"commit overrun", b"dropped events")
            overrun += sum(int(stats.get(name, 0)) for name in names)
        return Losses(overrun, 0)

    def close(self) -> None:
        """Remove all. Closing twice is harmless."""
        for fd in self._fds:
            os.close(fd)
        self._fds, self._cpus = [], []
        self._instance.close()


def parse_saved_cmdlines(data: bytes) -> dict[int, str]:
    r"""Names of threads by their tids. Source: saved_cmdlines_show() in kernel/trace/.

    A name may hold "\n", and with it what looks like a line of the kernel's. The kernel writes each
    thread once: what is written twice is believed neither time.

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
