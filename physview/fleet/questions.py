# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions, each written once in Ibis, so that every engine of Ibis can answer it.

A machine is known by `host` and `machine`: several machines may have one name. Each boot stands for
itself, because counters and page tables begin anew. Inside of a boot, rows are ordered by
`since_boot`, which no change of the clock moves. Answers are sorted by all that tells rows apart,
so that all engines give them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.errors import UsageError
from physview.fleet import group_questions, machine_questions
from physview.fleet.answer import AnswerColumn
from physview.fleet.expressions import Options, Tables
from physview.text.nearest import offer

if TYPE_CHECKING:
    import ibis


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
            "The hour in which the coverage of a program fell most.",
            group_questions.thp_loss,
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
            "Growth since the first hour of a boot, and the hour in which they grew most.",
            group_questions.page_tables,
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
            "Pages that went to and came from swap, by host and hour.",
            machine_questions.swap_hours,
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
            "Resident and swapped memory that grew in every hour of the time shown.",
            group_questions.leaks,
            ("step",),
        ),
        Question(
            "worst",
            "The largest values of a column",
            "For each group, zone or machine, its largest value, and the hour of it.",
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


def build(question: Question, tables: Tables, options: Options) -> tuple[list[AnswerColumn], Any]:
    """Make the expression of a question, limited to the number of rows that is wanted."""
    columns, expression = question.build(tables, options)
    expression = expression.select([column.name for column in columns])
    if options.limit is not None:
        expression = expression.limit(options.limit)
    return columns, expression
