# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of VMs, and what was removed from their cache, as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from physview.reporters import documents
from physview.text.quoting import printable
from physview.units import column_size

_COLUMNS = ("NAME", "LINUX", "MACHINE", "BY", "CPUS", "MEMORY", "RUNS FOR", "COMMANDS")


def write_json(vms: Sequence[dict[str, Any]]) -> None:
    """Write one document with what the keeper of each VM says."""
    documents.write({"vms": list(vms)})


def write_table(vms: Sequence[dict[str, Any]]) -> None:
    """Write a line for each VM."""
    if not vms:
        print("no VM runs")
        return
    rows = [_COLUMNS, *map(_row, vms)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    if vm["release"] is None:
        return (vm["name"], "it boots, or does not answer", *[""] * (len(_COLUMNS) - 2))
    # The keeper may be of another version of physview, which tells other things.
    started = vm.get("started", time.time())
    return (
        vm["name"],
        printable(vm["release"]),
        printable(str(vm.get("machine", "?"))),
        printable(str(vm.get("accelerator", "?")).upper()),
        printable(str(vm.get("cpus", "?"))),
        f"{printable(str(vm.get('memory_mib', '?')))} MiB",
        f"{max(0, int(time.time() - started)) // 60} min",
        ", ".join(map(printable, vm["commands"])) or "none",
    )


class Cleaned(NamedTuple):
    """What was removed from the cache.

    Args:
        folder: The cache.
        removed: What was removed, or would be: `unused.Unused` as dictionaries.
        size_bytes: What the cache takes now, in bytes.
        is_dry_run: Whether nothing was removed.
    """

    folder: str
    removed: Sequence[dict[str, Any]]
    size_bytes: int
    is_dry_run: bool


def write_cleaned_json(cleaned: Cleaned) -> None:
    """Write one document."""
    documents.write(
        {
            "folder": cleaned.folder,
            "is_dry_run": cleaned.is_dry_run,
            "removed": list(cleaned.removed),
            "size_bytes": cleaned.size_bytes,
        }
    )


def write_cleaned(cleaned: Cleaned) -> None:
    """Write a line for each file or folder that was removed, and the sum."""
    for each in cleaned.removed:
        size = column_size(each["size_bytes"]).rjust(9)
        print(f"{size}  {printable(each['path'])}: {each['why']}")
    freed = sum(each["size_bytes"] for each in cleaned.removed)
    rest, folder = cleaned.size_bytes, printable(cleaned.folder)
    if cleaned.is_dry_run:
        rest -= freed
    did = "would be" if cleaned.is_dry_run else "was"
    what = column_size(freed) if cleaned.removed else "nothing"
    print(f"{what} {did} removed; {column_size(rest)} stay in {folder}")
