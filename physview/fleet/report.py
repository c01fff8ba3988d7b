# SPDX-License-Identifier: GPL-2.0-or-later
"""All answers for a report, and what its plots show over time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from physview.fleet import questions
from physview.fleet.answer import Answer
from physview.fleet.dataset import Dataset
from physview.fleet.engine import Engine
from physview.fleet.expressions import Options, Tables, open_tables, step_for
from physview.fleet.series import SERIES, Series

NR_ROWS = 20
"""The most rows of a table of the report."""
NR_SERIES = 6
MAX_HOURS = 14 * 24
"""Longer times are drawn by days."""


class Plot(NamedTuple):
    """What a plot shows.

    Args:
        title: What it shows, in words.
        kind: lines or heat.
        unit: The kind of the values, as of an AnswerColumn.
        points: The values by name (of a program, a host or a kernel) and time.
    """

    title: str
    kind: str
    unit: str
    points: dict[str, dict[datetime, float]]


class Section(NamedTuple):
    """An answer of the report.

    Args:
        question: What was asked.
        finding: What a row of the answer tells.
        answer: The answer, of NR_ROWS rows at most.
        is_cut: Whether there are more rows.
        plot: What happened over time, or None.
    """

    question: questions.Question
    finding: str
    answer: Answer
    is_cut: bool
    plot: Plot | None


class Report(NamedTuple):
    """A report.

    Args:
        dataset: Where the recordings are.
        hosts: The pattern for names of hosts.
        since, until: The time of the samples: that of the selection, or else of the rows.
        has_twins: Whether several machines have one name.
        nr_machines: The number of machines.
        sections: The answers.
    """

    dataset: str
    hosts: str
    since: datetime | None
    until: datetime | None
    has_twins: bool
    nr_machines: int
    sections: list[Section]


def read_report(
    engine: Engine,
    dataset: Dataset,
    options: Options,
    show: Callable[[int, int | None], None] | None = None,
) -> Report:
    """Ask all questions but `worst`, which needs a column.

    Args:
        engine: Who answers.
        dataset: What it reads.
        options: Which groups.
        show: Called with how many questions are answered, and how many there are.
    """
    tables = open_tables()
    asked = [question for name, question in questions.QUESTIONS.items() if name != "worst"]
    plain = Options(of=options.of)
    hosts = _ask(engine, questions.find("hosts"), tables, plain)
    first = min((row[2] for row in hosts.rows), default=None)
    last = max((row[3] for row in hosts.rows), default=None)
    plain = plain._replace(usual_step=step_for(first, last))
    step = _step(first, last)
    sections = []
    for at, question in enumerate(asked):
        if show is not None:
            show(at, len(asked))
        limited = plain._replace(limit=NR_ROWS + 1, by_host=question.name == "fragmentation")
        answer = hosts if question.name == "hosts" else _ask(engine, question, tables, limited)
        rows = list(answer.rows)
        shown = Answer(answer.columns, rows[:NR_ROWS])
        plot = None
        if rows and question.name in SERIES:
            series = SERIES[question.name]
            plot = _plot(engine, series, tables, plain._replace(step=step), shown)
        finding = questions.finding_of(question, limited)
        sections.append(Section(question, finding, shown, len(rows) > NR_ROWS, plot))
    selection = dataset.selection
    return Report(
        dataset.shown,
        selection.hosts,
        selection.since or first,
        selection.until or last,
        bool(engine.twins),
        len(list(hosts.rows)),
        sections,
    )


def _step(first: datetime | None, last: datetime | None) -> str:
    if first is None or last is None or (last - first).total_seconds() <= MAX_HOURS * 3600:
        return step_for(first, last)
    return "day"


def _ask(engine: Engine, question: questions.Question, tables: Tables, options: Options) -> Answer:
    columns, expression = questions.build(question, tables, options)
    return engine.run(columns, expression).collect()


def _plot(
    engine: Engine, series: Series, tables: Tables, options: Options, answer: Answer
) -> Plot | None:
    """Ask for the values over time: name, time, value."""
    names = [column.name for column in answer.columns]
    found = [dict(zip(names, row, strict=True)) for row in answer.rows][:NR_SERIES]
    columns, expression = series.build(tables, options, found)
    points: dict[str, dict[datetime, float]] = {}
    for name, moment, value in engine.run(columns, expression).rows:
        if value is not None:
            points.setdefault(_label(name), {})[moment] = value
    if not any(any(values.values()) for values in points.values()):
        return None
    return Plot(series.title, series.kind, series.unit, points)


def _label(name: Any) -> str:
    return "(no name)" if name is None else str(name)
