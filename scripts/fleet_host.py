# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the samples of one host of a generated fleet: random walks, with the planted events."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
from fleet_events import HOUR, Event, Shape, host_name
from fleet_memory import make_machine, make_zones

PAGE = 4096
COUNTED = 64 * PAGE  # what the kernel's counters may lack
PMD = 2 << 20
KERNELS = ("6.12.9", "6.18.2")
BUSY_SHARE = 0.4
LEAK_GROWTH = 2.0
"""A leak ends at this many times the size of the program, on top of it."""


class Host(NamedTuple):
    """The samples of a host.

    Args:
        name, machine: Its name, and the hash of its id.
        boots, kernels: The id and the kernel of each boot.
        time: When each sample was taken by the host's clock, in microseconds since 1970.
        since_boot: Seconds since the boot.
        boot: The index of the boot, for each sample.
        programs: The names of the groups.
        groups: Columns of shape (samples, programs).
        zones: The zones' names, and columns of shape (samples, zones) or (samples, zones, orders).
        machine_columns: Columns of shape (samples,).
    """

    name: str
    machine: str
    boots: list[str]
    kernels: list[str]
    time: Any
    since_boot: Any
    boot: Any
    programs: list[str]
    groups: dict[str, Any]
    zones: tuple[list[str], dict[str, Any]]
    machine_columns: dict[str, Any]

    def columns(self, table: str, part: slice) -> dict[str, Any]:
        """The columns of some samples of a table, in the order of time."""
        names = {"groups": self.programs, "zones": self.zones[0], "machine": [""]}[table]
        width = len(names)
        nr = part.stop - part.start
        indices = np.tile(np.arange(width), nr)
        made: dict[str, Any] = {
            "time": np.repeat(self.time[part], width),
            "machine": (np.zeros(nr * width, int), [self.machine]),
            "boot": (np.repeat(self.boot[part], width), self.boots),
            "kernel": (np.repeat(self.boot[part], width), self.kernels),
            "since_boot": np.repeat(self.since_boot[part], width),
        }
        if table == "groups":
            made |= {"by": (np.zeros(nr * width, int), ["program"]), "name": (indices, names)}
            wide = self.groups
        elif table == "zones":
            made |= {"node": np.zeros(nr * width, int), "zone": (indices, names)}
            wide = self.zones[1]
        else:
            return made | {name: values[part] for name, values in self.machine_columns.items()}
        for name, values in wide.items():
            tail = values.shape[2:]
            made[name] = values[part].reshape(nr * width, *tail)
        return made


def make_host(
    index: int, shape: Shape, sample: dict[str, Any], random: Any, events: list[Event]
) -> Host:
    """Make the samples of a host, with the events that happen to it."""
    name = events[0].host if events else host_name(index, shape.hosts)
    machine = hashlib.sha256(b"machine %d" % index).hexdigest()[:32]
    reboot = next((event.first for event in events if event.kind == "kernel"), None)
    at = np.arange(shape.nr)
    boot = np.zeros(shape.nr, int) if reboot is None else (at >= reboot).astype(int)
    uptime = at * shape.interval + 86400.0 * (1 + index % 5)
    if reboot is not None:
        uptime[reboot:] = (at[reboot:] - reboot) * shape.interval + 30.0
    time = (shape.start + at * shape.interval) * 1_000_000
    for event in events:
        if event.kind == "clock":
            time[event.first : event.last] -= 2 * HOUR * 1_000_000
    zones = make_zones(shape, sample, random, events)
    machine_columns = make_machine(shape, sample, random, events, boot)
    boots = [hashlib.sha256(b"boot %d %d" % (index, nr)).hexdigest()[:32] for nr in (0, 1)]
    groups = _make_groups(shape, sample, random, events)
    return Host(
        name, machine, boots, list(KERNELS), time, uptime, boot, shape.programs, groups, zones,
        machine_columns,
    )  # fmt: skip


def walk(random: Any, nr: int, width: int, per_step: int, size: float) -> Any:
    """A random walk around 1 with a knot for each `per_step` samples, and lines between."""
    knots = nr // per_step + 2
    steps = random.normal(0, size, (knots, width))
    for at in range(1, knots):  # drawn back to 1, or else a week would lead anywhere
        steps[at] += steps[at - 1] * 0.9
    place = np.arange(nr) / per_step
    low = place.astype(int)
    rest = (place - low)[:, None]
    return np.exp(steps[low] * (1 - rest) + steps[low + 1] * rest)


def _make_groups(
    shape: Shape, sample: dict[str, Any], random: Any, events: list[Event]
) -> dict[str, Any]:
    """The columns of the programs: pages first, then bytes."""
    known, width = sample["programs"], len(shape.programs)
    per_hour = max(1, HOUR // shape.interval)
    base_bytes, file_bytes = (
        np.array([known[program % len(known)][name] for program in range(width)])
        for name in ("resident", "file")
    )
    base = np.maximum(512, base_bytes // PAGE)
    file_share = (file_bytes / np.maximum(1, base_bytes)).clip(0.05, 0.9)
    base = base * random.lognormal(0, 0.3, width)
    is_busy = random.random(width) < BUSY_SHARE
    resident = base * walk(random, shape.nr, width, per_hour, 0.01)
    resident *= 1 + 0.001 * random.standard_normal((shape.nr, width))
    held = np.arange(shape.nr) // per_hour * per_hour
    resident = np.where(is_busy, resident, resident[held])
    coverage = random.uniform(0.3, 0.9, width) * walk(random, shape.nr, width, per_hour, 0.01)
    coverage = coverage[held].clip(0, 0.95)
    file = resident * file_share
    anon = resident - file
    swapped = np.zeros_like(resident)
    tables = 20 + resident / 500
    for event in events:
        part, program = slice(event.first, event.last), event.program
        length = event.last - event.first
        if event.kind == "leak":
            anon[part, program] += base[program] * LEAK_GROWTH * np.arange(length) / length
        elif event.kind == "thp-loss":
            coverage[part, program] *= 0.03
        elif event.kind == "swap":
            swapped[part, program] = anon[part, program] * 0.6
            anon[part, program] *= 0.4
        elif event.kind == "page-tables":
            tables[part, program] += base[program] * 0.2 * np.arange(length) / length
    return _group_bytes(shape, random, is_busy, anon, file, coverage, swapped, tables)


def _group_bytes(
    shape: Shape, random: Any, is_busy: Any, anon: Any, file: Any, coverage: Any, swapped: Any,
    tables: Any,
) -> dict[str, Any]:  # fmt: skip
    """The columns that files have, of sizes in pages."""

    def pages(values: Any) -> Any:
        return values.astype(np.int64) * PAGE

    anon, file = pages(anon), pages(file)
    huge = (anon * coverage).astype(np.int64) // PMD * PMD
    small = (anon - huge) // 10 // 65536 * 65536
    nothing = np.zeros_like(anon)
    rate = np.where(is_busy, 40, 0) * shape.interval
    faults = random.poisson(rate, anon.shape).cumsum(0)
    folios = np.zeros((*anon.shape, 10), np.int64)
    folios[..., 4], folios[..., 9] = small, huge
    per_hour = max(1, HOUR // shape.interval)
    since = (np.arange(shape.nr) % per_hour * float(shape.interval))[:, None]
    nr = np.ones(anon.shape, np.int32)
    was_read = np.where(is_busy, 1, since == 0).astype(np.int32)
    return {
        "nr_processes": nr,
        "resident": anon + file,
        "resident_approx": (anon + file) // COUNTED * COUNTED,
        "swapped": pages(swapped),
        "shared": file // PAGE * 3 // 5 * PAGE,
        "huge": huge,
        "anon": anon,
        "anon_huge": huge,
        "file": file,
        "page_tables": pages(tables),
        "nr_extents": (anon + file - huge) // PAGE // 6 + huge // PMD,
        "largest_extent": np.where(huge > 0, PMD, 65536),
        "in_64k": huge + small,
        "in_2m": huge,
        "in_1g": nothing,
        "folios": huge + small,
        "folios_by_order": folios,
        "minor_faults": faults,
        "major_faults": (swapped > 0).cumsum(0) * 3,
        "nr_read": was_read,
        "nr_kept": nr - was_read,
        "nr_unread": nothing.astype(np.int32),
        "nr_denied": nothing.astype(np.int32),
        "age": np.where(is_busy, 0.0, np.broadcast_to(since, anon.shape)),
    }
