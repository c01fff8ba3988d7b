# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of text, the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from physview.model import Gap, Level, PageKind, Probe, Translation, Walk, size_words

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
    PageKind.BEYOND: "no user address",
    PageKind.BAD: "an entry that makes no sense",
}


def memview_report(labelled: Iterable[tuple[str, Translation]]) -> str:
    """memview2's report, to the letter."""
    lines = [f"{label}:  {mapping(translation)}" for label, translation in labelled]
    return "\n".join(["Memory map report (virtual -> physical)", *lines, ""])


def virtual_report(probes: Iterable[Probe]) -> str:
    """memview's report: the same without physical addresses."""
    lines = [f"{probe.label}:  {probe.vaddr:#018x}" for probe in probes]
    return "\n".join(["Memory map report (virtual)", *lines, ""])


def mapping(translation: Translation) -> str:
    """One address and where it is.

    >>> mapping(Translation(0x1000, 0x9000, None))
    '0x0000000000001000 -> 0x0000000000009000'
    """
    paddr = "UNKNOWN" if translation.paddr is None else f"{translation.paddr:#018x}"
    return f"{translation.vaddr:#018x} -> {paddr}"


def translation_line(translation: Translation) -> str:
    """One address, where it is, what lies there, and why it is nowhere."""
    parts = [f"{mapping(translation):<40}", str(translation.vma or ""), translation.explanation]
    return "  ".join(filter(None, parts)).rstrip()


def gap_line(gap: Gap) -> str:
    """Pages in a row that are nowhere, all for one cause."""
    pages = "1 page" if gap.nr_pages == 1 else f"{gap.nr_pages} pages"
    parts = [
        f"{gap.start:#018x}-{gap.end:#018x} -> UNKNOWN",
        str(gap.vma or ""),
        f"{gap.cause.text} ({pages})",
    ]
    return "  ".join(filter(None, parts))


def walk_tree(walk: Walk, bit_names: BitNames) -> str:
    """The levels of a walk from the root down, each below the one that leads to it."""
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
        lines.append(f"folded: {', '.join(folded)}, which this hardware has not")
    if any(level.entry is None for level in walk.levels):
        lines.append("hidden: where page tables lie, and their entries; run as root")
    what = KIND_WORDS[walk.kind]
    if walk.paddr is not None:
        size = size_words(walk.page_size_bytes)
        lines.append(f"{walk.vaddr:#018x} -> {walk.paddr:#018x}  {what}, {size}")
    else:
        swap = f" (type {walk.swap[0]}, offset {walk.swap[1]:#x})" if walk.swap else ""
        lines.append(f"{walk.vaddr:#018x} -> UNKNOWN  {what}{swap}")
    return "\n".join([*lines, ""])
