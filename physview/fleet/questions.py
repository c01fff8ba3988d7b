# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions, each written once in Ibis, so that every engine of Ibis can answer it.

A machine is known by `host` and `machine`: several machines may have one name. Each boot stands for
itself, because counters and page tables begin anew. Inside of a boot, rows are ordered by
`since_boot`, which no change of the clock moves. Answers are sorted by all that tells rows apart,
so that all engines give them in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.errors import UsageError
from physview.fleet import group_questions, machine_questions
from physview.fleet.answer import AnswerColumn
from physview.fleet.expressions import STEPS, Options, Tables, step_for
from physview.text.nearest import offer

if TYPE_CHECKING:
    import ibis

    from physview.fleet.dataset import Dataset
    from physview.fleet.engine import Engine


class Question(NamedTuple):
    """A question.

    Args:
        name: Its name on the command line.
        title: What is asked, for the head of a report.
        finding: What a row tells, for people.
        build: Makes the answer's columns and its expression.
        takes: The options of Options that it uses.
    """

    name: str
    title: str
    finding: str
    build: Callable[[Tables, Options], tuple[list[AnswerColumn], ibis.Table]]
    takes: tuple[str, ...] = ()


QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question(
            "hosts",
            "Which machines were recorded",
            "A machine: its boots and kernels, lost samples, and jumps of its clock.",
            machine_questions.hosts,
        ),
        Question(
            "thp",
            "How much of each program's memory is in huge pages",
            "Coverage is the part of anonymous memory that is mapped as huge pages.",
            group_questions.thp,
            ("step", "by_host"),
        ),
        Question(
            "thp-loss",
            "Which programs lost their huge pages",
            "The step of time in which the coverage of a program fell most.",
            group_questions.thp_loss,
            ("step",),
        ),
        Question(
            "no-2m",
            "Where and when a page of 2 MiB could not be had",
            "Samples without a free block of 2 MiB, and allocations that failed meanwhile.",
            machine_questions.no_2m,
            ("step",),
        ),
        Question(
            "page-tables",
            "Whose page tables grow",
            "Growth since the first step of a boot, and the step in which they grew most.",
            group_questions.page_tables,
            ("step",),
        ),
        Question(
            "swap",
            "Who swaps",
            "Programs with swapped memory, from the first to the last sample that saw some.",
            group_questions.swap,
        ),
        Question(
            "swap-hours",
            "Where and when pages were swapped",
            "Pages that went to and came from swap, by host and step of time.",
            machine_questions.swap_hours,
            ("step",),
        ),
        Question(
            "compaction",
            "Where and when memory was compacted",
            "Pages that the kernel moved to make larger free blocks, by host and step of time.",
            machine_questions.compaction,
            ("step",),
        ),
        Question(
            "fragmentation",
            "How fragmented free memory is, before and after a kernel version",
            "The part of free memory in blocks of less than 2 MiB, for each kernel.",
            machine_questions.fragmentation,
            ("by_host",),
        ),
        Question(
            "leaks",
            "Which programs grow without end",
            "Memory that grew in each of six or more steps, one after the other.",
            group_questions.leaks,
            ("step", "approx"),
        ),
        Question(
            "worst",
            "The largest values of a column",
            "For each group, zone or machine, its largest value, and the step of time of it.",
            machine_questions.worst,
            ("column", "lowest", "step"),
        ),
    )
}


def find(name: str) -> Question:
    """Find a question.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in QUESTIONS:
        raise UsageError(f"there is no question '{name}'", "", offer(name, QUESTIONS))
    return QUESTIONS[name]


def usual_step(engine: Engine, dataset: Dataset, tables: Tables) -> str:
    """The step of time for what was selected of a dataset: 5 minutes or an hour."""
    if len({os.path.basename(os.path.dirname(path)) for path in dataset.files("machine")}) > 2:
        return "hour"
    columns = [AnswerColumn("first", "time", ""), AnswerColumn("last", "time", "")]
    time = tables.machine.time
    span = tables.machine.aggregate(first=time.min(), last=time.max())
    return step_for(*next(iter(engine.run(columns, span).rows)))


def finding_of(question: Question, options: Options) -> str:
    """What a row tells, and how long a step of time is, if there are steps."""
    if "step" not in question.takes:
        return question.finding
    return f"{question.finding} A step is {STEPS[options.step or options.usual_step]}."


def build(question: Question, tables: Tables, options: Options) -> tuple[list[AnswerColumn], Any]:
    """Make the expression of a question, limited to the number of rows that is wanted."""
    columns, expression = question.build(tables, options)
    expression = expression.select([column.name for column in columns])
    if options.limit is not None:
        expression = expression.limit(options.limit)
    return columns, expression
