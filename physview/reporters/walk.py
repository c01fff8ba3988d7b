# SPDX-License-Identifier: GPL-2.0-or-later
"""A walk of the page tables, as a tree and as a JSON document (docs/json.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from physview.model import Level, PageKind, Walk, printable
from physview.runtime.privileges import root_remedy
from physview.units import size_words

if TYPE_CHECKING:
    from physview.analysis.walked_addresses import WalkedAddress, WalkedAddresses
    from physview.sources.table_geometry import Geometry

BitNames = Callable[[Level], list[str]]

KIND_WORDS = {
    PageKind.NONE: "no entry: nothing is mapped there, or it was never touched",
    PageKind.PRESENT: "a page",
    PageKind.PROT_NONE: "a page that faults when touched: PROT_NONE, or a NUMA hint",
    PageKind.SWAP: "swapped out",
    PageKind.MIGRATION: "in migration to another frame",
    PageKind.HWPOISON: "its frame is broken (hardware poison)",
    PageKind.DEVICE: "in a device's own memory",
    PageKind.MARKER: "a marker: userfaultfd, guard or poison",
    PageKind.BEYOND: "not a user address",
    PageKind.BAD: "an invalid entry",
    PageKind.UNSTABLE: "unstable: the tables changed during each of several walks",
}


# What an entry says that has no page, and so no page's size.
NO_PAGES = (PageKind.NONE, PageKind.BEYOND, PageKind.BAD, PageKind.UNSTABLE)


def walk_tree(walk: Walk, nr_levels: int, bit_names: BitNames) -> str:
    """Draw the levels of a walk from the root down, each level below its parent.

    Args:
        walk: The walk.
        nr_levels: How many levels the kernel uses, also those that the walk did not reach.
        bit_names: Names the set bits of a level's entry.
    """
    lines = [f"{walk.vaddr:#018x}"]
    for depth, level in enumerate(level for level in walk.levels if not level.folded):
        branch = f"{'  ' * depth}└─ {level.name}"
        if level.address is None or level.entry is None:
            lines.append(f"{branch}  hidden")
            continue
        names = " ".join(bit_names(level))
        lines.append(f"{branch}  at {level.address:#014x}  {level.entry:#018x}  {names}".rstrip())
    folded = [level.name for level in walk.levels if level.folded]
    if folded:
        uses = f"this kernel uses {nr_levels} levels of page tables"
        lines.append(f"folded: {', '.join(folded)} ({uses})")
    if any(level.entry is None for level in walk.levels):
        remedy = root_remedy("SYS_ADMIN")
        lines.append(f"hidden: addresses and entries of the page tables; {remedy}")
    what = KIND_WORDS[walk.kind]
    if walk.paddr is not None:
        size = size_words(walk.page_size_bytes)
        lines.append(f"{walk.vaddr:#018x} -> {walk.paddr:#018x}  {what}, {size}")
    else:
        swap = f" (type {walk.swap[0]}, offset {walk.swap[1]:#x})" if walk.swap else ""
        lines.append(f"{walk.vaddr:#018x} -> UNKNOWN  {what}{swap}")
    return "\n".join([*lines, ""])


def document(source: str, pid: int, walked: Walk, bit_names: BitNames) -> dict[str, Any]:
    """Make the JSON document of a walk: the result, and every level from the root down."""
    return {
        "source": source,
        "pid": pid,
        "vaddr": hex(walked.vaddr),
        "paddr": None if walked.paddr is None else hex(walked.paddr),
        "kind": walked.kind.name.lower(),
        "page_size_bytes": None if walked.kind in NO_PAGES else walked.page_size_bytes,
        "swap": {"type": walked.swap[0], "offset": walked.swap[1]} if walked.swap else None,
        "levels": [
            {
                "name": level.name,
                "address": None if level.address is None else hex(level.address),
                "entry": None if level.entry is None else hex(level.entry),
                "span_bytes": level.span_bytes,
                "folded": level.folded,
                "leaf": level.leaf,
                "bits": bit_names(level),
            }
            for level in walked.levels
        ],
    }


def summary(walks: WalkedAddresses, path: str) -> str:
    """What the file of a picture of walks shows, in one line."""
    first = walks.first
    walk, nr_others = first.walk, len(walks.addresses) - 1
    if walk.paddr is None:
        where = f"UNKNOWN  {first.cause.text if first.cause else KIND_WORDS[walk.kind]}"
    else:
        where = f"{walk.paddr:#018x}  {KIND_WORDS[walk.kind]}, {size_words(walk.page_size_bytes)}"
    has_others = nr_others and path.lower().endswith(".html")  # a picture shows one walk
    others = f"; walks for {nr_others} other addresses" if has_others else ""
    return f"{walk.vaddr:#018x} -> {where}{others}"


def picture_document(walks: WalkedAddresses, path: str, size_bytes: int) -> dict[str, Any]:
    """Make the JSON document of walk --picture.

    Args:
        walks: What was walked.
        path: The picture's file.
        size_bytes: The file's size.
    """
    return {
        "file": path,
        "size_bytes": size_bytes,
        "source": walks.source,
        "pid": walks.pid,
        "name": walks.name,
        "geometry": _geometry(walks.geometry),
        "asked": walks.asked,
        "walks": [_walked(walks, each) for each in walks.addresses],
    }


def _geometry(geometry: Geometry) -> dict[str, Any]:
    return {
        "page_shift": geometry.page_shift,
        "user_end": hex(geometry.user_end),
        "levels": [
            {
                "name": level.name,
                "shift": level.shift,
                "index_bits": level.index_bits,
                "nr_user_entries": level.nr_user,
            }
            for level in geometry.levels
        ],
        "folded": list(geometry.folded),
    }


def _walked(walks: WalkedAddresses, walked: WalkedAddress) -> dict[str, Any]:
    from physview.analysis.entry_bits import bit_names
    from physview.sources.table_geometry import EntryUse

    return {
        "label": walked.label or None,
        "mapping": printable(walked.vma.path) if walked.vma else None,
        "cause": walked.cause.value if walked.cause else None,
        **document(walks.source, walks.pid, walked.walk, bit_names),
        "tables": [
            {
                "level": level.read.name,
                "address": None if level.table_paddr is None else hex(level.table_paddr),
                "index": level.taken,
                "uses": {use.name.lower(): level.table.uses.count(use) for use in EntryUse}
                if level.table
                else None,
            }
            for level in walked.levels
        ],
    }
