# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of pages between two snapshots, as a document. docs/json.md describes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from physview.analysis.changes import CHANGES, Change, Diff
from physview.model import NO_ENTRY
from physview.reporters.documents import mapping

if TYPE_CHECKING:
    from physview.snapshot_file import SnapshotFile

ABOUT = ("host", "boot_id", "kernel", "time", "pid", "start_time_ticks", "comm")


def print_diff(
    before: SnapshotFile,
    after: SnapshotFile,
    found: Diff,
    runs: Iterable[Any] | None,
    only: frozenset[Change],
) -> None:
    """{"before", "after", "counts", "nr_mappings_new", "nr_mappings_gone", "mappings", "runs"}."""
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
        "runs": None if runs is None else [],
    }
    if runs is None:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stdout.write(json.dumps(document).removesuffix("]}"))
    separator = "\n"
    for changes in runs:
        for vaddr, nr_pages, kind, was, is_now, *_ in changes.tolist():
            if CHANGES[kind] in only:
                run = {
                    "vaddr": hex(vaddr),
                    "nr_pages": nr_pages,
                    "change": CHANGES[kind].value,
                    "before": None if was == NO_ENTRY else was,
                    "after": None if is_now == NO_ENTRY else is_now,
                }
                sys.stdout.write(separator + json.dumps(run))
                separator = ",\n"
    sys.stdout.write("\n]}\n")


def _counts(counts: dict[Change, int]) -> dict[str, int]:
    return {change.value: nr for change, nr in counts.items()}
