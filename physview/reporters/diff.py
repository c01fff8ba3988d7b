# SPDX-License-Identifier: GPL-2.0-or-later
"""The changes between two snapshots, as a table and as a JSON document (docs/json.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from physview.analysis.changes import CHANGES, Change, Diff
from physview.entry_rules import swap_offset
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE, Vma, printable
from physview.reporters import documents
from physview.reporters.documents import mapping
from physview.units import cut, pfn_text, short_size, terminal_width

if TYPE_CHECKING:
    from physview.parquet.snapshot_file import SnapshotFile


WERE_SWAPPED = (Change.SWAPPED_IN, Change.STILL_SWAPPED, Change.RESWAPPED)
ARE_SWAPPED = (Change.SWAPPED_OUT, Change.STILL_SWAPPED, Change.RESWAPPED)


def print_table(
    before: SnapshotFile,
    after: SnapshotFile,
    found: Diff,
    runs: Iterable[Any] | None,
    only: frozenset[Change],
) -> None:
    """Print the number of pages by change, then the changes of each mapping or of each extent.

    Args:
        before: The earlier snapshot.
        after: The later one.
        found: Their difference.
        runs: Arrays of `changes.CHANGE_DTYPE` to list extent by extent; None lists mappings.
        only: The changes to list extent by extent.
    """
    times = [file.time.astimezone() for file in (before, after)]
    seconds = (times[1] - times[0]).total_seconds()
    clock = " -> ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in times)
    sys.stdout.write(
        f"{printable(after.about['comm'])} ({after.about['pid']}), {seconds:.1f} s later: {clock}\n"
    )
    sys.stdout.write(f"\n{'pages':>10} {'size':>5}  change\n")
    for change, nr in sorted(found.counts.items(), key=lambda item: -item[1]):
        text = change.text
        if change is Change.STAYED and not before.clears_soft_dirty:
            text += "; whether it was written is not known: see --track-writes"
        _line(f"{nr:>10} {short_size(nr * PAGE_SIZE):>5}  {change.value:<14} {text}")
    for nr, what in ((found.nr_vmas_new, "new"), (found.nr_vmas_gone, "gone")):
        if nr:
            sys.stdout.write(
                f"{nr:>10} {'':>5}  {'mapping is' if nr == 1 else 'mappings are'} {what}\n"
            )
    if runs is not None:
        _print_runs(before.vmas, after.vmas, runs, only)
    elif found.by_vma:
        sys.stdout.write("\nchanges of each mapping\n")
        for vma, is_gone, counts in found.by_vma:
            order = sorted(counts.items(), key=lambda item: (item[0].same, -item[1]))
            words = ", ".join(f"{nr} {change.value}" for change, nr in order)
            _line(f"{vma.start:#014x} {vma}{' (gone)' if is_gone else ''}: {words}")


def _line(text: str) -> None:
    sys.stdout.write(cut(text, terminal_width()) + "\n")


def _print_runs(
    before: list[Vma], after: list[Vma], runs: Iterable[Any], only: frozenset[Change]
) -> None:
    sys.stdout.write(f"\n  {'vaddr':<14} {'pages':>8} {'before':>13}    {'after':<13} change\n")
    shown = None
    for changes in runs:
        for vaddr, nr_pages, kind, was, is_now, vma_before, vma_after, _ in changes.tolist():
            change = CHANGES[kind]
            if change not in only:
                continue
            vma = after[vma_after] if vma_after >= 0 else before[vma_before]
            if vma is not shown:
                shown = vma
                sys.stdout.write(f"{vma.start:#014x}-{vma.end:#014x} {vma}\n")
            places = _place(was, change in WERE_SWAPPED), _place(is_now, change in ARE_SWAPPED)
            _line(
                f"  {vaddr:#014x} {nr_pages:>8} {places[0]:>13} -> {places[1]:<13} {change.value}"
            )


def _place(value: int, is_slot: bool) -> str:
    if value == NO_ENTRY:
        return "-"
    return f"swap {swap_offset(value):#x}" if is_slot else pfn_text(value)


def _paddr(value: int, is_slot: bool) -> str | None:
    return None if value == NO_ENTRY or is_slot else hex(value << PAGE_SHIFT)


ABOUT = ("host", "boot_id", "kernel", "time", "pid", "start_time_ticks", "comm")


def print_document(
    before: SnapshotFile,
    after: SnapshotFile,
    found: Diff,
    runs: Iterable[Any] | None,
    only: frozenset[Change],
) -> None:
    """Print the JSON document of diff. The arguments are those of `print_table()`.

    Its members are "before", "after", "counts", "nr_mappings_new", "nr_mappings_gone", "mappings"
    and "runs", which is null if `runs` is None.
    """
    document = {
        "before": {name: before.about[name] for name in ABOUT},
        "after": {name: after.about[name] for name in ABOUT},
        "counts": _counts(found.counts),
        "nr_mappings_new": found.nr_vmas_new,
        "nr_mappings_gone": found.nr_vmas_gone,
        "mappings": [
            {"mapping": mapping(vma), "is_gone": is_gone, "counts": _counts(counts)}
            for vma, is_gone, counts in found.by_vma
        ],
    }
    if runs is None:
        documents.write_line({**document, "runs": None})
        return
    with documents.stream(document, "runs") as add:
        for changes in runs:
            for vaddr, nr_pages, kind, was, is_now, *_ in changes.tolist():
                if CHANGES[kind] in only:
                    add(
                        {
                            "vaddr": hex(vaddr),
                            "nr_pages": nr_pages,
                            "change": CHANGES[kind].value,
                            "before": None if was == NO_ENTRY else was,
                            "after": None if is_now == NO_ENTRY else is_now,
                            "before_paddr": _paddr(was, CHANGES[kind] in WERE_SWAPPED),
                            "after_paddr": _paddr(is_now, CHANGES[kind] in ARE_SWAPPED),
                        }
                    )


def _counts(counts: dict[Change, int]) -> dict[str, int]:
    return {change.value: nr for change, nr in counts.items()}
