# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the course's experiments (labs) on this machine, and explain them from the measurements.

Without a name, all labs are listed. A lab says what it will do, does it with real processes, shows
what it found, and draws its conclusions from these findings. If this machine behaves differently
from most machines, the lab says so, and exits with 1. A lab undoes its changes to the machine.
--all does every lab that this machine can do, and names the others, with a command that does them.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.model import printable
from physview.runtime import invocation

if TYPE_CHECKING:
    from physview.labs.model import Evidence, Lab
    from physview.labs.quiz import TakenQuiz

NAME = "lab"
HELP = "the course's experiments, run on this machine and explained from the measurements"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="which lab; without a name, all are listed"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="run every lab that this machine can do; then name the others, each with the command"
        " that runs it, for example in a VM",
    )
    parser.add_argument(
        "--quiz",
        action="store_true",
        help="ask questions first, on the terminal or from stdin, and say afterwards which answers"
        " were right",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="with --quiz: write the score, the answers, the machine and the time to FILE, to hand"
        " in; and the same as JSON to FILE.json",
    )
    _common.add_force_option(parser)
    parser.add_argument(
        "--machine",
        action="store_true",
        help="with cache: drop all caches of the machine, as the course does, not only one file's",
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """List the labs, or run one."""
    from physview import labs
    from physview.labs.model import document

    if args.all:
        return _run_all(args)
    if args.name is None:
        return _list(args)
    lab = labs.find(args.name)
    if args.machine and "machine" not in lab.options:
        raise UsageError(f"the lab {lab.name} has no --machine", "", "only cache has it")
    if args.machine:
        from physview.labs import evict

        evict.check_may_drop_caches()
    if args.quiz and args.json:
        raise UsageError("--quiz and --json exclude each other", "", "leave out one")
    _check_save(args)
    why = lab.why_not()
    if why:
        raise why
    options = {"machine": True} if args.machine else {}
    if args.json:
        from physview.reporters import documents

        evidence = labs.run(lab.name, **options)
        documents.write(document(lab, evidence))
        return int(not evidence.is_usual)
    if args.quiz:
        return _ask_and_do(lab, options, args.save, overwrite=args.force)
    return _do(lab, options)


def _check_save(args: argparse.Namespace) -> None:
    """Check --save and --force before the first question is asked."""
    if args.save is not None and not args.quiz:
        raise UsageError("--save needs --quiz", "", "add that, or leave out --save")
    if args.force and args.save is None:
        raise UsageError("--force needs --save FILE", "", "add that, or leave out --force")
    if args.save is not None:
        from physview.files.atomic_file import check_target

        for path in (args.save, f"{args.save}.json"):
            check_target(path, overwrite=args.force)


def _list(args: argparse.Namespace) -> int:
    from physview import labs

    if args.quiz or args.machine or args.save is not None or args.force:
        lab = invocation.physview("lab")
        raise UsageError("which lab?", "", f"{lab} NAME; {lab} lists them")
    found = [labs.find(name) for name in labs.NAMES]
    why_not = [str(lab.why_not() or "") for lab in found]
    if args.json:
        from physview.reporters import documents

        entries = [
            {
                "lab": lab.name,
                "title": lab.title,
                "course_rows": list(lab.rows),
                "plan": lab.plan,
                "why_not": why or None,
            }
            for lab, why in zip(found, why_not, strict=True)
        ]
        documents.write({"labs": entries})
        return 0
    from physview.reporters import lab as reporter

    # The error begins with the lab that cannot run, which the line names already.
    short = [why.partition(": ")[2].partition(";")[0] for why in why_not]
    reporter.print_labs(zip(found, short, strict=True))
    return 0


def _run_all(args: argparse.Namespace) -> int:
    """Run all labs that can run here. Exit with 1 if one failed, or was not as on most machines."""
    from physview import labs

    if args.name is not None:
        raise UsageError(f"--all and a lab, {args.name}, exclude each other", "", "leave out one")
    for option in ("quiz", "save", "force", "machine"):
        if getattr(args, option):
            raise UsageError(f"--all and --{option} exclude each other", "", "leave out one")
    found = [labs.find(name) for name in labs.NAMES]
    done: list[tuple[Lab, Evidence]] = []
    not_done: list[tuple[Lab, PhysviewError]] = []
    exit_code = 0
    for lab in found:
        why = lab.why_not()
        if isinstance(why, PhysviewError):
            not_done.append((lab, why))
            continue
        try:
            evidence = _run_one(lab, is_first=not done, quiet=args.json)
        except PhysviewError as error:
            _common.say(str(error))
            not_done.append((lab, error))
            exit_code = 1
            continue
        done.append((lab, evidence))
        exit_code |= not evidence.is_usual
    _print_all(args, done, not_done)
    return int(exit_code)


def _run_one(lab: Lab, *, is_first: bool, quiet: bool) -> Evidence:
    from physview import labs
    from physview.reporters import lab as reporter

    if quiet:
        return labs.run(lab.name)
    if not is_first:
        sys.stdout.write("\n\n")
    reporter.print_plan(lab)
    evidence = labs.run(lab.name)
    reporter.print_evidence(evidence)
    return evidence


def _print_all(
    args: argparse.Namespace,
    done: list[tuple[Lab, Evidence]],
    not_done: list[tuple[Lab, PhysviewError]],
) -> None:
    from physview.labs.model import document
    from physview.reporters import documents
    from physview.reporters import lab as reporter

    if args.json:
        missing = [{"lab": lab.name, "why": why.why, "remedy": why.remedy} for lab, why in not_done]
        ran = [document(lab, evidence) for lab, evidence in done]
        documents.write({"labs": ran, "not_done": missing})
    else:
        reporter.print_summary(done, not_done)


def _do(lab: Lab, options: dict[str, bool]) -> int:
    from physview import labs
    from physview.reporters import lab as reporter

    reporter.print_plan(lab)
    evidence = labs.run(lab.name, **options)
    reporter.print_evidence(evidence)
    return int(not evidence.is_usual)


def _ask_and_do(lab: Lab, options: dict[str, bool], path: str | None, *, overwrite: bool) -> int:
    """Ask the questions, run the lab, judge the answers, and save them if there is a path."""
    from datetime import datetime

    from physview import labs
    from physview.labs import quiz
    from physview.reporters import lab as reporter

    reporter.print_plan(lab)
    started = datetime.now().astimezone()
    chosen = tuple(_ask(lab, number) for number in range(len(lab.questions)))
    ended = datetime.now().astimezone()
    evidence = labs.run(lab.name, **options)
    reporter.print_evidence(evidence)
    reporter.print_answers(lab.questions, chosen, evidence.answers)
    if path is not None:
        right, machine = tuple(evidence.answers), quiz.this_machine()
        taken = quiz.TakenQuiz(lab, chosen, right, evidence.is_usual, started, ended, machine)
        _save(taken, path, overwrite=overwrite)
    return int(not evidence.is_usual)


def _save(taken: TakenQuiz, path: str, *, overwrite: bool) -> None:
    """Write a quiz to a file, and as JSON to a second one."""
    from physview.files.atomic_file import whole_file
    from physview.reporters import quiz as reporter

    other = f"{path}.json"
    # No addresses are in them, so others may read them. Both are written before one has its name.
    with (
        whole_file(path, overwrite=overwrite, private=False) as text,
        whole_file(other, overwrite=overwrite, private=False) as document,
    ):
        text.write(reporter.to_text(taken).encode("utf-8", "backslashreplace"))
        document.write(reporter.to_json(taken).encode("utf-8", "backslashreplace"))
    print(f"{printable(path)}, {printable(other)}: {reporter.score(taken)}")
    _common.say_if_shared(path)


def _ask(lab: Lab, number: int) -> int | None:
    """Ask until there is a valid answer; None if stdin ends."""
    from physview.reporters import lab as reporter

    question = lab.questions[number]
    reporter.print_question(number + 1, question)
    while True:
        sys.stdout.write(f"Your answer, 1 to {len(question.choices)}: ")
        sys.stdout.flush()
        line = sys.stdin.buffer.readline() if sys.stdin else b""
        answer = line.decode("utf-8", "surrogateescape").strip()
        if not sys.stdin or not sys.stdin.isatty():
            sys.stdout.write(f"{printable(answer)}\n")
        if not line:
            return None
        if answer.isdecimal() and 1 <= int(answer) <= len(question.choices):
            return int(answer) - 1
        sys.stdout.write(f"'{printable(answer)}' is not one of the answers.\n")
