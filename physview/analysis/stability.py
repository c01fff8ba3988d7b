# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares repetitions of a program: which addresses stay the same, and which change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Stability(NamedTuple):
    """Whether the addresses of one label changed over several repetitions.

    Args:
        label: The probe's label.
        virtual: "stayed" or "changed".
        physical: "stayed", "changed", or "unknown" if a repetition had no physical address.
        nr_virtual: Number of different virtual addresses.
        nr_physical: Number of different physical addresses.
    """

    label: str
    virtual: str
    physical: str
    nr_virtual: int
    nr_physical: int


def compare_repetitions(repetitions: list[list[dict[str, Any]]]) -> list[Stability]:
    """Compare the entries of memview's JSON documents, label by label.

    Args:
        repetitions: The entries of each repetition, with the same labels in the same order.

    >>> entry = {"label": "main", "vaddr": "0x1000", "paddr": "0x9000"}
    >>> compare_repetitions([[entry], [entry | {"vaddr": "0x2000"}]])[0][:3]
    ('main', 'changed', 'stayed')
    """
    return [_compare(entries) for entries in zip(*repetitions, strict=True)]


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
