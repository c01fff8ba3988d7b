# SPDX-License-Identifier: GPL-2.0-or-later
"""The event source for functions that refuse kprobes: hardware breakpoints of the processor.

The part of copy_to_user() that is not inlined is in lib/, and the functions of put_user() are
written in assembler. Neither is built for ftrace. Since Linux 4.20 the kernel refuses kprobe events
on such functions ("Could not probe notrace function"; within_notrace_func() in
kernel/trace/trace_kprobe.c). perf_event_open() still sets breakpoints on them. A processor has four
breakpoints. The kernel removes a breakpoint when its descriptor is closed.

Source: perf_event_open(2), include/uapi/linux/perf_event.h, arch/x86/kernel/hw_breakpoint.c,
    arch/arm64/kernel/hw_breakpoint.c
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from physview.errors import PhysviewError, ProcessGone, Unsupported
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.events import Losses, RawEvent, Value
from physview.tracing.followed_threads import RECORD_COMM, FollowedThreads, Record, Sorter
from physview.tracing.processors import PROCESSORS, with_caller

MAX_BREAKPOINTS = 4


TYPE_BREAKPOINT, BP_X = 5, 4
SAMPLE_IP, SAMPLE_TID, SAMPLE_TIME, SAMPLE_CALLCHAIN = 1, 2, 4, 0x20
SAMPLE_CPU, SAMPLE_REGS_INTR = 0x80, 0x40000
DISABLED, INHERIT, EXCLUDE_USER, COMM = 1 << 0, 1 << 1, 1 << 4, 1 << 9
ENABLE_ON_EXEC, TASK, WATERMARK, SAMPLE_ID_ALL = 1 << 12, 1 << 13, 1 << 14, 1 << 18
EXCLUDE_CALLCHAIN_USER, COMM_EXEC, USE_CLOCKID = 1 << 22, 1 << 24, 1 << 25
FLAG_FD_CLOEXEC = 8
CLOCK_MONOTONIC = 1
IOC_ENABLE, IOC_DISABLE, IOC_SET_OUTPUT = 0x2400, 0x2401, 0x2405

RECORD_LOST, RECORD_THROTTLE, RECORD_SAMPLE = 2, 5, 9
# Larger entries of a call chain are markers: they tell the context of the entries that follow.
CONTEXT_MAX = (1 << 64) - 4095

_ATTR = struct.Struct("<IIQQQQQIIQQQQIiQIHH")
_HEADER = struct.Struct("<IHH")
_SAMPLE = struct.Struct("<QIIQII")
# What the other records end with: pid, tid, time, processor, nothing.
_TRAILER = struct.Struct("<IIQII")
_HEAD, _TAIL = 1024, 1032
PAGE = mmap.PAGESIZE
DEFAULT_BUFFER_KIB = 512
LOOK_SECONDS = 0.05
"""How often samples are looked for where the kernel may not say that there are some."""


class Breakpoint(NamedTuple):
    """A breakpoint at the beginning of a function, and the registers to record there.

    Args:
        name: The function's name.
        address: The function's address.
        registers: For each field's name, the register that holds the field's value.
        addresses: The names of the fields that are addresses.
        in_hex: The names of these, and of other fields that read best in hexadecimal.
    """

    name: str
    address: int
    registers: Mapping[str, str]
    addresses: frozenset[str]
    in_hex: frozenset[str]


class _SampleBuffer:
    """The ring buffer into which the kernel writes the samples of one thread or one processor."""

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, PAGE + size)
        self._size = size

    def read(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the kind, the flags and the content of each new record."""
        head, tail = struct.unpack_from("<QQ", self._map, _HEAD)
        while tail < head:
            kind, misc, size = _HEADER.unpack(self._bytes(tail, _HEADER.size))
            yield kind, misc, self._bytes(tail + _HEADER.size, size - _HEADER.size)
            tail += size
        struct.pack_into("<Q", self._map, _TAIL, tail)

    def _bytes(self, start: int, size: int) -> bytes:
        at = start % self._size
        first = self._map[PAGE + at : PAGE + min(at + size, self._size)]
        return first + self._map[PAGE : PAGE + size - len(first)]

    def close(self) -> None:
        self._map.close()


class BreakpointSource:
    """An event source: breakpoints in the kernel.

    Args:
        breakpoints: The breakpoints, four at most.
        tids: The threads to trace. None traces all processes except this one.
        follow: Whether to trace the threads and processes that these threads start, too.
        from_exec: Whether to start tracing only when a thread calls exec().
        stacks: Whether to record stacks.
        buffer_kib: The size in KiB of the buffer of each thread or processor.

    Raises:
        PhysviewError: The kernel refused a breakpoint or a buffer.
    """

    def __init__(
        self,
        breakpoints: Sequence[Breakpoint],
        tids: Sequence[int] | None,
        *,
        follow: bool,
        from_exec: bool,
        stacks: bool,
        buffer_kib: int | None,
    ) -> None:
        self._breakpoints = {point.address: point for point in breakpoints}
        if os.uname().machine not in PROCESSORS:
            known = " and ".join(PROCESSORS)
            why = (
                f"the kernel refuses a kprobe there, and physview sets breakpoints on {known} only"
            )
            raise Unsupported(f"cannot trace {self._names}", why)
        self._processor = PROCESSORS[os.uname().machine]
        wanted = {name for point in breakpoints for name in point.registers.values()}
        if stacks and self._processor.link:
            wanted.add(self._processor.link)
        self._registers = sorted(wanted, key=lambda name: self._processor.registers[name])
        self._stacks = stacks
        self._fds: list[int] = []
        self._buffers: list[_SampleBuffer] = []
        self._comms: dict[int, str] = {}
        self._overrun = self._throttled = 0
        self._ignored = os.getpid() if tids is None else None
        self._threads: FollowedThreads | None = None
        self._sorter = Sorter()
        flags = DISABLED | EXCLUDE_USER | EXCLUDE_CALLCHAIN_USER | USE_CLOCKID
        flags |= 0 if self._processor.wakes else WATERMARK
        if tids is not None and not self._processor.per_thread:
            self._threads = FollowedThreads(tids, follow=follow, from_exec=from_exec)
            tids = None
        elif tids is not None:
            flags |= (ENABLE_ON_EXEC if from_exec else 0) | (INHERIT if follow else 0)
        self._is_enabled_by_kernel = bool(flags & ENABLE_ON_EXEC)
        # perf_mmap() refuses the buffer of an inherited event that is not bound to a processor.
        cpus = _online_cpus() if follow or tids is None else [-1]
        size = PAGE
        while size < (buffer_kib or DEFAULT_BUFFER_KIB) * 1024:
            size *= 2
        # At how many samples, or bytes, the kernel says that there is something to read.
        self._wakeup = 1 if self._processor.wakes else size // 2
        self._poll = select.poll()
        try:
            for tid in tids if tids is not None else [-1]:
                for cpu in cpus:
                    self._open_all(tid, cpu, flags, size)
        except BaseException:
            self.close()
            raise
        if not self._buffers:
            why = "it ended before tracing started"
            raise ProcessGone("the process is gone", why, "trace a running process")

    @property
    def _names(self) -> str:
        return ", ".join(point.name for point in self._breakpoints.values())

    def _open_all(self, tid: int, cpu: int, flags: int, size: int) -> None:
        """Set all breakpoints for a thread or a processor. The breakpoints share one buffer."""
        first = -1
        of_threads = COMM if self._threads is None else COMM | COMM_EXEC | TASK
        flags |= 0 if self._threads is None else SAMPLE_ID_ALL
        for address in self._breakpoints:
            fd = self._open(address, tid, cpu, flags | (of_threads if first < 0 else 0))
            if fd < 0:
                return
            self._fds.append(fd)
            if first < 0:
                first = fd
                try:
                    self._buffers.append(_SampleBuffer(fd, size))
                except OSError as error:
                    raise tracefs.refused("cannot map a trace buffer", error, "mmap") from None
                self._poll.register(fd, select.POLLIN)
            else:
                _ioctl(fd, IOC_SET_OUTPUT, first)

    def _open(self, address: int, tid: int, cpu: int, flags: int) -> int:
        sample = SAMPLE_IP | SAMPLE_TID | SAMPLE_TIME | SAMPLE_CPU | SAMPLE_REGS_INTR
        sample |= SAMPLE_CALLCHAIN if self._stacks else 0
        mask = sum(1 << self._processor.registers[name] for name in self._registers)
        attr = _ATTR.pack(
            *(
                TYPE_BREAKPOINT,
                _ATTR.size,
                0,
                1,
                sample,
                0,
                flags,
                self._wakeup,
                BP_X,
                address,
                self._processor.length,
            ),
            *(0, 0, 0, CLOCK_MONOTONIC, mask, 0, 0, 0),
        )
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(self._processor.perf_event_open, attr, tid, cpu, -1, FLAG_FD_CLOEXEC)
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code == errno.ESRCH:  # this thread has ended
            return -1
        raise self._refused(code)

    def _refused(self, code: int) -> PhysviewError:
        what = f"cannot trace {self._names}"
        if code == errno.EINVAL:
            why = "this kernel allows no breakpoints in kernel code, or none in this function"
            return Unsupported(what, why, tracefs.trace_in_vm())
        if code == errno.ENOSPC:
            why = "a debugger or another tracer uses the processor's four breakpoints"
            return PhysviewError(what, why, "end the debugger or the other tracer first")
        if code in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS):
            why = "this kernel or processor has no breakpoints for perf"
            return Unsupported(what, why, tracefs.trace_in_vm())
        if code == errno.EMFILE:
            return PhysviewError(what, "this process has too many open files", "raise ulimit -n")
        error = OSError(code, os.strerror(code))
        return tracefs.refused(what, error, "perf_event_open")

    def start(self) -> None:
        """Start tracing. With `from_exec`, the kernel starts tracing at the exec()."""
        if not self._is_enabled_by_kernel:
            for fd in self._fds:
                _ioctl(fd, IOC_ENABLE, 0)

    def stop(self) -> None:
        """Stop tracing. Recorded events can still be read."""
        for fd in self._fds:
            _ioctl(fd, IOC_DISABLE, 0)

    def read(self, timeout: float) -> list[RawEvent]:
        """Return the events since the last read, in the order of time.

        Args:
            timeout: The longest wait for an event, in seconds.
        """
        if not self._processor.wakes:
            timeout = min(timeout, LOOK_SECONDS)
        self._poll.poll(timeout * 1000)
        return self._in_order(self._records(), to_the_end=False)

    def _records(self) -> Iterator[Record]:
        """Yield the samples and what the kernel tells of threads; count what it lost."""
        for buffer in self._buffers:
            for kind, misc, content in buffer.read():
                if kind == RECORD_SAMPLE:
                    yield Record(_SAMPLE.unpack_from(content)[3], kind, misc, content)
                elif kind == RECORD_LOST:
                    self._overrun += struct.unpack_from("<QQ", content)[1]
                elif kind == RECORD_THROTTLE:
                    self._throttled += 1
                else:
                    if kind == RECORD_COMM:
                        tid = struct.unpack_from("<II", content)[1]
                        self._comms[tid] = os.fsdecode(content[8:].split(b"\0")[0])
                    if self._threads is not None:
                        yield Record(
                            _TRAILER.unpack(content[-_TRAILER.size :])[2], kind, misc, content
                        )

    def _in_order(self, records: Iterable[Record], *, to_the_end: bool) -> list[RawEvent]:
        """Return the events of the samples whose turn it is, in the order of time."""
        if self._threads is None:
            found = map(self._event, sorted(records))
        else:
            found = map(self._event_of_threads, self._sorter.sort(records, to_the_end=to_the_end))
        return [event for event in found if event is not None]

    def _event_of_threads(self, record: Record) -> RawEvent | None:
        """Return the event of a sample if it is one of the followed threads'."""
        assert self._threads is not None
        if record.kind != RECORD_SAMPLE:
            self._threads.see(record)
            return None
        event = self._event(record)
        return event if event is not None and event.tid in self._threads else None

    def _event(self, record: Record) -> RawEvent | None:
        content = record.content
        address, pid, tid, time_ns, cpu, _ = _SAMPLE.unpack_from(content)
        point = self._breakpoints.get(address)
        if point is None or pid == self._ignored:
            return None
        at = _SAMPLE.size
        stack: tuple[int, ...] = ()
        if self._stacks:
            (nr,) = struct.unpack_from("<Q", content, at)
            chain = struct.unpack_from(f"<{nr}Q", content, at + 8)
            stack = tuple(one for one in chain if one < CONTEXT_MAX)
            at += 8 + 8 * nr
        has_registers = bool(struct.unpack_from("<Q", content, at)[0])
        nr_registers = len(self._registers) if has_registers else 0
        values = struct.unpack_from(f"<{nr_registers}Q", content, at + 8)
        by_name = dict(zip(self._registers, values, strict=False))
        fields: dict[str, Value] = {
            field: by_name[name] for field, name in point.registers.items() if name in by_name
        }
        stack = with_caller(stack, by_name.get(self._processor.link, 0))
        comm, kinds = self._comms.get(tid), (point.addresses, point.in_hex)
        return RawEvent(time_ns, cpu, tid, comm, point.name, fields, *kinds, stack)

    def flush(self) -> list[RawEvent]:
        """Return the events that `read()` has held back. It returns every sample complete."""
        return self._in_order((), to_the_end=True)

    def comms(self) -> dict[int, str]:
        """Return the names of threads by their tids, as the kernel recorded them."""
        return dict(self._comms)

    def losses(self) -> Losses:
        """Return the counts of lost events that `read()` has seen so far."""
        return Losses(self._overrun, self._throttled)

    def close(self) -> None:
        """Remove the breakpoints and buffers. Closing twice is harmless."""
        for buffer in self._buffers:
            buffer.close()
        for fd in self._fds:
            os.close(fd)
        self._buffers, self._fds = [], []


def _online_cpus() -> list[int]:
    """Return the online processors. Source: /sys/devices/system/cpu/online, such as "0-3,6"."""
    with open("/sys/devices/system/cpu/online", "rb") as file:
        ranges = [word.partition(b"-") for word in proctext.value(file.read()).split(b",")]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def _ioctl(fd: int, request: int, argument: int) -> None:
    import fcntl

    with contextlib.suppress(ProcessLookupError):  # the breakpoint's thread has ended
        fcntl.ioctl(fd, request, argument)
