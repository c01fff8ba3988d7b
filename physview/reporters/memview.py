# SPDX-License-Identifier: GPL-2.0-or-later
"""The reports of memview, and the table of addresses that stay the same over repetitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from physview.analysis.stability import Stability
from physview.model import Probe, Translation
from physview.reporters.translate import address_line

if TYPE_CHECKING:
    from rich.text import Text

STABILITY_STYLES = {"stayed": "green", "changed": "", "unknown": "yellow"}


def memview_report(labelled: Iterable[tuple[str, Translation]]) -> str:
    """Make the report of the course program memview2, exactly as memview2 prints it."""
    lines = [f"{label}:  {address_line(translation)}" for label, translation in labelled]
    return "\n".join(["Memory map report (virtual -> physical)", *lines, ""])


def virtual_report(probes: Iterable[Probe]) -> str:
    """Make the report of the course program memview, which has no physical addresses."""
    lines = [f"{probe.label}:  {probe.vaddr:#018x}" for probe in probes]
    return "\n".join(["Memory map report (virtual)", *lines, ""])


def print_stability(
    stabilities: Sequence[Stability], nr_repetitions: int, *, with_physical: bool
) -> None:
    """Print the table of memview --repeat: which addresses stayed the same, and which changed."""
    from rich.table import Table

    from physview.reporters.drawing import draw

    title = f"{nr_repetitions} repetitions, each in a new process"
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("label", no_wrap=True)
    table.add_column("virtual", no_wrap=True)
    if with_physical:
        table.add_column("physical", no_wrap=True)
    for row in stabilities:
        cells = [_stability(row.virtual, row.nr_virtual)]
        if with_physical:
            cells.append(_stability(row.physical, row.nr_physical))
        table.add_row(row.label, *cells)
    draw(table)


def _stability(word: str, nr_different: int) -> Text:
    from rich.text import Text

    count = f" ({nr_different} different)" if word == "changed" else ""
    return Text(word + count, style=STABILITY_STYLES[word])
