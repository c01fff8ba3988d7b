# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab runs: which addresses stay and which change when a program is run again, and why."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from physview.errors import PhysviewError, UsageError
from physview.labs import observe, probe_process, requirements
from physview.labs.model import Cell, Evidence, EvidenceColumn, EvidenceTable, Lab, Question
from physview.model import Translation

NAME = "runs"
TITLE = "what stays when a program is run again"
MAX_REPETITIONS = 100
PLAN = (
    "Starts a new process several times, and looks up memview's addresses in each. Then the lab"
    " does the same with address space layout randomization (ASLR) turned off for its own"
    " processes only. Last, it looks up in the page cache the pages whose frames stayed the same."
)
QUESTIONS = (
    Question(
        "A program is run again. What happens to the virtual address of main?",
        ("it stays the same", "it changes with each repetition"),
        1,
        "The kernel loads the program at a random address (ASLR). The address stays only if ASLR"
        " is off: under a debugger or setarch -R, or if /proc/sys/kernel/randomize_va_space is 0.",
    ),
    Question(
        "What happens to the physical address of main?",
        ("it stays the same", "it changes with each repetition"),
        0,
        "main is in a page of a file. The page cache holds this page in one frame, and the kernel"
        " maps this frame into every process. The address changes only if the kernel evicts the"
        " page between two repetitions.",
    ),
)


class LabelHistory(NamedTuple):
    """The translations of one label in all repetitions.

    Args:
        name: The label.
        found: The translation in each repetition with ASLR.
        without: The translation in each repetition without ASLR.
    """

    name: str
    found: list[Translation]
    without: list[Translation]

    @property
    def nr_virtual(self) -> int:
        """The number of different virtual addresses with ASLR."""
        return len({one.vaddr for one in self.found})

    @property
    def nr_virtual_without(self) -> int:
        """The number of different virtual addresses without ASLR."""
        return len({one.vaddr for one in self.without})

    @property
    def nr_physical(self) -> int:
        """The number of different physical addresses in all repetitions."""
        return len({one.paddr for one in self.found + self.without})

    @property
    def is_file_page(self) -> bool:
        """Whether the label is in a page of the file itself, not in a private copy."""
        return observe.is_file_page(self.found[-1])


def run(nr_repetitions: int = 3) -> Evidence:
    """Start the process `nr_repetitions` times with ASLR, and as often without ASLR."""
    if not 2 <= nr_repetitions <= MAX_REPETITIONS:
        what = f"the lab {NAME} cannot do {nr_repetitions} repetitions"
        raise UsageError(what, "", f"choose from 2 to {MAX_REPETITIONS}")
    evidence = Evidence(NAME)
    names, found, has_aslr = _repeat(nr_repetitions, aslr=True)
    _, without, kept_aslr = _repeat(nr_repetitions, aslr=False)
    if kept_aslr:
        without = []
        evidence.note(
            "ASLR could not be turned off: personality() is forbidden here, for example by a"
            " container's seccomp filter; docker run --security-opt seccomp=unconfined allows it"
        )
    labels = [
        LabelHistory(name, [each[i] for each in found], [each[i] for each in without])
        for i, name in enumerate(names)
    ]
    if observe.are_hidden(found[0]):
        _tabulate(evidence, labels, {}, nr_repetitions)
        _explain_virtual(evidence, labels, nr_repetitions, has_aslr=has_aslr)
        observe.note_hidden(evidence)
        evidence.answer(None)
        return evidence
    cached_pfns = _find_in_page_cache(labels)
    _tabulate(evidence, labels, cached_pfns, nr_repetitions)
    _explain_virtual(evidence, labels, nr_repetitions, has_aslr=has_aslr)
    _explain_physical(evidence, labels, cached_pfns)
    return evidence


def _repeat(nr_repetitions: int, *, aslr: bool) -> tuple[list[str], list[list[Translation]], bool]:
    """Start the process several times.

    Returns:
        The labels' names; the translation of each label in each repetition; whether ASLR was on.
    """
    found = []
    names: list[str] = []
    has_aslr = aslr
    for _ in range(nr_repetitions):
        with probe_process.start(aslr=aslr) as process:
            has_aslr = process.has_aslr
            names = [probe.label for probe in process.probes]
            vaddrs = [probe.vaddr for probe in process.probes]
            found.append(observe.translate(vaddrs, process.pid, with_vma=True))
    return names, found, has_aslr


def _find_in_page_cache(labels: list[LabelHistory]) -> dict[str, int]:
    """Map each label in a file page to the frame in which the page cache holds this page."""
    from physview.sources.page_cache import PageCache

    wanted: dict[str, dict[int, list[str]]] = {}
    for label in labels:
        last = label.found[-1]
        if label.is_file_page and last.vma:
            pages = wanted.setdefault(last.vma.path, {})
            pages.setdefault(observe.file_page_index(last), []).append(label.name)
    cached_pfns: dict[str, int] = {}
    with PageCache(with_frames=True) as cache:
        for path, pages in wanted.items():
            with suppress(PhysviewError):  # the file was removed or replaced
                for page, pfn in observe.cached_frames(cache, path).items():
                    cached_pfns.update(dict.fromkeys(pages.get(page, []), pfn))
    return cached_pfns


def _tabulate(
    evidence: Evidence,
    labels: list[LabelHistory],
    cached_pfns: dict[str, int],
    nr_repetitions: int,
) -> EvidenceTable:
    table = evidence.table(
        "labels",
        f"{nr_repetitions} processes with ASLR and {nr_repetitions} without; * means: changed",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("virtual", "virtual"),
            EvidenceColumn("virtual_without", "without ASLR"),
            EvidenceColumn("physical", "physical"),
            EvidenceColumn("what", "its page"),
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
        words.append(_page_words(label, cached_pfns))
        table.add(*words, changed=changed)
    return table


def _words(nr_different: int) -> str:
    return "stayed" if nr_different == 1 else f"{nr_different} different"


def _page_words(label: LabelHistory, cached_pfns: dict[str, int]) -> str:
    last = label.found[-1]
    name = observe.mapping_name(last)
    if not label.is_file_page:
        is_copy = last.vma is not None and last.vma.inode != 0
        return f"a private copy of {name}" if is_copy else f"anonymous, {name}"
    page = f"page {observe.file_page_index(last)} of {name}"
    if last.pfn is None:
        return page
    return page + (
        ", cached" if cached_pfns.get(label.name) == last.pfn else ", not the cached one"
    )


def _explain_virtual(
    evidence: Evidence, labels: list[LabelHistory], nr_repetitions: int, *, has_aslr: bool
) -> None:
    changed = [label.name for label in labels if label.nr_virtual > 1]
    with open("/proc/sys/kernel/randomize_va_space", "rb") as file:
        setting = int(file.read())
    evidence.check(
        "aslr",
        len(changed) == len(labels),
        f"With ASLR, all {len(labels)} virtual addresses changed. The kernel places the stack, the"
        " heap, the program and each library at new random addresses in every process.",
        f"Only {len(changed)} of {len(labels)} virtual addresses changed in {nr_repetitions}"
        " repetitions, although the lab did not turn ASLR off. "
        + (
            f"/proc/sys/kernel/randomize_va_space is {setting}: 2 randomizes all addresses, 1 all"
            " but the heap, and 0 none. A program that is not position-independent never moves."
            if has_aslr
            else "The process that started this lab had ASLR off already (personality"
            " ADDR_NO_RANDOMIZE, set by setarch -R or by a debugger), and its children inherit"
            " this."
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
        f"Without ASLR, all {len(labels)} virtual addresses stayed the same. Nothing but ASLR makes"
        " them random.",
        f"Without ASLR, {len(stayed)} of {len(labels)} virtual addresses stayed the same, and"
        f" {', '.join(others[:4])}{' and others' if len(others) > 4 else ''} changed. The processes"
        " did different work before; for example, one of them had to compile a Python file that"
        " was newer than its cached bytecode.",
    )


def _explain_physical(
    evidence: Evidence, labels: list[LabelHistory], cached_pfns: dict[str, int]
) -> None:
    of_files = [label for label in labels if label.is_file_page]
    stayed = [label.name for label in of_files if label.nr_physical == 1]
    cached = [label for label in of_files if cached_pfns.get(label.name) == label.found[-1].pfn]
    evidence.check(
        "page_cache",
        len(of_files) > 0 and len(stayed) == len(of_files) == len(cached),
        f"{', '.join(stayed)} kept their physical addresses. Each of them is in a page of a file,"
        " and the page cache holds this page in the same frame. The kernel reads the page from"
        " disk once, and maps it into every process that runs the file.",
        f"{len(stayed)} of {len(of_files)} labels in pages of files kept their physical addresses,"
        f" and {len(cached)} of them are in the frames where the page cache holds their pages now."
        " Between the repetitions, the kernel evicted pages of files because memory was short or"
        " because a user dropped the caches, and then read the pages again.",
    )
    main = next(label for label in labels if label.name == "main")
    evidence.answer(0 if main.nr_physical == 1 else 1)
    anonymous = [label for label in labels if not label.is_file_page]
    changed = [label.name for label in anonymous if label.nr_physical > 1]
    same = [label.name for label in anonymous if label.nr_physical == 1]
    by_chance = f" Only {', '.join(same)} got the same frame again, by chance." if same else ""
    copies = [
        label.name for label in anonymous if label.found[-1].vma and label.found[-1].vma.inode
    ]
    of_copies = (
        f" {', '.join(copies)} is in a mapping of a file, but the process wrote to the page and has"
        " had a private copy of it since then."
        if copies
        else ""
    )
    evidence.check(
        "anonymous",
        len(changed) > len(same),
        f"{observe.count_words(len(changed), 'label')} in anonymous memory changed. Every process"
        " gets a new stack, a new heap and new private copies, in any free frames."
        f"{by_chance}{of_copies}",
        f"{len(same)} of {len(anonymous)} labels in anonymous memory got the same frame in every"
        " repetition. No other process runs here, and the kernel reuses recently freed frames"
        " first.",
    )


LAB = Lab(
    NAME,
    TITLE,
    (6,),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.compiled_core),
    run,
    options=("nr_repetitions",),
)
