# SPDX-License-Identifier: GPL-2.0-or-later
"""A quiz that was taken, as a text to hand in and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from physview.labs.model import Question
from physview.labs.quiz import TakenQuiz, document
from physview.model import printable
from physview.units import size_words

WIDTH = 80
TIME = "%Y-%m-%d %H:%M:%S %z"


def to_json(quiz: TakenQuiz) -> str:
    """Return the JSON document of a quiz, as a file's text."""
    return json.dumps(document(quiz), indent=1) + "\n"


def to_text(quiz: TakenQuiz) -> str:
    """Return a quiz as text for people: the score, the machine, the time, and all answers."""
    return "\n".join([*_head(quiz), *_questions(quiz)]) + "\n"


def _head(quiz: TakenQuiz) -> Iterator[str]:
    machine = quiz.machine
    yield f"Quiz of the lab {quiz.lab.name}: {quiz.lab.title}"
    yield f"Score:   {score(quiz)}"
    yield "Name:    ______________________________"
    yield f"Time:    {quiz.started:{TIME}}; the answers took {quiz.seconds:.0f} s"
    yield (
        f"Machine: {printable(machine.host)}, Linux {printable(machine.kernel)}"
        f" {machine.architecture}, {size_words(machine.memory_bytes)} of RAM, pages of"
        f" {size_words(machine.page_size_bytes)}"
    )
    yield f"physview {machine.physview}"
    if not quiz.is_usual:
        yield "This machine behaved differently from most machines. The score counts what it did."


def score(quiz: TakenQuiz) -> str:
    """Return the score in words: right answers of all questions that the lab decided."""
    words = f"{quiz.nr_right} of {quiz.nr_decided} right"
    missing = len(quiz.chosen) - quiz.nr_decided
    if not missing:
        return words
    return f"{words}; {missing} more {'was' if missing == 1 else 'were'} not measured here"


def _questions(quiz: TakenQuiz) -> Iterator[str]:
    every = zip(quiz.lab.questions, quiz.chosen, quiz.right, strict=True)
    for number, (question, mine, right) in enumerate(every, 1):
        yield ""
        yield from textwrap.wrap(f"Question {number}: {question.text}", WIDTH)
        for at, choice in enumerate(question.choices, 1):
            yield from textwrap.wrap(f"{at}) {choice}", WIDTH, subsequent_indent="   ")
        yield f"Answer:  {_chosen(question, mine)}"
        yield f"Verdict: {_verdict(question, mine, right)}"


def _chosen(question: Question, mine: int | None) -> str:
    return "none" if mine is None else f"{mine + 1}) {question.choices[mine]}"


def _verdict(question: Question, mine: int | None, right: int | None) -> str:
    if right is None:
        return "none: this run did not measure it"
    if mine == right:
        return "right"
    return f"wrong; measured was {right + 1}) {question.choices[right]}"
