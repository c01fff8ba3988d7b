# SPDX-License-Identifier: GPL-2.0-or-later
"""Who maps frames, as lines of text and as a JSON document (docs/json.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from physview.frames.machine import MAPPED, Use
from physview.frames.owners import FrameGroup, FrameOwner, Ownership
from physview.model import PAGE_SHIFT, FrameRange, printable
from physview.reporters.documents import mapping
from physview.sources.page_flags import flag_names, well_known
from physview.sources.ram import RAM, Resource, resource_at
from physview.units import pfn_text

NO_CACHE = "of which cache (/proc/slabinfo lists all) no file of the kernel tells"
"""Said of a frame with slab. The cache is in the kernel's memory only: page->slab_cache."""


def iter_lines(
    frames: FrameRange, groups: Iterable[FrameGroup], resources: list[Resource], *, only_some: bool
) -> Iterator[str]:
    """Yield the lines of text about a range of frames.

    Args:
        frames: The range.
        groups: What was found about the frames of the range.
        resources: The machine's resources by physical address, as of /proc/iomem.
        only_some: Whether only some processes were examined.
    """
    said = set()
    for group in groups:
        yield f"{_where(frames, group)}  {_what(group)}".rstrip()
        for owner in group.owners:
            yield f"  {_owner(owner, group, frames.offset)}"
        why = _why_none(group, resources, only_some)
        if group.nr_owned == group.nr_frames or (not group.owners and why in said):
            continue
        if group.owners:
            nr = group.nr_frames - group.nr_owned
            why = f"{nr} of these {group.nr_frames} frames: {why}"
        said.add(why)
        yield f"  {why}"


def _where(frames: FrameRange, group: FrameGroup) -> str:
    paddr = (group.pfn << PAGE_SHIFT) + frames.offset
    if group.nr_frames == 1:
        return f"{paddr:#018x}  {pfn_text(group.pfn)}"
    end = group.pfn + group.nr_frames
    pfns = pfn_text(group.pfn, group.nr_frames)
    return f"{paddr:#018x}-{end << PAGE_SHIFT:#018x}  {pfns}"


def _what(group: FrameGroup) -> str:
    if group.use is Use.NO_FRAME:
        return "no frame"
    names = ",".join(flag_names(well_known(group.flags)))
    return f"{group.use.value.replace('_', ' ')}  {names}"


def _owner(owner: FrameOwner, group: FrameGroup, offset: int) -> str:
    parts = [
        f"{owner.pid} {printable(owner.comm)}",
        f"{owner.vaddr + offset:#018x}",
        str(owner.vma),
    ]
    if owner.nr_frames < group.nr_frames:
        parts.append(pfn_text(owner.pfn, owner.nr_frames))
    if owner.nr_pages != owner.nr_frames:
        parts.append(f"in {owner.nr_pages} contiguous pages")
    if owner.sharers:
        others = ", ".join(map(str, owner.sharers))
        parts.append(f"(and {others}, with the same address space)")
    return "  ".join(parts)


def _why_none(group: FrameGroup, resources: list[Resource], only_some: bool) -> str:
    if group.use is Use.NO_FRAME:
        resource = resource_at(resources, group.pfn << PAGE_SHIFT)
        if resource and resource.name.startswith(RAM):
            return "RAM that is offline: its block of memory is not in use"
        name = resource.name if resource else "nothing"
        return f"no RAM: {name}; pagemap does not show who maps memory of devices"
    if group.flags & MAPPED and group.use is not Use.SLAB:
        if only_some:
            return "mapped by other processes, but not by these"
        return "a process maps it, but none was found: it began, ended or moved meanwhile"
    if group.use is Use.SLAB:
        return f"no process maps it: {group.use.text}; {NO_CACHE}"
    return f"no process maps it: {group.use.text}"


def document(
    ranges: list[FrameRange], ownership: Ownership, resources: list[Resource]
) -> dict[str, Any]:
    """Make the JSON document of owners (docs/json.md)."""
    return {
        "source": ownership.source,
        "nr_processes": ownership.nr_processes,
        "nr_gone": ownership.nr_gone,
        "nr_denied": ownership.nr_denied,
        "frames": [
            _group_document(frames, group, resources)
            for frames in ranges
            for group in ownership.groups(frames.first, frames.end)
        ],
    }


def _group_document(
    frames: FrameRange, group: FrameGroup, resources: list[Resource]
) -> dict[str, Any]:
    has_frame = group.use is not Use.NO_FRAME
    resource = resource_at(resources, group.pfn << PAGE_SHIFT)
    return {
        "paddr": hex((group.pfn << PAGE_SHIFT) + frames.offset),
        "pfn": group.pfn,
        "nr_frames": group.nr_frames,
        "nr_owned": group.nr_owned,
        "use": group.use.value,
        "flags": flag_names(group.flags) if has_frame else None,
        "resource": resource.name if resource else None,
        "owners": [
            {
                "pid": owner.pid,
                "comm": owner.comm,
                "sharers": list(owner.sharers),
                "vaddr": hex(owner.vaddr + frames.offset),
                "pfn": owner.pfn,
                "paddr": hex(owner.pfn << PAGE_SHIFT),
                "nr_frames": owner.nr_frames,
                "nr_pages": owner.nr_pages,
                "mapping": mapping(owner.vma),
            }
            for owner in group.owners
        ],
    }
