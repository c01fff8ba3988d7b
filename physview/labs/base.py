# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lab is, and what it brings home: tables of what was measured, and what follows from them.

A lab prints nothing. Each of its sentences comes from a check of what this run measured, and is
another one where the check fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from physview.model import Cause

VADDR, PADDR, NUMBER, SIZE, TEXT = "vaddr", "paddr", "number", "size", "text"
"""Kinds of column: virtual and physical addresses, counts, bytes, words."""

Cell = int | str | Cause | None


class Column(NamedTuple):
    """One column of a table.

    Args:
        name: For programs.
        title: For people.
        kind: VADDR, PADDR, NUMBER, SIZE or TEXT.
    """

    name: str
    title: str
    kind: str = TEXT


class Row(NamedTuple):
    """One row of a table.

    Args:
        cells: A value for each column: an int, words, or the cause why there is no address; None
            where the column does not apply.
        changed: Names of the columns in which something changed.
    """

    cells: tuple[Cell, ...]
    changed: frozenset[str]


class Table:
    """A table of what was measured.

    Args:
        name: For programs.
        title: For people.
        columns: Its columns.
    """

    def __init__(self, name: str, title: str, columns: Sequence[Column]) -> None:
        self.name = name
        self.title = title
        self.columns = tuple(columns)
        self.rows: list[Row] = []

    def add(self, *cells: Cell, changed: Sequence[str] = ()) -> None:
        """Add a row, naming the columns in which something changed."""
        assert len(cells) == len(self.columns)
        assert set(changed) <= {column.name for column in self.columns}
        self.rows.append(Row(cells, frozenset(changed)))

    def column(self, name: str) -> list[Cell]:
        """The cells of a column, from the top."""
        index = [column.name for column in self.columns].index(name)
        return [row.cells[index] for row in self.rows]


class Finding(NamedTuple):
    """A sentence, and the check it comes from.

    Args:
        check: The check's name.
        usual: Whether it came out as it does on most machines.
        text: What follows from what was measured.
    """

    check: str
    usual: bool
    text: str


class Evidence:
    """What a lab has measured, and what follows.

    Attributes:
        lab: The lab's name.
        tables: What was measured.
        findings: What follows.
        answers: The right answer to each of the lab's questions, an index of its choices; None
            where what was measured does not tell.
        notes: What this machine or this user kept from being measured, with the remedy.
    """

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.tables: list[Table] = []
        self.findings: list[Finding] = []
        self.answers: list[int | None] = []
        self.notes: list[str] = []

    @property
    def is_usual(self) -> bool:
        """Whether every check came out as it does on most machines."""
        return all(finding.usual for finding in self.findings)

    def table(self, name: str, title: str, columns: Sequence[Column]) -> Table:
        """Begin a table."""
        table = Table(name, title, columns)
        self.tables.append(table)
        return table

    def check(self, name: str, holds: bool, if_so: str, if_not: str) -> bool:
        """Draw a conclusion.

        Args:
            name: The check's name.
            holds: What it found; what is usual is that it holds.
            if_so: The sentence where it holds.
            if_not: The sentence where it does not, which says what could be the reason.

        Returns:
            `holds`.
        """
        self.findings.append(Finding(name, holds, if_so if holds else if_not))
        return holds

    def note(self, text: str) -> None:
        """Say what kept something from being measured, and what to do about it."""
        self.notes.append(text)

    def answer(self, choice: int | None) -> None:
        """Judge the lab's next question: the index of the right choice, None if nothing tells."""
        self.answers.append(choice)


class Question(NamedTuple):
    """What is asked before the lab is run.

    Args:
        text: The question.
        choices: The answers to choose from.
    """

    text: str
    choices: tuple[str, ...]


class Lab(NamedTuple):
    """An experiment.

    Args:
        name: As the command line has it.
        title: What it is about, in a few words.
        rows: The course's experiments that it stands for.
        plan: What it will do.
        questions: What is asked before.
        why_not: Says why it can't be done here, with the remedy; None where it can.
        run: Does it. Takes `options` as keywords.
        options: Names of what can be chosen.
    """

    name: str
    title: str
    rows: tuple[int, ...]
    plan: str
    questions: tuple[Question, ...]
    why_not: Callable[[], Exception | None]
    run: Callable[..., Evidence]
    options: tuple[str, ...] = ()


def document(lab: Lab, evidence: Evidence) -> dict[str, Any]:
    """The evidence as plain data; docs/json.md describes it."""
    return {
        "lab": lab.name,
        "title": lab.title,
        "course_rows": list(lab.rows),
        "usual": evidence.is_usual,
        "tables": [_table_document(table) for table in evidence.tables],
        "findings": [finding._asdict() for finding in evidence.findings],
        "questions": [
            {"question": question.text, "choices": list(question.choices), "answer": answer}
            for question, answer in zip(lab.questions, evidence.answers, strict=True)
        ],
        "notes": evidence.notes,
    }


def _table_document(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "columns": [column._asdict() for column in table.columns],
        "rows": [_row_document(table, row) for row in table.rows],
    }


def _row_document(table: Table, row: Row) -> dict[str, Any]:
    cells: dict[str, int | str | None] = {}
    causes = {}
    for column, cell in zip(table.columns, row.cells, strict=True):
        if isinstance(cell, Cause):
            causes[column.name], cells[column.name] = cell.value, None
        elif isinstance(cell, int) and column.kind in (VADDR, PADDR):
            cells[column.name] = hex(cell)
        else:
            cells[column.name] = cell
    return {
        "cells": cells,
        "causes": causes,
        "changed": [column.name for column in table.columns if column.name in row.changed],
    }
