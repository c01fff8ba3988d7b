# SPDX-License-Identifier: GPL-2.0-or-later
"""A quiz that was taken: the answers, the score, the machine and the time."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any, NamedTuple

from physview.labs.model import Lab
from physview.model import PAGE_SIZE
from physview.runtime.version import __version__


class QuizMachine(NamedTuple):
    """The machine on which a quiz was taken.

    Args:
        host: Its name.
        kernel: The release of its kernel.
        architecture: As uname(2) names it, for example "x86_64".
        page_size_bytes: The size of a page.
        memory_bytes: The size of its RAM.
        physview: The version of physview.
    """

    host: str
    kernel: str
    architecture: str
    page_size_bytes: int
    memory_bytes: int
    physview: str


class TakenQuiz(NamedTuple):
    """The result of a quiz.

    Args:
        lab: The lab.
        chosen: Index of the user's answer to each question; None if there is none.
        right: Index of the right answer, as the lab measured it; None if it did not decide it.
        is_usual: Whether every check of the lab had the result that most machines give.
        started: The time of the first question, with its offset to UTC.
        ended: The time of the last answer.
        machine: Where it was taken.
    """

    lab: Lab
    chosen: tuple[int | None, ...]
    right: tuple[int | None, ...]
    is_usual: bool
    started: datetime
    ended: datetime
    machine: QuizMachine

    @property
    def nr_right(self) -> int:
        """Number of right answers."""
        pairs = zip(self.chosen, self.right, strict=True)
        return sum(mine == right is not None for mine, right in pairs)

    @property
    def nr_decided(self) -> int:
        """Number of questions that the measurements decided. The others do not count."""
        return sum(right is not None for right in self.right)

    @property
    def seconds(self) -> float:
        """How long the questions took."""
        return (self.ended - self.started).total_seconds()


def this_machine() -> QuizMachine:
    """Return the machine on which this process runs."""
    system = os.uname()
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE
    return QuizMachine(
        system.nodename, system.release, system.machine, PAGE_SIZE, memory, __version__
    )


def document(quiz: TakenQuiz) -> dict[str, Any]:
    """Return a quiz as plain data for JSON. docs/json.md describes the format."""
    return {
        "lab": quiz.lab.name,
        "title": quiz.lab.title,
        "nr_right": quiz.nr_right,
        "nr_decided": quiz.nr_decided,
        "nr_questions": len(quiz.chosen),
        "usual": quiz.is_usual,
        "started": quiz.started.isoformat(timespec="seconds"),
        "ended": quiz.ended.isoformat(timespec="seconds"),
        "machine": quiz.machine._asdict(),
        "questions": [
            {
                "question": question.text,
                "choices": list(question.choices),
                "chosen": mine,
                "answer": right,
            }
            for question, mine, right in zip(
                quiz.lab.questions, quiz.chosen, quiz.right, strict=True
            )
        ],
    }
