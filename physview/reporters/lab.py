# SPDX-License-Identifier: GPL-2.0-or-later
"""Labs as text: the list of labs, the quiz, the measurements and the conclusions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from physview.errors import PhysviewError
from physview.labs import model
from physview.labs.model import Evidence, Lab, Question
from physview.model import Cause, printable
from physview.reporters.drawing import draw
from physview.runtime import invocation

PIPE_WIDTH = 80
"""Width of sentences where stdout is no terminal: people read them there, too."""
PIPE_TABLE_WIDTH = 240
MARK = " *"
NUMERIC = (model.NUMBER, model.SIZE, model.VADDR, model.PADDR)


def print_labs(labs: Iterable[tuple[Lab, str]]) -> None:
    """Print the list of labs.

    Args:
        labs: Each lab, and why it cannot run on this machine; "" if it can.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("lab", no_wrap=True)
    table.add_column("course", no_wrap=True)
    table.add_column("topic")
    table.add_column("here")
    for lab, why_not in labs:
        rows = ", ".join(map(str, lab.rows)) or "-"
        here = Text(why_not or "ready", style="yellow" if why_not else "green")
        table.add_row(lab.name, rows, lab.title, here)
    _print(table, PIPE_TABLE_WIDTH)
    how = (
        f"{invocation.physview('lab NAME')} runs one, --all runs all; --quiz asks questions first."
    )
    _print(Text(how))


def print_plan(lab: Lab) -> None:
    """Print what a lab will do."""
    rows = ", ".join(map(str, lab.rows))
    course = f"  (the course's experiment{'s' * (len(lab.rows) > 1)} {rows})" if rows else ""
    _print(Text(f"{lab.name}: {lab.title}{course}", style="bold"))
    _print(Text(lab.plan))
    sys.stdout.flush()  # before the work begins


def print_evidence(evidence: Evidence) -> None:
    """Print the measurements and the conclusions."""
    for table in evidence.tables:
        _print(Text(""))
        _print(Text(table.title, style="bold"))
        _print(_table(table), PIPE_TABLE_WIDTH)
    _print(Text(""))
    for finding in evidence.findings:
        mark = "-" if finding.usual else "!"
        text = Text(finding.text, style="" if finding.usual else "yellow")
        _print_item(mark, text)
    for note in evidence.notes:
        _print_item("?", Text(note, style="yellow"))
    if not evidence.is_usual:
        _print(Text("! marks a result that differs from most machines."))


def print_summary(
    done: Sequence[tuple[Lab, Evidence]], not_done: Sequence[tuple[Lab, PhysviewError]]
) -> None:
    """Print which of all labs ran, and for each of the others why not and what to do."""
    unusual = [lab.name for lab, evidence in done if not evidence.is_usual]
    words = f"{_labs(len(done))} done: {', '.join(lab.name for lab, _ in done) or 'none'}."
    if unusual:
        words += f" Not as on most machines: {', '.join(unusual)}."
    _print(Text(f"\n\n{words}", style="bold"))
    if not not_done:
        return
    _print(Text(f"{_labs(len(not_done))} not done here:", style="bold"))
    for lab, why in not_done:
        _print_item("-", Text(f"{lab.name}: {why.why}"))
        _print(Text(f"  {why.remedy}"), PIPE_TABLE_WIDTH)


def _labs(nr: int) -> str:
    return "1 lab was" if nr == 1 else f"{nr} labs were"


def print_question(number: int, question: Question) -> None:
    """Print a question, and the answers to choose from."""
    _print(Text(""))
    _print(Text(f"Question {number}: {question.text}", style="bold"))
    for index, choice in enumerate(question.choices, 1):
        _print_item(f"{index})", Text(choice))


def print_answers(
    questions: Sequence[Question], chosen: Sequence[int | None], right: Sequence[int | None]
) -> None:
    """Print the user's answers, and the right ones according to the evidence.

    Args:
        questions: The questions.
        chosen: Index of the user's answer to each question; None if there is none.
        right: Index of the right answer; None if the measurements do not tell.
    """
    _print(Text(""))
    items = zip(questions, chosen, right, strict=True)
    for number, (question, mine, answer) in enumerate(items, 1):
        words = "no answer" if mine is None else f"you said {mine + 1}"
        if answer is None:
            verdict = "nothing: this run did not measure it"
        else:
            judged = "" if mine is None else " right" if mine == answer else " wrong"
            words += f":{judged}" if judged else ""
            verdict = f"{answer + 1}) {question.choices[answer]}"
        style = "green" if mine is not None and mine == answer else ""
        _print_item(f"{number}.", Text(f"{words}; the evidence says {verdict}", style=style))


def _table(measured: model.EvidenceTable) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in measured.columns:
        is_number = column.kind in NUMERIC
        table.add_column(
            column.title,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    for row in measured.rows:
        cells = []
        for column, cell in zip(measured.columns, row.cells, strict=True):
            has_changed = column.name in row.changed
            # Cells without a mark are padded if the column has marks, so that numbers align.
            room = any(column.name in other.changed for other in measured.rows)
            mark = MARK if has_changed else " " * len(MARK) * room
            cells.append(Text(_words(column, cell) + mark, style="bold" if has_changed else ""))
        table.add_row(*cells)
    return table


def _words(column: model.EvidenceColumn, cell: model.Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Cause):
        return str(cell.value)
    if isinstance(cell, int) and column.kind in (model.VADDR, model.PADDR):
        return hex(cell)
    return printable(str(cell))


def _print_item(mark: str, text: Text) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(mark, text)
    _print(grid)


def _print(what: Table | Text, pipe_width: int = PIPE_WIDTH) -> None:
    draw(what, pipe_width)
