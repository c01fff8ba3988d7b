# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads what the generator of fleets needs of this machine: its programs, zones and counters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NR_PROGRAMS = 16
SIZES = ("resident", "file", "huge", "anon_huge")


def read_sample() -> dict[str, Any]:
    """Read this machine once.

    Returns:
        "programs": the largest, each with sizes in bytes; "zones": their managed bytes and free
        blocks by order; "total": the machine's memory in bytes.
    """
    command = [sys.executable, "-I", "-m", "physview", "maps", "--rollup", "--all", "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    programs: dict[str, dict[str, Any]] = {}
    for process in json.loads(run.stdout)["processes"]:
        name = process["name"]
        if not name.isascii() or not name.replace("-", "").isalpha():
            continue
        kept = programs.setdefault(name, {"name": name, **dict.fromkeys(SIZES, 0)})
        for size in SIZES:
            kept[size] += process["total"][f"{size}_bytes"] or 0
    largest = sorted(programs.values(), key=lambda each: -each["resident"])
    meminfo = Path("/proc/meminfo").read_bytes().split(b"\n")
    return {
        "programs": largest[:NR_PROGRAMS],
        "zones": _zones(),
        "total": int(meminfo[0].split(b" ")[-2]) << 10,
    }


def _zones() -> list[dict[str, Any]]:
    """The zones of the first node, with the free blocks that /proc/buddyinfo counts."""
    managed = {}
    for line in Path("/proc/zoneinfo").read_text().split("\n"):
        if line.startswith("Node 0, zone"):
            zone = line.rpartition(" ")[2]
        elif line.strip(" ").startswith("managed "):
            managed.setdefault(zone, int(line.rpartition(" ")[2]) << 12)
    zones = []
    for line in Path("/proc/buddyinfo").read_text().split("\n"):
        words = [word for word in line.split(" ") if word]
        if words[:2] == ["Node", "0,"]:
            zone = words[3]
            free = [int(word) for word in words[4:]]
            zones.append({"zone": zone, "managed": managed[zone], "free_blocks": free})
    return zones
