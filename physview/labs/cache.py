# SPDX-License-Identifier: GPL-2.0-or-later
"""What was evicted from the page cache comes back in other frames."""

from __future__ import annotations

import os

from physview.labs import child, evict, look, needs
from physview.labs.base import PADDR, Column, Evidence, Lab, Question
from physview.labs.memory import taken
from physview.model import Translation

NAME = "cache"
TITLE = "dropping the page cache"
LABELS = ("main", "lmsg", "gmsg", child.MALLOC)
# The kernel hands out first what was freed last: more than was evicted, of each size of block.
HELD_BYTES = 32 << 20
PLAN = (
    "Runs a new process twice: main, lmsg and gmsg stay where they are, in pages of physview's own"
    " library. Then it evicts this one file from the page cache (posix_fadvise DONTNEED), and runs"
    " it again. malloc() is in the C library, which all processes use, and is left alone."
    " With --machine it does what the course does: sync, and drop all caches of the machine."
)
QUESTIONS = (
    Question(
        "main kept its physical address from run to run. After its file was evicted from the page"
        " cache, where is it in the next run?",
        ("in the same frame: the file is the same", "in another frame, as a rule"),
    ),
    Question(
        "And malloc(), of the C library, which all processes on the machine map?",
        ("in another frame, too", "in the same frame as before"),
    ),
)


def run(machine: bool = False) -> Evidence:
    """Evict physview's own library, or with `machine` all caches."""
    evidence = Evidence(NAME)
    first, second = _run_once(), _run_once()
    path = _path(second[0])
    frames = _cached_frames(path)
    # This process maps the file, too. From here on to the third run its core must not be called,
    # which would bring it back.
    evict.let_go(path)
    if machine:
        cached_before, cached_after, seconds = evict.drop_caches()
        evidence.check(
            "cost",
            cached_after < cached_before,
            f"The machine's caches were dropped: {cached_before >> 20} MiB of page cache before,"
            f" {cached_after >> 20} MiB after, in {seconds:.1f} s. Everybody now waits for the"
            " disk until what they need is read again.",
            f"The machine's caches were dropped, but of {cached_before >> 20} MiB"
            f" {cached_after >> 20} MiB are cached: all of it is mapped, in tmpfs, or read again.",
        )
    else:
        evict.evict(path)
    with taken(HELD_BYTES):
        left = evict.cached_pages(path)
        nr_mapped = sum(evict.is_mapped(frames[page]) for page in left if page in frames)
        third = _run_once()
    _tabulate(evidence, first, second, third)
    before, after = len(frames), (len(left), nr_mapped)
    _explain_eviction(evidence, path, before, after)
    _explain_frames(evidence, first, second, third, after)
    _explain_libc(evidence, second[-1], third[-1], machine=machine)
    return evidence


def _run_once() -> list[Translation]:
    with child.started() as process:
        return look.look_at(process.of(*LABELS), process.pid, with_vma=True)


def _path(found: Translation) -> str:
    assert found.vma
    return found.vma.path


def _cached_frames(path: str) -> dict[int, int]:
    from physview.sources.page_cache import PageCache

    with PageCache(with_frames=True) as cache:
        return look.cached_frames(cache, path)


def _tabulate(
    evidence: Evidence,
    first: list[Translation],
    second: list[Translation],
    third: list[Translation],
) -> None:
    table = evidence.table(
        "labels",
        "physical addresses in three runs; * changed",
        [
            Column("label", "label"),
            Column("file", "file"),
            Column("first", "run 1", PADDR),
            Column("second", "run 2", PADDR),
            Column("third", "evicted, run 3", PADDR),
        ],
    )
    for label, one, two, three in zip(LABELS, first, second, third, strict=True):
        changed = ["second"] if one.paddr != two.paddr else []
        changed += ["third"] if two.paddr != three.paddr else []
        cells = (look.where(one), look.where(two), look.where(three))
        table.add(label, look.name_of(three), *cells, changed=changed)


def _explain_eviction(evidence: Evidence, path: str, before: int, after: tuple[int, int]) -> None:
    name = os.path.basename(path)
    still = f" {look.count(after[1], 'page')} stayed that another process maps." if after[1] else ""
    evidence.check(
        "evicted",
        after[0] < before and not after[1],
        f"Of {name} {look.count(before, 'page was', 'pages were')} cached before, and"
        f" {after[0]} after: the cache can be dropped at any time, as the disk has it all.{still}",
        f"Of {name} {look.count(before, 'page was', 'pages were')} cached before, and"
        f" {after[0]} after.{still} What is mapped or not yet written can't be dropped; and a file"
        " on tmpfs has no disk that it could be read from again.",
    )


def _explain_frames(
    evidence: Evidence,
    first: list[Translation],
    second: list[Translation],
    third: list[Translation],
    after: tuple[int, int],
) -> None:
    own = [i for i, label in enumerate(LABELS) if label != child.MALLOC]
    stayed = [LABELS[i] for i in own if first[i].paddr == second[i].paddr]
    evidence.check(
        "stayed_before",
        len(stayed) == len(own),
        f"{', '.join(stayed)} stayed from run 1 to run 2, though the process between them was"
        " another: the page cache kept the pages.",
        f"From run 1 to run 2 {', '.join(stayed) or 'nothing'} stayed: something evicted the file"
        " in between already.",
    )
    changed = [LABELS[i] for i in own if second[i].paddr != third[i].paddr]
    same = [LABELS[i] for i in own if second[i].paddr == third[i].paddr]
    why = (
        "their pages were not evicted, as another process maps them"
        if after[1]
        else "their pages were not evicted"
        if after[0]
        else "they were evicted, and read into the frames that they had just left"
    )
    by_chance = f" Only {', '.join(same)} came back where it was, by chance." if same else ""
    evidence.check(
        "changed_after",
        bool(changed) and not (same and after[0]),
        f"{', '.join(changed)} changed after it: the file was read again, into whichever frames"
        f" were free. Same file, same bytes, other frames.{by_chance}",
        f"{', '.join(same)} stayed after it, {', '.join(changed) or 'nothing'} changed: {why}.",
    )
    evidence.answer(1 if "main" in changed else 0)


def _explain_libc(
    evidence: Evidence, before: Translation, after: Translation, *, machine: bool
) -> None:
    stayed = before.paddr == after.paddr
    how = "all caches were dropped" if machine else "only physview's own file was evicted"
    evidence.check(
        "libc",
        stayed,
        f"malloc() in {look.name_of(after)} stayed: {how}"
        + (", but pages that some process maps are not among what is dropped." if machine else "."),
        f"malloc() in {look.name_of(after)} changed, though {how}: no other process maps that"
        " page, or the file was replaced.",
    )
    evidence.answer(1 if stayed else 0)


LAB = Lab(
    NAME,
    TITLE,
    (7,),
    PLAN,
    QUESTIONS,
    needs.needs(NAME, needs.core, needs.frames),
    run,
    options=("machine",),
)
