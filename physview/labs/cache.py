# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab cache: a file that was evicted from the page cache returns in other frames."""

from __future__ import annotations

import os

from physview.labs import evict, observe, probe_process, requirements
from physview.labs.memory import occupied_memory
from physview.labs.model import PADDR, Evidence, EvidenceColumn, Lab, Question
from physview.model import Translation

NAME = "cache"
TITLE = "dropping the page cache"
LABELS = ("main", "lmsg", "gmsg", probe_process.MALLOC)
# The kernel reuses recently freed frames first. This much memory, held during the last repetition,
# uses up the evicted frames in every size of free block.
HELD_BYTES = 32 << 20
PLAN = (
    "Starts a new process twice. main, lmsg and gmsg are in pages of physview's own library and"
    " keep their physical addresses. Then the lab evicts this one file from the page cache"
    " (posix_fadvise DONTNEED), and starts a third process. malloc() is in the C library, which all"
    " processes use, so the lab does not evict it. With --machine the lab does what the course"
    " does: sync, and drop all caches of the machine."
)
QUESTIONS = (
    Question(
        "main had the same physical address in two processes. Its file is then evicted from the"
        " page cache. Where is main in the next process?",
        ("in the same frame: the file is the same", "usually in another frame"),
        1,
        "The kernel reads the file again, into any free frames. If another process maps the file,"
        " for example a physview in a second terminal, the pages stay in their frames; the lab"
        " says so.",
    ),
    Question(
        "malloc() is in the C library, which all processes map. Where is malloc() in the next"
        " process?",
        ("in another frame, too", "in the same frame as before"),
        1,
        "Some process maps the C library at any time. Neither this lab nor drop_caches evicts a"
        " page that a process maps.",
    ),
)


def run(machine: bool = False) -> Evidence:
    """Evict physview's own library from the page cache, or with `machine` drop all caches."""
    evidence = Evidence(NAME)
    first, second = _run_once(), _run_once()
    path = _mapped_path(second[0])
    frames = _cached_frames(path)
    # This process maps the file, too. Do not call the compiled core from here to the third
    # process: a call would fault the file's pages in again.
    evict.unmap_clean_pages(path)
    if machine:
        cached_before, cached_after, seconds = evict.drop_caches()
        evidence.check(
            "cost",
            cached_after < cached_before,
            f"Dropping the machine's caches took {seconds:.1f} s. The page cache had"
            f" {cached_before >> 20} MiB before and has {cached_after >> 20} MiB now. All processes"
            " now wait for the disk until the files that they need are cached again.",
            f"The machine's caches were dropped, but {cached_after >> 20} MiB are cached now and"
            f" {cached_before >> 20} MiB were cached before. All of the page cache is mapped, or in"
            " tmpfs, or it was read again already.",
        )
    else:
        evict.evict(path)
    with occupied_memory(HELD_BYTES):
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
    with probe_process.start() as process:
        return observe.translate(process.addresses(*LABELS), process.pid, with_vma=True)


def _mapped_path(found: Translation) -> str:
    assert found.vma
    return found.vma.path


def _cached_frames(path: str) -> dict[int, int]:
    from physview.sources.page_cache import PageCache

    with PageCache(with_frames=True) as cache:
        return observe.cached_frames(cache, path)


def _tabulate(
    evidence: Evidence,
    first: list[Translation],
    second: list[Translation],
    third: list[Translation],
) -> None:
    table = evidence.table(
        "labels",
        "physical addresses in three processes; * means: changed",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("file", "file"),
            EvidenceColumn("first", "process 1", PADDR),
            EvidenceColumn("second", "process 2", PADDR),
            EvidenceColumn("third", "process 3, after eviction", PADDR),
        ],
    )
    for label, one, two, three in zip(LABELS, first, second, third, strict=True):
        changed = ["second"] if one.paddr != two.paddr else []
        changed += ["third"] if two.paddr != three.paddr else []
        cells = (observe.paddr_cell(one), observe.paddr_cell(two), observe.paddr_cell(three))
        table.add(label, observe.mapping_name(three), *cells, changed=changed)


def _explain_eviction(evidence: Evidence, path: str, before: int, after: tuple[int, int]) -> None:
    name = os.path.basename(path)
    counts = (
        f"{observe.count_words(before, 'page')} of {name} {'was' if before == 1 else 'were'} cached"
        f" before the eviction, and {after[0]} after it."
    )
    still = (
        f" {observe.count_words(after[1], 'page')} stayed because another process maps them."
        if after[1]
        else ""
    )
    evidence.check(
        "evicted",
        after[0] < before and not after[1],
        f"{counts} The kernel can drop clean cached pages at any time, because the disk holds the"
        f" same data.{still}",
        f"{counts}{still} The kernel can't drop mapped or dirty pages. A file on tmpfs has no disk"
        " from which it could be read again.",
    )


def _explain_frames(
    evidence: Evidence,
    first: list[Translation],
    second: list[Translation],
    third: list[Translation],
    after: tuple[int, int],
) -> None:
    in_library = [i for i, label in enumerate(LABELS) if label != probe_process.MALLOC]
    stayed = [LABELS[i] for i in in_library if first[i].paddr == second[i].paddr]
    evidence.check(
        "stayed_before",
        len(stayed) == len(in_library),
        f"{', '.join(stayed)} had the same physical addresses in process 1 and in process 2. The"
        " page cache kept the pages when process 1 ended.",
        f"Only {', '.join(stayed) or 'no label'} had the same physical address in process 1 and in"
        " process 2. The file was evicted between them already.",
    )
    changed = [LABELS[i] for i in in_library if second[i].paddr != third[i].paddr]
    same = [LABELS[i] for i in in_library if second[i].paddr == third[i].paddr]
    why = (
        "Their pages were not evicted, because another process maps them"
        if after[1]
        else "Their pages were not evicted"
        if after[0]
        else "Their pages were evicted, and then read into the same frames again"
    )
    by_chance = f" Only {', '.join(same)} returned to the same frame, by chance." if same else ""
    evidence.check(
        "changed_after",
        bool(changed) and not (same and after[0]),
        f"{', '.join(changed)} changed after the eviction. The kernel read the file again, into any"
        f" free frames. The file's content is the same, but its frames are different.{by_chance}",
        f"After the eviction {', '.join(same)} stayed, and {', '.join(changed) or 'no label'}"
        f" changed. {why}.",
    )
    evidence.answer(1 if "main" in changed else 0)


def _explain_libc(
    evidence: Evidence, before: Translation, after: Translation, *, machine: bool
) -> None:
    stayed = before.paddr == after.paddr
    how = "the lab dropped all caches" if machine else "the lab evicted only physview's own file"
    evidence.check(
        "libc",
        stayed,
        f"malloc() in {observe.mapping_name(after)} stayed: {how}"
        + (", but the kernel does not drop pages that a process maps." if machine else "."),
        f"malloc() in {observe.mapping_name(after)} changed, though {how}. No other process maps"
        " this page, or the file was replaced.",
    )
    evidence.answer(1 if stayed else 0)


LAB = Lab(
    NAME,
    TITLE,
    (7,),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.compiled_core, requirements.frame_numbers),
    run,
    options=("machine",),
)
