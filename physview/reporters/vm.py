# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of VMs, as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from physview.reporters import documents
from physview.text.quoting import printable

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
