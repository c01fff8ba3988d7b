# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison of pagemap with walks, as a table and as a JSON document (docs/json.md)."""

from __future__ import annotations

import sys
from typing import Any

from physview.analysis.compare import Comparison


def print_table(what: str, sources: list[str], comparison: Comparison) -> None:
    """Print the number of pages and the first few addresses for each verdict.

    Args:
        what: What was compared, as "process 1".
        sources: Who was asked.
        comparison: The result.
    """
    from rich.table import Table
    from rich.text import Text

    from physview.reporters.drawing import draw

    named = f"{', '.join(sources[:-1])} and {sources[-1]}"
    title = (
        f"{what}: {comparison.nr_pages} pages, read from {named} in {comparison.seconds:.2f} s,"
        f" {comparison.nr_retried} again"
    )
    sys.stdout.write(f"{title}\n")  # as a title of the table it would wrap at the table's width
    table = Table(box=None)
    table.add_column("pages", justify="right", no_wrap=True)
    table.add_column("verdict")
    if comparison.examples:
        table.add_column("first addresses")
    for verdict, count in sorted(comparison.counts.items(), key=lambda item: -item[1]):
        style = "" if verdict.explained else "bold red"
        first = " ".join(hex(vaddr) for vaddr in comparison.examples.get(verdict, []))
        cells = (str(count), Text(verdict.text, style=style), first)
        table.add_row(*cells[: len(table.columns)])
    draw(table)
    unexplained = comparison.nr_unexplained
    sys.stdout.write(f"{unexplained} unexplained\n")


def document(sources: list[str], pid: int | None, compared: Comparison) -> dict[str, Any]:
    """Make the JSON document of a comparison.

    Args:
        sources: Who was asked.
        pid: The process; None for all processes.
        compared: The result.
    """
    return {
        "pid": pid,
        "sources": sources,
        "nr_pages": compared.nr_pages,
        "nr_retried": compared.nr_retried,
        "nr_unexplained": compared.nr_unexplained,
        "seconds": round(compared.seconds, 3),
        "verdicts": [
            {
                "verdict": verdict.value,
                "explained": verdict.explained,
                "nr_pages": count,
                "first": [hex(vaddr) for vaddr in compared.examples.get(verdict, [])],
            }
            for verdict, count in compared.counts.items()
        ],
    }
