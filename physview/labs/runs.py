# SPDX-License-Identifier: GPL-2.0-or-later
"""The program run again and again: which addresses stay, which change, and why."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from physview.errors import PhysviewError, UsageError
from physview.labs import child, look, needs
from physview.labs.base import Cell, Column, Evidence, Lab, Question, Table
from physview.model import Translation

NAME = "runs"
TITLE = "what stays from run to run"
MAX_RUNS = 100
PLAN = (
    "Runs a new process several times, looks where memview's addresses are in each, and does so"
    " again with address space randomization (ASLR) turned off for those processes alone. Then it"
    " looks up in the page cache what stayed."
)
QUESTIONS = (
    Question(
        "The same program, run again: what becomes of the virtual address of main?",
        ("it stays", "it changes from run to run"),
    ),
    Question(
        "And of its physical address?",
        ("it stays", "it changes from run to run"),
    ),
)


class Label(NamedTuple):
    """What became of one label."""

    name: str
    found: list[Translation]  # in each run with ASLR
    without: list[Translation]  # in each run without

    @property
    def nr_virtual(self) -> int:
        """How many different virtual addresses, with ASLR."""
        return len({one.vaddr for one in self.found})

    @property
    def nr_virtual_without(self) -> int:
        """The same without ASLR."""
        return len({one.vaddr for one in self.without})

    @property
    def nr_physical(self) -> int:
        """How many different physical addresses, of all runs."""
        return len({one.paddr for one in self.found + self.without})

    @property
    def is_of_file(self) -> bool:
        """Whether it lies in a page of a file, and not in a copy."""
        return look.is_of_file(self.found[-1])


def run(nr_runs: int = 3) -> Evidence:
    """Run it `nr_runs` times with ASLR, and as often without."""
    if not 2 <= nr_runs <= MAX_RUNS:
        raise UsageError(f"{nr_runs} runs are no choice", "", f"choose from 2 to {MAX_RUNS}")
    evidence = Evidence(NAME)
    names, found, has_aslr = _run_all(nr_runs, aslr=True)
    _, without, kept_aslr = _run_all(nr_runs, aslr=False)
    if kept_aslr:
        without = []
        evidence.note(
            "ASLR could not be turned off: personality() is forbidden here, as by a container's"
            " seccomp filter; docker run --security-opt seccomp=unconfined allows it"
        )
    labels = [
        Label(name, [run[i] for run in found], [run[i] for run in without])
        for i, name in enumerate(names)
    ]
    if look.are_hidden(found[0]):
        _tabulate(evidence, labels, {}, nr_runs)
        _explain_virtual(evidence, labels, nr_runs, has_aslr=has_aslr)
        look.note_hidden(evidence)
        evidence.answer(None)
        return evidence
    proof = _look_into_page_cache(labels)
    _tabulate(evidence, labels, proof, nr_runs)
    _explain_virtual(evidence, labels, nr_runs, has_aslr=has_aslr)
    _explain_physical(evidence, labels, proof)
    return evidence


def _run_all(nr_runs: int, *, aslr: bool) -> tuple[list[str], list[list[Translation]], bool]:
    """The labels, where they were in each run, and whether the kernel was to use ASLR."""
    found = []
    names: list[str] = []
    has_aslr = aslr
    for _ in range(nr_runs):
        with child.started(aslr=aslr) as process:
            has_aslr = process.has_aslr
            names = [probe.label for probe in process.probes]
            vaddrs = [probe.vaddr for probe in process.probes]
            found.append(look.look_at(vaddrs, process.pid, with_vma=True))
    return names, found, has_aslr


def _look_into_page_cache(labels: list[Label]) -> dict[str, int]:
    """Of labels in files, the frame in which the page cache has that page of that file."""
    from physview.sources.page_cache import PageCache

    wanted: dict[str, dict[int, list[str]]] = {}
    for label in labels:
        last = label.found[-1]
        if label.is_of_file and last.vma:
            pages = wanted.setdefault(last.vma.path, {})
            pages.setdefault(look.page_of_file(last), []).append(label.name)
    proof: dict[str, int] = {}
    with PageCache(with_frames=True) as cache:
        for path, pages in wanted.items():
            with suppress(PhysviewError):  # it was removed, or another has its place
                for page, pfn in look.cached_frames(cache, path).items():
                    proof.update(dict.fromkeys(pages.get(page, []), pfn))
    return proof


def _tabulate(
    evidence: Evidence, labels: list[Label], proof: dict[str, int], nr_runs: int
) -> Table:
    table = evidence.table(
        "labels",
        f"{nr_runs} runs with ASLR and {nr_runs} without, a new process each; * changed",
        [
            Column("label", "label"),
            Column("virtual", "virtual"),
            Column("virtual_without", "without ASLR"),
            Column("physical", "physical"),
            Column("what", "its page is"),
        ],
    )
    for label in labels:
        words: list[Cell] = [label.name, _words(label.nr_virtual)]
        changed = ["virtual"] if label.nr_virtual > 1 else []
        words.append(_words(label.nr_virtual_without) if label.without else None)
        changed += ["virtual_without"] if label.nr_virtual_without > 1 else []
        causes = [one.cause for one in label.found if one.cause]
        words.append(causes[0] if causes else _words(label.nr_physical))
        changed += ["physical"] if label.nr_physical > 1 else []
        words.append(_what(label, proof))
        table.add(*words, changed=changed)
    return table


def _words(nr_different: int) -> str:
    return "stayed" if nr_different == 1 else f"{nr_different} different"


def _what(label: Label, proof: dict[str, int]) -> str:
    last = label.found[-1]
    name = look.name_of(last)
    if not label.is_of_file:
        is_copy = last.vma is not None and last.vma.inode != 0
        return f"a private copy of {name}" if is_copy else f"anonymous, {name}"
    page = f"page {look.page_of_file(last)} of {name}"
    if last.pfn is None:
        return page
    return page + (", cached" if proof.get(label.name) == last.pfn else ", not the cached one")


def _explain_virtual(
    evidence: Evidence, labels: list[Label], nr_runs: int, *, has_aslr: bool
) -> None:
    moved = [label.name for label in labels if label.nr_virtual > 1]
    with open("/proc/sys/kernel/randomize_va_space", "rb") as file:
        setting = int(file.read())
    evidence.check(
        "aslr",
        len(moved) == len(labels),
        f"With ASLR all {len(labels)} virtual addresses changed: the kernel places the stack, the"
        " heap, the program and each library anew for every process.",
        f"Only {len(moved)} of {len(labels)} virtual addresses changed in {nr_runs} runs, though"
        " ASLR was not turned off for them: "
        + (
            f"/proc/sys/kernel/randomize_va_space is {setting}, where 2 randomizes all, 1 all but"
            " the heap, 0 nothing; and a program that is not position-independent does not move."
            if has_aslr
            else "it was off already in who started this lab (personality ADDR_NO_RANDOMIZE, as"
            " setarch -R sets it, or a debugger), and processes inherit that."
        ),
    )
    main = next(label for label in labels if label.name == "main")
    evidence.answer(1 if main.nr_virtual > 1 else 0)
    if not main.without:
        return
    stayed = [label.name for label in labels if label.nr_virtual_without == 1]
    others = [label.name for label in labels if label.nr_virtual_without > 1]
    evidence.check(
        "no_aslr",
        len(stayed) == len(labels),
        f"Without ASLR all {len(labels)} stayed: nothing else is random in where they are.",
        f"Without ASLR {len(stayed)} of {len(labels)} stayed, and {', '.join(others[:4])}"
        f"{' and others' if len(others) > 4 else ''} changed: the processes did not do all the"
        " same before, as when a file was newer than what was compiled of it.",
    )


def _explain_physical(evidence: Evidence, labels: list[Label], proof: dict[str, int]) -> None:
    of_files = [label for label in labels if label.is_of_file]
    stayed = [label.name for label in of_files if label.nr_physical == 1]
    proved = [label for label in of_files if proof.get(label.name) == label.found[-1].pfn]
    evidence.check(
        "page_cache",
        len(of_files) > 0 and len(stayed) == len(of_files) == len(proved),
        f"{', '.join(stayed)} kept the physical address: each is in a page of a file, and the page"
        " cache has that page of that file in that very frame. It is read from the disk once, and"
        " mapped into every process that runs it.",
        f"Of {len(of_files)} labels in pages of files {len(stayed)} kept the physical address, and"
        f" {len(proved)} are where the page cache has them now: pages of files were evicted and"
        " read again between the runs, for want of memory or because somebody dropped the caches.",
    )
    main = next(label for label in labels if label.name == "main")
    evidence.answer(0 if main.nr_physical == 1 else 1)
    anonymous = [label for label in labels if not label.is_of_file]
    changed = [label.name for label in anonymous if label.nr_physical > 1]
    same = [label.name for label in anonymous if label.nr_physical == 1]
    by_chance = f" Only {', '.join(same)} got the same frame again, by chance." if same else ""
    copies = [
        label.name for label in anonymous if label.found[-1].vma and label.found[-1].vma.inode
    ]
    of_copies = (
        f" {', '.join(copies)} lies in a file's mapping, but it was written to, and since then has"
        " a private copy of the page."
        if copies
        else ""
    )
    evidence.check(
        "anonymous",
        len(changed) > len(same),
        f"{look.count(len(changed), 'label')} in anonymous memory changed: stack, heap and private"
        f" copies are made anew for every process, in frames that happen to be free.{by_chance}"
        f"{of_copies}",
        f"Of {len(anonymous)} labels in anonymous memory {len(same)} got the same frame in every"
        " run: nothing else runs here, and the kernel hands out first what was freed last.",
    )


LAB = Lab(
    NAME, TITLE, (6,), PLAN, QUESTIONS, needs.needs(NAME, needs.core), run, options=("nr_runs",)
)
