# SPDX-License-Identifier: GPL-2.0-or-later
"""Process: arrays, ranges and single addresses."""

import errno
import itertools
import os
import random
import resource

import numpy as np
import pytest
from memory import NORESERVE, PAGE, PRIVATE, SHARED, Region

from physview import NO_ENTRY, Cause, Gap, Process, Translations, UsageError
from physview.analysis.ranges import iter_items
from physview.sources import pagemap as pagemap_module

NO_SCAN = {"without scan": errno.ENOTTY, "in qemu-user": errno.ENOSYS}


@pytest.fixture(params=["pagemap", "reference", *NO_SCAN])
def process(request, monkeypatch):
    if code := NO_SCAN.get(request.param):  # as before Linux 6.7: the same answers, the old way

        def no_scan(*args, **kwargs):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(pagemap_module.fcntl, "ioctl", no_scan)
    source = "reference" if request.param == "reference" else "pagemap"
    with Process("self", source=source) as process:
        yield process


def pages_of(pieces):
    """Each page that iter_range() yields, with its frame or cause."""
    for piece in pieces:
        if isinstance(piece, Gap):
            for page in range(piece.start, piece.end, PAGE):
                yield page, piece.cause
        else:
            for translation in piece:
                yield translation.vaddr, translation.cause


def test_an_array_gives_what_single_addresses_give(process):
    region = Region(600).touch(*range(0, 600, 3))
    vaddrs = np.arange(region.start, region.end, PAGE, dtype=np.uint64) + np.uint64(5)
    random.Random(1).shuffle(vaddrs)
    columns = process.translate_array(vaddrs)
    assert isinstance(columns, Translations)
    assert len(columns) == 600
    one_by_one = [process.translate(int(vaddr)) for vaddr in vaddrs]
    assert list(columns) == one_by_one
    assert columns[17] == one_by_one[17]
    assert list(columns.known) == [answer.paddr is not None for answer in one_by_one]


def test_an_array_with_gaps_between_its_items(process):
    region = Region(10).touch()
    vaddrs = np.arange(region.start, region.end, PAGE, dtype=np.uint64)[::2]
    assert [t.vaddr for t in process.translate_array(vaddrs)] == vaddrs.tolist()
    assert (process.translate_array(vaddrs).entries != NO_ENTRY).all()


@pytest.mark.parametrize(
    "wrong",
    [[1, 2], np.arange(3), np.zeros((2, 2), dtype=np.uint64), np.zeros(2, dtype=np.float64)],
)
def test_what_is_not_an_array_of_addresses(process, wrong):
    with pytest.raises(TypeError, match="uint64"):
        process.translate_array(wrong)


@pytest.mark.parametrize("vaddr", [-1, 1 << 64, -(1 << 70)])
def test_what_is_not_an_address(process, vaddr):
    with pytest.raises(UsageError, match="64 bits"):
        process.translate(vaddr)
    with pytest.raises(ValueError, match="64 bits"):
        process.translate_many([0, vaddr])


def test_a_range_is_every_page_once_and_in_order(process):
    region = Region(3000).touch(0, 1, 700, 701, 1500, 2999)
    answers = dict(pages_of(process.iter_range(region.start, region.end, chunk_pages=512)))
    assert list(answers) == list(region.pages)
    absent = [page for page, cause in answers.items() if cause is Cause.ABSENT]
    assert len(absent) == 3000 - 6
    single = process.translate_many(region.pages)
    assert {t.vaddr: t.cause for t in single} == answers


def test_a_range_starts_and_ends_within_pages(process):
    region = Region(3).touch()
    pages = [p for p, _ in pages_of(process.iter_range(region.start + 1, region.start + PAGE + 1))]
    assert pages == list(region.pages[:2])


def test_a_range_over_the_whole_address_space_ends_soon(process):
    gaps = [p for p in iter_items(process, 0, 1 << 64) if isinstance(p, Gap)]
    assert gaps[0].start == 0
    assert gaps[0].cause is Cause.UNMAPPED
    assert gaps[-1].end == 1 << 64
    assert {gap.cause for gap in gaps} >= {Cause.UNMAPPED, Cause.BEYOND, Cause.ABSENT}
    for before, after in itertools.pairwise(gaps):
        assert before.end <= after.start
        assert before.end < after.start or (before.cause, before.vma) != (after.cause, after.vma)


@pytest.mark.needs("pfn")
def test_pages_in_a_row_without_an_address_are_one_item(process):
    region = Region(2000).touch(1000)
    items = list(iter_items(process, region.start, region.end))
    assert [getattr(item, "nr_pages", 1) for item in items] == [1000, 1, 999]
    assert items[1].vaddr == region.start + 1000 * PAGE


def test_pages_in_a_row_of_two_mappings_are_two_items(process):
    region = Region(20)
    first = Region.__new__(Region)
    first.start, first.size = region.start, 10 * PAGE
    first.mprotect(0)
    items = list(iter_items(process, region.start, region.end))
    assert [(item.nr_pages, item.vma.perms) for item in items] == [(10, "---p"), (10, "rw-p")]
    first.size = 0


@pytest.mark.parametrize(
    ("start", "end"), [(8192, 4096), (4096, 4096), (-1, 5), (0, (1 << 64) + 1)]
)
def test_what_is_not_a_range(process, start, end):
    with pytest.raises(UsageError, match="is no range"):
        next(process.iter_range(start, end))


def test_the_user_address_space_ends_at_a_power_of_two(process):
    if os.uname().machine == "x86_64":  # which leaves out the last page
        assert process.user_end() + PAGE in (1 << 47, 1 << 56)
    else:
        assert process.user_end() in (1 << bits for bits in (36, 39, 42, 47, 48, 52))


@pytest.mark.needs("scan")
def test_a_sparse_terabyte_takes_neither_time_nor_memory():
    region = Region((1 << 40) // PAGE, flags=PRIVATE | NORESERVE)
    touched = [random.Random(7).randrange(region.size // PAGE) for _ in range(50)]
    region.touch(*touched)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Process() as process:
        pieces = list(process.iter_range(region.start, region.end))
    assert sum(len(piece) for piece in pieces if isinstance(piece, Translations)) <= 50 * 1024
    known = {
        v
        for piece in pieces
        if isinstance(piece, Translations)
        for v in piece.vaddrs[piece.entries >> np.uint64(63) != 0].tolist()
    }
    assert known == {region.start + index * PAGE for index in touched}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_process_that_maps_and_unmaps_while_it_is_read(python):
    child = python(
        "import threading, memory\n"
        "def churn():\n"
        "    while True:\n"
        "        memory.Region(300).touch()\n"
        "threading.Thread(target=churn, daemon=True).start()",
        wait="import time; time.sleep(600)",
    )
    with Process(child.pid) as process:
        for _ in range(30):
            pages = [page for page, _ in pages_of(process.iter_range(1 << 40, 1 << 40 | 1 << 20))]
            assert pages == sorted(set(pages))
            items = list(iter_items(process, 0, 1 << 47))
            starts = [item.start if isinstance(item, Gap) else item.vaddr for item in items]
            assert starts == sorted(set(starts))


def test_sources_and_pids_that_are_none():
    with pytest.raises(UsageError, match="choose one of auto, pagemap, kmod, bpf, reference"):
        Process(source="guess")
    with pytest.raises(UsageError, match="is no process"):
        Process("1; true")


def test_memory_that_is_shared_and_gone_is_absent_not_swapped(process):
    """pagemap cannot tell swapped-out from untouched shared memory, so the cause names both."""
    region = Region(1, flags=SHARED)
    translation = process.translate(region.start)
    assert translation.cause is Cause.ABSENT
    assert "swapped out" in translation.explanation
