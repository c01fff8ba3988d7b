# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace of kernel events, as lines of text and as a JSON document (docs/json.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from physview.analysis import trace as analysis
from physview.analysis.trace import CallPath, KernelMap, Trace
from physview.frames.owners import FrameGroup, Ownership
from physview.model import PAGE_SHIFT, Vma, printable
from physview.reporters.documents import mapping
from physview.tracing import Event, StackFrame
from physview.units import pages_size

SIZE_WORDS = {"bytes_req": "requested", "bytes_alloc": "allocated", "n": "copied"}
# The field with the caller's address. It is not shown if the event has a stack, which names the
# caller.
CALL_SITE = "call_site"


def wrapped(line: str, width: int | None) -> list[str]:
    """Break a line between its fields if it is longer than `width`; None means no limit.

    >>> wrapped("1.5  [0] 7 sh  kmalloc  ptr=0x1000 node=-1", 30)
    ['1.5  [0] 7 sh  kmalloc', '    ptr=0x1000 node=-1']
    """
    if width is None or len(line) <= width:
        return [line]
    import textwrap

    return textwrap.wrap(
        line,
        width,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def iter_event_lines(trace: Trace, ownership: Ownership | None, kernel: KernelMap) -> Iterator[str]:
    """Yield lines for each event: the event, what its frames are now, and its stack."""
    for event in trace.events:
        yield f"{_when(event)}  {event.name}  {_fields(event)}".rstrip()
        frames = analysis.frames_of(event)
        if frames and ownership:
            yield f"    now {now_words(analysis.groups_of(frames, ownership))}"
        yield from _stack_lines(event.stack)


def _when(event: Event) -> str:
    seconds, rest = divmod(event.time_ns, 10**9)
    name = printable(event.comm) or "?"
    return f"{seconds}.{rest // 1000:06}  [{event.cpu}] {event.tid} {name}"


def _fields(event: Event) -> str:
    with_stack = bool(event.stack)
    return " ".join(
        f"{name}={field_text(event, name)}"
        for name in event.fields
        if name != CALL_SITE or not with_stack
    )


def field_text(event: Event, name: str) -> str:
    """Format a field's value: addresses in hexadecimal, text in one line, an array in brackets."""
    value = event.fields[name]
    if isinstance(value, str):
        return printable(value)
    one = hex if name in event.in_hex else str
    return f"[{','.join(map(one, value))}]" if isinstance(value, tuple) else one(value)


def _stack_lines(stack: tuple[StackFrame, ...]) -> Iterator[str]:
    for frame in stack:
        yield f"        {frame}"


def now_words(groups: list[FrameGroup]) -> str:
    """Describe in a few words what frames are used for now."""
    if len(groups) > 3:
        return f"{len(groups)} different uses: {', '.join(_use(g) for g in groups[:2])}, …"
    return ", ".join(_use(group) for group in groups)


def _use(group: FrameGroup) -> str:
    use = group.use.value.replace("_", " ")
    nr = f" ({group.nr_frames} frames)" if group.nr_frames > 1 else ""
    if not group.owners:
        return f"{use}{nr}"
    owner = group.owners[0]
    others = {other.pid for other in group.owners} - {owner.pid}
    more = f" and {len(others)} more" if others else ""
    return f"{use}{nr}: {owner.pid} {printable(owner.comm)} {owner.vaddr:#x}{more}"


def iter_path_lines(trace: Trace) -> Iterator[str]:
    """Yield lines for each different stack, with the number of its events, most frequent first."""
    for path in analysis.fold(trace.events):
        yield f"{path.nr_events:6}  {path.name}  {_path_words(path)}".rstrip()
        yield from _stack_lines(path.stack)


def _path_words(path: CallPath) -> str:
    words = [f"{size_bytes} bytes {SIZE_WORDS[name]}" for name, size_bytes in path.sizes.items()]
    if path.nr_frames:
        words.append(_frames(path.nr_frames))
    comms = [printable(comm) or "?" for comm in path.comms[:3]]
    words.append(", ".join(comms) + (", …" if len(path.comms) > 3 else ""))
    return "; ".join(words)


def _frames(nr: int) -> str:
    return "1 frame" if nr == 1 else f"{nr} frames"


def iter_ending_lines(
    trace: Trace, ownership: Ownership | None, kernel: KernelMap
) -> Iterator[str]:
    """Yield the lines below all events.

    They say how many events there are, where the addresses in their fields lie, and what their
    frames are used for now.
    """
    nr = len(trace.events)
    head = f"{nr} {'event' if nr == 1 else 'events'} of {' '.join(trace.probes)} ({trace.means})"
    if trace.through:
        others = "1 other event" if trace.nr_others == 1 else f"{trace.nr_others} other events"
        head += f" through {printable(trace.through)}, and {others}"
    yield head
    words = [f"{total} bytes {SIZE_WORDS[n]}" for n, total in _sizes(trace).items()]
    nr_frames = sum(map(analysis.nr_frames, trace.events))
    if nr_frames:
        words.append(f"{_frames(nr_frames)}, {pages_size(nr_frames)}")
    if words:
        yield f"  {', '.join(words)}"
    if ownership:
        uses = analysis.uses_now(trace.events, ownership, kernel)
        listed = ", ".join(f"{nr} {use.replace('_', ' ')}" for use, nr in uses)
        yield f"  now, counting each frame once: {listed}"
    yield from _address_lines(trace, kernel)


def _sizes(trace: Trace) -> dict[str, int]:
    return analysis.sum_sizes(trace.events)


def _address_lines(trace: Trace, kernel: KernelMap) -> Iterator[str]:
    ranges = analysis.address_ranges(trace.events, kernel)
    if not ranges:
        return
    yield "addresses"
    for found in ranges:
        where = f"{found.lowest:#018x}-{found.highest:#018x}"
        yield f"  {found.name:<9} {where} {found.area}, {found.nr} different"
    if any(found.area == "direct map" for found in ranges):
        start, _, paddr = kernel.direct[0]
        yield f"  direct map: virtual address = physical address + {start - paddr:#018x}"
    for name, vma_range in _user_ranges(trace.memory):
        yield f"  {name:<9} {vma_range[0]:#018x}-{vma_range[1]:#018x} user, process {trace.pid}"


def _user_ranges(memory: list[Vma]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield (name, (start, end)) of the heap, of the stack and of the whole user memory."""
    for name in ("[heap]", "[stack]"):
        for vma in memory:
            if vma.path == name:
                yield name, (vma.start, vma.end)
    own = [vma for vma in memory if vma.end <= analysis.KERNEL_START]
    if own:
        yield "all", (own[0].start, own[-1].end)


def document(
    trace: Trace, ownership: Ownership | None, kernel: KernelMap, *, summary: bool
) -> dict[str, Any]:
    """Make the JSON document of trace (docs/json.md).

    Args:
        trace: The trace.
        ownership: What the frames are now; None if that is not known.
        kernel: The kernel's address space.
        summary: Whether to list stacks with their number of events, not single events.
    """
    uses = analysis.uses_now(trace.events, ownership, kernel) if ownership else None
    found: dict[str, Any] = {
        "event": trace.event,
        "probes": list(trace.probes),
        "means": trace.means,
        "pid": trace.pid,
        "seconds": round(trace.seconds, 3),
        "nr_events": len(trace.events),
        "through": trace.through,
        "nr_others": trace.nr_others,
        "nr_lost": trace.losses.overrun,
        "nr_throttled": trace.losses.throttled,
        "sizes": _sizes(trace),
        "nr_frames": sum(map(analysis.nr_frames, trace.events)),
        "uses_now": None if uses is None else [{"use": u, "nr_frames": nr} for u, nr in uses],
        "addresses": [
            {
                "field": one.name,
                "area": one.area,
                "lowest": hex(one.lowest),
                "highest": hex(one.highest),
                "nr": one.nr,
            }
            for one in analysis.address_ranges(trace.events, kernel)
        ],
        "direct_map": _direct_map(kernel),
        "mappings": [mapping(vma) for vma in trace.memory],
    }
    if summary:
        found["stacks"] = [_path_document(path) for path in analysis.fold(trace.events)]
    else:
        found["events"] = [_event_document(e, ownership, kernel) for e in trace.events]
    return found


def _direct_map(kernel: KernelMap) -> str | None:
    """Return the difference between an address in the direct map and its physical address."""
    return hex(kernel.direct[0][0] - kernel.direct[0][2]) if kernel.direct else None


def _path_document(path: CallPath) -> dict[str, Any]:
    return {
        "name": path.name,
        "nr_events": path.nr_events,
        "comms": path.comms,
        "sizes": path.sizes,
        "nr_frames": path.nr_frames,
        "stack": [_frame_document(frame) for frame in path.stack],
    }


def _event_document(event: Event, ownership: Ownership | None, kernel: KernelMap) -> dict[str, Any]:
    ptr = event.fields.get("ptr")
    paddr = kernel.paddr(ptr) if isinstance(ptr, int) else None
    frames = analysis.frames_of(event)
    groups = analysis.groups_of(frames, ownership) if ownership else []
    return {
        "time_ns": event.time_ns,
        "cpu": event.cpu,
        "tid": event.tid,
        "comm": event.comm,
        "name": event.name,
        "fields": {
            name: hex(value) if name in event.addresses and isinstance(value, int) else value
            for name, value in event.fields.items()
        },
        "paddr": hex(frames[0] << PAGE_SHIFT) if frames else paddr and hex(paddr),
        "now": [_now_document(group) for group in groups] if frames and ownership else None,
        "stack": [_frame_document(frame) for frame in event.stack],
    }


def _now_document(group: FrameGroup) -> dict[str, Any]:
    return {
        "pfn": group.pfn,
        "paddr": hex(group.pfn << PAGE_SHIFT),
        "nr_frames": group.nr_frames,
        "use": group.use.value,
        "owners": [
            {"pid": owner.pid, "comm": owner.comm, "vaddr": hex(owner.vaddr)}
            for owner in group.owners
        ],
    }


def _frame_document(frame: StackFrame) -> dict[str, Any]:
    return {
        "address": hex(frame.address),
        "symbol": frame.symbol or None,
        "offset": frame.offset if frame.symbol else None,
        "module": frame.module or None,
    }
