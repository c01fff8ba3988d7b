# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables for people, drawn by rich; the same without colour and at full width in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from physview.analysis.checkup import NO, PART, YES, Finding
from physview.analysis.compare import Comparison
from physview.analysis.stability import Stability
from physview.model import printable
from physview.reporters.drawing import draw

PIPE_WIDTH = 240
STATE_STYLES = {YES: "green", PART: "yellow", NO: "red"}
STABILITY_STYLES = {"stayed": "green", "changed": "", "unknown": "yellow"}


def _print(table: Table) -> None:
    draw(table, PIPE_WIDTH)


def print_findings(findings: Iterable[Finding]) -> None:
    """doctor's list: what, how it stands, and under it what gets the rest."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        state = Text(finding.state, style=STATE_STYLES[finding.state])
        table.add_row(state, finding.name, Text(printable(finding.value)))
        if finding.remedy:
            table.add_row("", "", Text(f"→ {printable(finding.remedy)}", style="bold"))
    _print(table)


def print_stability(stabilities: Sequence[Stability], nr_runs: int, *, with_physical: bool) -> None:
    """memview --repeat: what stayed and what changed."""
    table = Table(title=f"{nr_runs} runs, a new process each", box=None, title_justify="left")
    table.add_column("label", no_wrap=True)
    table.add_column("virtual", no_wrap=True)
    if with_physical:
        table.add_column("physical", no_wrap=True)
    for row in stabilities:
        cells = [_stability(row.virtual, row.nr_virtual)]
        if with_physical:
            cells.append(_stability(row.physical, row.nr_physical))
        table.add_row(row.label, *cells)
    _print(table)


def _stability(word: str, nr_different: int) -> Text:
    count = f" ({nr_different} different)" if word == "changed" else ""
    return Text(word + count, style=STABILITY_STYLES[word])


def print_comparison(pid: int, comparison: Comparison) -> None:
    """compare's table: how many pages have each verdict, and the first few of each."""
    done = f"{comparison.nr_pages} pages in {comparison.seconds:.2f} s"
    title = f"process {pid}: {done}, {comparison.nr_retried} looked at again"
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("pages", justify="right", no_wrap=True)
    table.add_column("verdict")
    table.add_column("the first of them")
    for verdict, count in sorted(comparison.counts.items(), key=lambda item: -item[1]):
        style = "" if verdict.explained else "bold red"
        first = " ".join(hex(vaddr) for vaddr in comparison.examples[verdict])
        table.add_row(str(count), Text(verdict.text, style=style), first)
    _print(table)
    unexplained = comparison.nr_unexplained
    sys.stdout.write(f"{unexplained} unexplained\n")
