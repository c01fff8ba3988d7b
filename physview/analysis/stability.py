# SPDX-License-Identifier: GPL-2.0-or-later
"""Which addresses stay from run to run of a program, and which change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Stability(NamedTuple):
    """What became of one label over several runs.

    Args:
        label: The probe's label.
        virtual: "stayed" or "changed".
        physical: "stayed", "changed", or "unknown" if a run had no physical address.
        nr_virtual: How many different virtual addresses there were.
        nr_physical: How many different physical addresses there were.
    """

    label: str
    virtual: str
    physical: str
    nr_virtual: int
    nr_physical: int


def compare_runs(runs: list[list[dict[str, Any]]]) -> list[Stability]:
    """Compare the entries of memview's JSON documents, label by label.

    Args:
        runs: The entries of each run, with the same labels in the same order.

    >>> entry = {"label": "main", "vaddr": "0x1000", "paddr": "0x9000"}
    >>> compare_runs([[entry], [entry | {"vaddr": "0x2000"}]])[0][:3]
    ('main', 'changed', 'stayed')
    """
    return [_compare(entries) for entries in zip(*runs, strict=True)]


def _compare(entries: Iterable[dict[str, Any]]) -> Stability:
    entries = list(entries)
    virtual = {entry["vaddr"] for entry in entries}
    physical = {entry["paddr"] for entry in entries}
    return Stability(
        entries[0]["label"],
        "stayed" if len(virtual) == 1 else "changed",
        "unknown" if None in physical else "stayed" if len(physical) == 1 else "changed",
        len(virtual),
        len(physical - {None}),
    )
