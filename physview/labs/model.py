# SPDX-License-Identifier: GPL-2.0-or-later
"""The labs' data model: a lab, its questions, and its evidence (tables and findings).

A lab prints nothing. It returns evidence. Each finding is one sentence, which a check of the
measured values selects: one sentence if the check holds, another sentence if it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from physview.model import Cause

VADDR, PADDR, NUMBER, SIZE, TEXT = "vaddr", "paddr", "number", "size", "text"
"""Kinds of columns: virtual addresses, physical addresses, counts, sizes in bytes, text."""

Cell = int | str | Cause | None


class EvidenceColumn(NamedTuple):
    """One column of a table.

    Args:
        name: The column's name in JSON.
        title: The column's heading for people.
        kind: VADDR, PADDR, NUMBER, SIZE or TEXT.
    """

    name: str
    title: str
    kind: str = TEXT


class EvidenceRow(NamedTuple):
    """One row of a table.

    Args:
        cells: One value per column: an int, text, or the cause of a missing address. None where
            the column does not apply to the row.
        changed: Names of the columns whose value changed.
    """

    cells: tuple[Cell, ...]
    changed: frozenset[str]


class EvidenceTable:
    """A table of measured values.

    Args:
        name: The table's name in JSON.
        title: The table's heading for people.
        columns: The columns, from left to right.
    """

    def __init__(self, name: str, title: str, columns: Sequence[EvidenceColumn]) -> None:
        self.name = name
        self.title = title
        self.columns = tuple(columns)
        self.rows: list[EvidenceRow] = []

    def add(self, *cells: Cell, changed: Sequence[str] = ()) -> None:
        """Add a row. `changed` names the columns whose value changed."""
        assert len(cells) == len(self.columns)
        assert set(changed) <= {column.name for column in self.columns}
        self.rows.append(EvidenceRow(cells, frozenset(changed)))

    def column(self, name: str) -> list[Cell]:
        """Return the cells of the column with this name, from top to bottom."""
        index = [column.name for column in self.columns].index(name)
        return [row.cells[index] for row in self.rows]


class LabFinding(NamedTuple):
    """The result of one check: a sentence about this machine.

    Args:
        check: The check's name.
        usual: Whether the result is the one that most machines give.
        text: The conclusion from the measured values.
    """

    check: str
    usual: bool
    text: str


class Evidence:
    """The result of a lab: its measurements and the conclusions from them.

    Attributes:
        lab: The lab's name.
        tables: The measured values.
        findings: The conclusions from the measured values.
        answers: The right answer to each of the lab's questions, as an index into the question's
            choices. None where the measurements do not decide the question.
        notes: Measurements that this machine or this user's permissions prevented, each with the
            remedy.
    """

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.tables: list[EvidenceTable] = []
        self.findings: list[LabFinding] = []
        self.answers: list[int | None] = []
        self.notes: list[str] = []

    @property
    def is_usual(self) -> bool:
        """Whether every check had the result that most machines give."""
        return all(finding.usual for finding in self.findings)

    def table(self, name: str, title: str, columns: Sequence[EvidenceColumn]) -> EvidenceTable:
        """Add an empty table to the evidence, and return it."""
        table = EvidenceTable(name, title, columns)
        self.tables.append(table)
        return table

    def check(self, name: str, holds: bool, if_so: str, if_not: str) -> bool:
        """Add a finding: the conclusion from one check.

        Args:
            name: The check's name.
            holds: The check's result. True is the usual result.
            if_so: The sentence if the check holds.
            if_not: The sentence if the check fails. It names the likely reason.

        Returns:
            `holds`.
        """
        self.findings.append(LabFinding(name, holds, if_so if holds else if_not))
        return holds

    def note(self, text: str) -> None:
        """Add a note: why a measurement was not possible, and the remedy."""
        self.notes.append(text)

    def answer(self, choice: int | None) -> None:
        """Add the answer to the lab's next question.

        Args:
            choice: The index of the right choice. None if the measurements do not decide it.
        """
        self.answers.append(choice)


class Question(NamedTuple):
    """A multiple-choice question, which `--quiz` asks before the lab runs.

    Args:
        text: The question.
        choices: The answers to choose from.
        usual: Index of the answer that most machines give. docs/key.md has it; `--quiz` judges by
            what the lab measures.
        because: Why this is the answer, and where another answer is right. For docs/key.md.
    """

    text: str
    choices: tuple[str, ...]
    usual: int | None = None
    because: str = ""


class Lab(NamedTuple):
    """An experiment.

    Args:
        name: The lab's name on the command line.
        title: The lab's subject in a few words.
        rows: Numbers of the course's experiments that the lab covers.
        plan: A description of what the lab will do.
        questions: The lab's questions for `--quiz`.
        why_not: Returns the error that says why the lab can't run here, with the remedy. Returns
            None if the lab can run.
        run: Runs the lab, and takes the options as keywords.
        options: Names of the options of `run`.
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
    """Return a lab and its evidence as plain data for JSON. docs/json.md describes the format."""
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


def _table_document(table: EvidenceTable) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "columns": [column._asdict() for column in table.columns],
        "rows": [_row_document(table, row) for row in table.rows],
    }


def _row_document(table: EvidenceTable, row: EvidenceRow) -> dict[str, Any]:
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
