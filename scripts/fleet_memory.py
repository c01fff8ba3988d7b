# SPDX-License-Identifier: GPL-2.0-or-later
"""The zones and the counters of a host of a generated fleet."""

from __future__ import annotations

from typing import Any

import numpy as np
from fleet_events import HOUR, Event, Shape

from physview.recording.schema import VMSTAT

PAGE = 4096
NR_ORDERS = 11
ORDER_2M = 9


def make_zones(
    shape: Shape, sample: dict[str, Any], random: Any, events: list[Event]
) -> tuple[list[str], dict[str, Any]]:
    """The zones' names, and their columns of shape (samples, zones) or (samples, zones, orders)."""
    zones = sample["zones"]
    per_hour = max(1, HOUR // shape.interval)
    held = np.arange(shape.nr) // per_hour * per_hour
    # The share of free memory in blocks of less than 2 MiB, for all zones but DMA.
    unusable = random.uniform(0.2, 0.4) + 0.02 * random.standard_normal(shape.nr)[held]
    for event in events:
        if event.kind == "kernel":
            unusable[event.first : event.last] += 0.45
        elif event.kind == "no-2m":
            unusable[event.first : event.last] = 1.0
    blocks = np.zeros((shape.nr, len(zones), NR_ORDERS), np.int64)
    weights = np.array([2.0 ** (-order / 3) for order in range(ORDER_2M)])
    weights /= weights.sum()
    sizes = 2 ** np.arange(NR_ORDERS)
    for at, zone in enumerate(zones):
        free = zone["managed"] / PAGE * random.uniform(0.1, 0.3)
        free = free * (1 + 0.05 * random.standard_normal(shape.nr)[held])
        blocks[:, at, :ORDER_2M] = (free * unusable)[:, None] * weights / sizes[:ORDER_2M]
        large = free * (1 - unusable.clip(0, 1))
        blocks[:, at, ORDER_2M:] = large[:, None] / 2 / sizes[ORDER_2M:]
    pages = blocks * sizes
    free_pages = pages.sum(2)
    below = np.concatenate([np.zeros_like(pages[..., :1]), pages.cumsum(2)[..., :-1]], 2)
    managed = np.broadcast_to([zone["managed"] for zone in zones], free_pages.shape)
    columns = {
        "present": managed,
        "managed": managed,
        "free": free_pages * PAGE,
        "free_blocks": blocks,
        "unusable": below / np.maximum(free_pages, 1)[..., None],
        "usable_2m": pages[..., ORDER_2M:].sum(2) * PAGE,
    }
    return [zone["zone"] for zone in zones], columns


def make_machine(
    shape: Shape, sample: dict[str, Any], random: Any, events: list[Event], boot: Any
) -> dict[str, Any]:
    """The columns of the machine. Counters begin at zero with each boot."""
    nr = shape.nr
    per_second = {"pgfault": 900.0, "pgmajfault": 0.2, "thp_fault_alloc": 3.0}
    per_second |= {"compact_stall": 0.01, "compact_success": 0.01, "compact_isolated": 2.0}
    counted = {
        name: random.poisson(per_second.get(name, 0.0) * shape.interval, nr) for name in VMSTAT
    }
    swapped = np.zeros(nr, np.int64)
    for event in events:
        part, length = slice(event.first, event.last), event.last - event.first
        if event.kind == "swap":
            counted["pswpout"][part] += random.poisson(400, length)
            counted["pswpin"][part] += random.poisson(150, length)
            swapped[part] = 600 << 20
        elif event.kind == "no-2m":
            for name in ("thp_fault_fallback", "compact_fail", "compact_stall"):
                counted[name][part] += random.poisson(30, length) + 1
            counted["thp_fault_alloc"][part] = 0
    counters = {}
    for name, values in counted.items():
        total = values.cumsum()
        starts = np.flatnonzero(np.diff(boot, prepend=boot[0]))
        for start in starts:
            total[start:] -= total[start - 1]
        counters[name] = total
    total = np.full(nr, sample["total"], np.int64)
    return {
        "total": total,
        "free": total // 5,
        "available": total // 2 - swapped,
        "cached": total // 3,
        "swap_total": np.full(nr, 2 << 30),
        "swap_free": (2 << 30) - swapped,
        **counters,
        "nr_processes": np.full(nr, len(shape.programs)),
        "nr_denied": np.zeros(nr, int),
        "nr_unread": np.zeros(nr, int),
        "nr_stale": np.zeros(nr, int),
        "nr_groups": np.full(nr, len(shape.programs)),
        "cost": np.full(nr, 0.05),
        "interval": np.full(nr, float(shape.interval)),
        "skipped": np.zeros(nr, int),
        "lost": np.zeros(nr, int),
    }
