# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes docs/worksheet.md, which students fill in and hand in, and docs/key.md with the answers.

Both are made from the labs' questions (physview/labs) and from course_questions.py, so they have
the same questions with the same numbers. scripts/generate.py writes them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

from course_questions import EXPERIMENTS, OpenQuestion

from physview import labs
from physview.labs.model import Lab, Question

WIDTH = 128
RULE = "_" * 72
"""A line to write on: Markdown draws it as a rule, and it is a line in plain text, too."""
NR_RULES = 3
MADE = "<!-- Made by scripts/generate.py: do not edit. -->"
NOT_OF_THE_COURSE = "More experiments"

SHEET_HEAD = f"""{MADE}

# Worksheet: where a process's memory is

```
Name:
Date:
Machine (the line "kernel" of physview doctor):
```

The experiments are in [labs.md](labs.md). This sheet has all their questions, and room for the
answers.

- A question with boxes has answers to choose from. Choose one **before** you run the lab. With
  `--quiz` the lab asks the same questions, and says afterwards which answers were right on your
  machine. `--save FILE` writes your answers and the score to FILE and FILE.json: hand in both.
- Answer the other questions in your own words, after the experiment.
- In a VM, or if physview is installed, write `physview` instead of `sudo ./scripts/run`.
"""

KEY_HEAD = f"""{MADE}

# Key to the worksheet

These are the answers to the questions of the [worksheet](worksheet.md), by the same numbers. If a
question has answers to choose from, the key names the answer that most machines give. `lab NAME
--quiz` judges by what it measures instead. So if a student's machine behaves differently, the file
of `--save` has the answer that is right there.

## What to expect

| | x86-64 | arm64 |
| --- | --- | --- |
| size of a page | 4 KiB | 4, 16 or 64 KiB, as the kernel was built |
| bits of the offset | 12 | 12, 14 or 16 |
| size of a huge page | 2 MiB | 2, 32 or 512 MiB |
| levels of page tables | 4, or 5 with LA57 | 2 to 5 |
| system calls in stacks | `__x64_sys_…` | `__arm64_sys_…` |
| buffers that begin in a page (5) | at most 1 | at most 1; 3 or 4; 15 or 16 |
| bits of an index in a table (levels) | 9 | 9, 11 or 13; fewer in the root |
| `physview vm` | yes | yes, tried in emulation only; or on x86-64 with `--arch arm64` |

The labs have been run on x86-64, and in emulated arm64 VMs with pages of 4 and 16 KiB.

| | on the machine itself | in a VM with KVM | in a VM with TCG (emulation) |
| --- | --- | --- | --- |
| physical addresses | real | the guest's, which the host maps again | as with KVM |
| start of the VM | | faster than with TCG | 10 to 40 seconds |
| a lab takes | less than 2 seconds | about as long | about ten times as long |
| five levels (`--la57 on`) | if the processor has LA57 | if the processor has LA57 | always |
| free memory | fragmented | long contiguous runs | long contiguous runs |

The answers are the same in all three. Numbers and addresses differ with each run.
"""


class Part(NamedTuple):
    """A question of the worksheet, with its number.

    Args:
        number: As "4.2".
        question: A lab's question, or one of the experiment.
        lab: The lab whose question it is; None for one of the experiment.
    """

    number: str
    question: Question | OpenQuestion
    lab: Lab | None


class Section(NamedTuple):
    """A section of the worksheet.

    Args:
        heading: The heading, with its level.
        link: The link to its section of docs/labs.md.
        labs: The labs that answer its questions.
        parts: The questions.
    """

    heading: str
    link: str
    labs: tuple[Lab, ...]
    parts: tuple[Part, ...]


def sections() -> Iterator[Section]:
    """Return the experiments of the course in order, then each lab that is not of the course."""
    every = [labs.find(name) for name in labs.NAMES]
    for row, experiment in EXPERIMENTS.items():
        # A lab of several experiments stands at the last of them, as in docs/labs.md.
        mine = tuple(lab for lab in every if lab.rows and lab.rows[-1] == row)
        yield _section(f"## {row}. {experiment.title}", str(row), experiment.questions, mine)
    rest = [lab for lab in every if not lab.rows]
    for at, lab in enumerate(rest, len(EXPERIMENTS) + 1):
        # The name of a function stays as it is.
        is_name = lab.title.split(" ")[0].endswith("()")
        title = lab.title if is_name else lab.title[0].upper() + lab.title[1:]
        yield _section(f"### {at}. {title}", str(at), (), (lab,))


def _section(
    heading: str, number: str, questions: tuple[OpenQuestion, ...], mine: tuple[Lab, ...]
) -> Section:
    asked: list[tuple[Question | OpenQuestion, Lab | None]] = []
    asked += [(question, lab) for lab in mine for question in lab.questions]
    asked += [(question, None) for question in questions]
    parts = [Part(f"{number}.{at}", *each) for at, each in enumerate(asked, 1)]
    is_of_course = heading.startswith("## ")
    link = f"labs.md#{_anchor(heading if is_of_course else NOT_OF_THE_COURSE)}"
    return Section(heading, link, mine, tuple(parts))


def _anchor(heading: str) -> str:
    """Return the anchor of a heading, by GitHub's rule."""
    return re.sub(r"[^\w -]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def worksheet() -> str:
    """Return the text of docs/worksheet.md."""
    return _page(SHEET_HEAD, _ask, with_runs=True)


def key() -> str:
    """Return the text of docs/key.md."""
    return _page(KEY_HEAD, _answer, with_runs=False)


def _page(head: str, show: Callable[[Part], Iterator[str]], *, with_runs: bool) -> str:
    lines = [head]
    is_more = False
    for section in sections():
        if section.heading.startswith("###") and not is_more:
            is_more = True
            lines += [f"## {NOT_OF_THE_COURSE}", ""]
        lines += [section.heading, ""]
        if with_runs:
            lines += [f"How to do it: [labs.md]({section.link}).", ""]
            for lab in section.labs:
                run = f"sudo ./scripts/run lab {lab.name} --quiz --save {lab.name}.txt"
                lines += ["```", run, "```", ""]
        for part in section.parts:
            lines += [*show(part), ""]
    return "\n".join(lines)


def _ask(part: Part) -> Iterator[str]:
    yield from _paragraph(f"**{part.number}** {part.question.text}")
    yield ""
    if isinstance(part.question, Question):
        for choice in part.question.choices:
            yield from _paragraph(f"- [ ] {choice}", "  ")
        return
    for at in range(NR_RULES):
        yield from ([""] if at else [])
        yield RULE


def _answer(part: Part) -> Iterator[str]:
    yield from _paragraph(f"**{part.number}** {part.question.text}")
    yield ""
    if isinstance(part.question, OpenQuestion):
        yield from _paragraph(part.question.answer)
        return
    if part.question.usual is None:
        raise ValueError(f"{part.number}: {part.question.text}: this question has no usual answer")
    choice = part.question.choices[part.question.usual]
    yield from _paragraph(f"**{part.question.usual + 1}) {choice}.** {part.question.because}")


def _paragraph(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
    )
