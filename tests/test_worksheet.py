# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/worksheet.md, docs/key.md and docs/labs.md ask the same questions as the labs."""

import re

import course_questions
import pytest
import worksheet
from paths import ROOT

from physview import labs

SHEET = (ROOT / "docs/worksheet.md").read_text()
KEY = (ROOT / "docs/key.md").read_text()
LABS_PAGE = (ROOT / "docs/labs.md").read_text()


def joined(text):
    """The text without its line breaks, so that a question is found however it is wrapped."""
    return " ".join(text.split())


def numbered(text):
    """Each question by its number."""
    found = re.findall(r"^\*\*(\d+\.\d+)\*\* (.*?)\n\n", text, re.M | re.S)
    assert len({number for number, _ in found}) == len(found)
    return {number: joined(question) for number, question in found}


@pytest.mark.parametrize("name", labs.NAMES)
def test_each_question_of_a_lab_is_on_the_sheet_and_has_a_key(name):
    sheet, key = joined(SHEET), joined(KEY)
    for question in labs.find(name).questions:
        assert question.usual is not None, f"{question.text}: which answer is the usual one?"
        assert question.because.endswith("."), question.text
        assert 0 <= question.usual < len(question.choices)
        choices = " ".join(f"- [ ] {choice}" for choice in question.choices)
        assert f"{question.text} {choices}" in sheet
        choice = question.choices[question.usual]
        answer = f"**{question.usual + 1}) {choice}.** {question.because}"
        assert f"{question.text} {answer}" in key


def test_the_key_has_the_numbers_of_the_sheet_and_the_sheet_no_answers():
    assert numbered(SHEET) == numbered(KEY)
    for experiment in course_questions.EXPERIMENTS.values():
        for question in experiment.questions:
            assert question.answer in joined(KEY)
            assert question.answer not in joined(SHEET)


@pytest.mark.parametrize("row", course_questions.EXPERIMENTS)
def test_the_handout_asks_the_same_questions(row):
    """In the section of the experiment, in this order, and no others."""
    experiment = course_questions.EXPERIMENTS[row]
    (section,) = re.findall(rf"^## {row}\. (.*?)(?=^## )", LABS_PAGE, re.M | re.S)
    assert section.startswith(f"{experiment.title}\n"), section[:80]
    asked = re.findall(r"^\*\*Questions?\.\*\* (.*?)\n\n", section, re.M | re.S)
    expected = " ".join(question.text for question in experiment.questions)
    assert joined(" ".join(asked)) == expected, (
        "docs/labs.md and scripts/course_questions.py have to ask the same"
    )


def test_each_lab_is_named_on_the_sheet_with_its_line():
    for name in labs.NAMES:
        assert f"\nsudo ./scripts/run lab {name} --quiz --save {name}.txt\n" in SHEET


def test_a_question_without_a_usual_answer_is_refused():
    question = labs.find("cow").questions[0]._replace(usual=None)
    with pytest.raises(ValueError, match="has no usual answer"):
        list(worksheet._answer(worksheet.Part("1.1", question, None)))
