# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of doctor, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from physview.reporters.drawing import draw
from physview.system.checks import NO, PART, YES, CheckResult
from physview.text.quoting import printable

STATE_STYLES = {YES: "green", PART: "yellow", NO: "red"}


def print_findings(findings: Iterable[CheckResult]) -> None:
    """Print a line for each finding, and its remedy on the next line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        state = Text(finding.state, style=STATE_STYLES[finding.state])
        table.add_row(state, finding.name, Text(printable(finding.value)))
        if finding.remedy:
            table.add_row("", "", Text(f"→ {printable(finding.remedy)}", style="bold"))
    draw(table)
