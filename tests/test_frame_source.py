# SPDX-License-Identifier: GPL-2.0-or-later
"""pagemap and the walk by BPF give the same answer, in each command that lets one choose."""

import csv
import io
import json
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from failures import one_line
from guests import compile_program
from memory import (
    HUGE,
    NORESERVE,
    PAGE,
    PRIVATE,
    USER_END,
    WAIT,
    Region,
    pfnmap_ranges,
    raw_entry,
)
from paths import ROOT
from plain_reads import agreed
from readings import extents_of
from users import AS_NOBODY

from physview import Process, Snapshot, UsageError, find_owners
from physview.entry_rules import PM_FILE, PM_MMAP_EXCLUSIVE
from physview.errors import ProcessGone
from physview.memory.extents import ExtentReader, find_zero_pfn
from physview.model import PM_GUARD_REGION, PM_PFRAME_MASK, PM_PRESENT, PM_SWAP, Cause, PagemapEntry
from physview.sources import bpf
from physview.sources.bpf import Bpf
from physview.sources.frame_source import MIN_PAGES, choose_frame_source
from physview.sources.procfs import MemoryMap, ProcDir

pytestmark = pytest.mark.needs("root", "pfn")

CORE_OF_BPF = ("bpf_pages", "bpf_range", "bpf_scan", "bpf_walk", "pagemap", "scan")
COMMON = PM_PRESENT | PM_SWAP | PM_GUARD_REGION | PM_PFRAME_MASK


def by_pagemap(pid, *where, **options):
    return extents_of(pid, *where, frames_only=True, **options)


def by_bpf(pid, *where, **options):
    return extents_of(pid, *where, source="bpf", **options)


@pytest.mark.needs("bpf")
class TestExtents:
    @pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
    @pytest.mark.parametrize("nr_threads", [1, 2])
    @pytest.mark.parametrize("batch", [1 << 14, 600, 5])
    def test_of_memory_of_every_kind(self, stopped, nr_threads, batch):
        options = {"nr_threads": nr_threads, "batch": batch}
        expected = agreed(
            lambda: by_pagemap(stopped.pid), lambda: by_bpf(stopped.pid, use_scan=None, **options)
        )
        kinds = {PagemapEntry(entry).cause for _, entry, _ in expected}
        assert None in kinds
        assert len(expected) > 2500
        zero_pfn = find_zero_pfn()
        zeros = [nr for _, entry, nr in expected if entry & PM_PFRAME_MASK == zero_pfn]
        assert 700 in zeros
        assert max(nr for _, _, nr in expected) >= 512  # a huge page, or zero pages
        assert not any(entry & ~COMMON for _, entry, _ in expected)

    @pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
    def test_without_pagemap_scan(self, stopped):
        agreed(
            lambda: by_pagemap(stopped.pid, use_scan=False),
            lambda: by_bpf(stopped.pid, use_scan=False),
        )

    @pytest.mark.needs("guard")
    def test_guards_are_pagemaps(self):
        region = Region(30).touch()
        region.madvise(Region.MADV_GUARD_INSTALL)
        found = by_bpf("self", region.start, region.end)
        assert found == by_pagemap("self", region.start, region.end)
        assert {PagemapEntry(entry).cause for _, entry, _ in found} == {Cause.GUARD}
        assert sum(nr for _, _, nr in found) == 30

    @pytest.mark.needs("swap")
    def test_swap_entries(self):
        region = Region(2000).touch()
        region.madvise(Region.MADV_PAGEOUT)
        found = agreed(
            lambda: by_pagemap("self", region.start, region.end),
            lambda: by_bpf("self", region.start, region.end),
        )
        assert Cause.SWAPPED in {PagemapEntry(entry).cause for _, entry, _ in found}

    @pytest.mark.needs("pfnmap")
    def test_device_mappings_are_left_out_as_pagemap_does(self):
        (device, *_) = pfnmap_ranges()
        with ProcDir("self") as proc, Bpf(proc) as walker:
            walked = [extents.copy() for extents in walker.iter_extents(device.start, device.stop)]
            assert walked, "the walk sees no page of [vvar]"
        assert by_bpf("self", device.start, device.stop) == []
        assert by_pagemap("self", device.start, device.stop) == []
        # What lies beside it in the same table is not left out with it.
        start = device.start & -HUGE
        assert by_bpf("self", start, start + HUGE) == by_pagemap("self", start, start + HUGE)

    @pytest.mark.needs("thp")
    def test_a_huge_page_and_parts_of_it(self):
        with Region.huge(2) as region:
            region.touch()
            assert region.is_huge()
            many = HUGE // PAGE
            borders = ((0, 2 * many), (5, many + 188), (many - 1, many + 1), (many, many))
            for start, end in (*borders, (many + 88, many + 89)):
                where = region.start + start * PAGE, region.start + end * PAGE
                assert by_bpf("self", *where) == by_pagemap("self", *where)

    def test_more_tables_than_one_call_takes(self):
        """Each page has a table of its own: 9,000 tables, in 18 GiB of addresses (4 KiB pages)."""
        nr = 9000
        region = Region(nr * HUGE // PAGE, flags=PRIVATE | NORESERVE)
        region.touch(*range(0, nr * HUGE // PAGE, HUGE // PAGE))
        calls = []
        with (
            ProcDir("self") as proc,
            ExtentReader(proc, source="bpf") as reader,
            reader._read_call(region.start, reader.borders) as call,
        ):
            at = reader._ffi.new("uint64_t *", region.start)
            extents = reader._allocate("struct pv_extent[]", nr)
            while at[0] < region.end:
                calls.append(call(at, region.end, extents))
        assert sum(calls) == nr
        assert len(calls) > 1
        found = by_bpf("self", region.start, region.end)
        assert [vaddr for vaddr, _, _ in found] == list(range(region.start, region.end, HUGE))

    def test_a_process_that_ends_meanwhile(self, python):
        child = python("from memory import Region; region = Region(5000).touch()", wait=WAIT)
        with ProcDir(child.pid) as proc, ExtentReader(proc, source="bpf", batch=5) as reader:
            extents = reader.iter_extents(nr_threads=1)
            next(extents)
            child.kill()
            child.wait()
            with pytest.raises(ProcessGone, match="it ended"):
                list(extents)
            with pytest.raises(ProcessGone):
                list(reader.iter_extents(nr_threads=2))

    def test_a_process_that_maps_and_unmaps_meanwhile(self, python):
        child = python(
            "from memory import Region; stay = Region(2000).touch()",
            wait="while True:\n r = [Region(100).touch() for _ in range(50)]\n del r[::2]",
        )
        for _ in range(30):
            found = by_bpf(child.pid, batch=64)
            ends = [vaddr + nr * PAGE for vaddr, _, nr in found]
            assert all(end <= after[0] for end, after in zip(ends, found[1:], strict=False))
            assert all(entry & (PM_PRESENT | PM_SWAP) for _, entry, _ in found)
            assert sum(nr for _, _, nr in found) > 2000


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
@pytest.mark.needs("bpf", "kpage")
class TestCommands:
    """What a command prints is the same, except for the name of the source."""

    def same(self, physview, *words, choose=tuple):
        """What is printed, whichever source it is from.

        Args:
            physview: Runs a command.
            words: The command.
            choose: A function that makes more words, anew for each try: the kernel may move a page.
        """
        more = []

        def by(source):
            result = physview(*words, *more, "--source", source)
            assert result.returncode in (0, 1)
            return result.stdout.replace(f'"source": "{source}"', '"source": ""'), result.stderr

        def first():
            more[:] = choose()
            return by("pagemap")

        printed, _ = agreed(first, lambda: by("bpf"))
        return printed

    def test_pages(self, physview, stopped):
        words = ("pages", str(stopped.pid), "--columns", "node")
        assert len(self.same(physview, *words).splitlines()) > 2500

        def of_json():
            document = json.loads(self.same(physview, *words, "--json"))
            assert document["source"] == ""
            return len(document["extents"])

        def of_csv():
            rows = csv.reader(io.StringIO(self.same(physview, *words, "--format", "csv")))
            return len(list(rows)) - 1

        agreed(of_json, of_csv)

    def test_the_summary_of_pages(self, physview, stopped):
        def by(source):
            words = ("pages", str(stopped.pid), "--summary", "--json", "--source", source)
            document = json.loads(physview(*words).stdout)
            assert document.pop("source") == source
            assert document.pop("flag_source") in ("kpageflags", source)
            counts = Counter()
            for count in document.pop("counts"):
                # A kernel that watches which pages are used changes these flags all the time.
                flags = set(count["flags"]) - {"referenced", "active", "idle"}
                counts[frozenset(flags)] += count["nr_pages"]
            return document, counts

        document, _ = agreed(lambda: by("pagemap"), lambda: by("bpf"))
        assert document["nr_pages"] > 10_000

    def test_owners(self, physview, stopped):
        def frames():
            mapped = [entry & PM_PFRAME_MASK for _, entry, _ in by_bpf(stopped.pid) if entry >> 63]
            chosen = mapped[:: len(mapped) // 40]
            return [f"pfn:{pfn:#x}" for pfn in (*chosen, find_zero_pfn())]

        printed = self.same(physview, "owners", "--pid", str(stopped.pid), choose=frames)
        assert printed.count(f"\n  {stopped.pid} ") >= 40

    def test_owners_among_all_processes(self, stopped):
        """Frames that only this process maps."""
        mine = PM_PRESENT | PM_MMAP_EXCLUSIVE  # and not PM_FILE, which others may map meanwhile
        entries = [entry for _, entry, _ in extents_of(stopped.pid)]
        own = [e & PM_PFRAME_MASK for e in entries if e & (mine | PM_FILE) == mine]
        runs = [(pfn, pfn + 1) for pfn in own[:: len(own) // 20]]

        def by(source):
            found = find_owners(runs, source=source)
            assert found.source == source
            return found.owners

        owners = agreed(lambda: by("pagemap"), lambda: by("bpf"))
        assert {owner.pid for owner in owners} == {stopped.pid}
        assert len(owners) == len(runs)

    def test_owners_of_all_frames_of_a_process(self, stopped):
        runs = [
            (entry & PM_PFRAME_MASK, (entry & PM_PFRAME_MASK) + nr)
            for _, entry, nr in by_bpf(stopped.pid)
            if entry & PM_PRESENT
        ]

        def by(source):
            found = find_owners(runs, [stopped.pid], source=source)
            assert found.source == source
            return found.owners

        assert len(agreed(lambda: by("pagemap"), lambda: by("bpf"))) > 2500


@pytest.mark.needs("bpf")
def test_a_translation_by_bpf_is_that_of_pagemap(stopped):
    with ProcDir(stopped.pid) as proc:
        memory = MemoryMap(proc)
        # Of the choices for translate, only the walks show device mappings.
        vmas = [v for v in memory.vmas if v.end < USER_END and not memory.is_pfnmap(v)]
    vaddrs = np.concatenate(
        [np.arange(vma.start, min(vma.end, vma.start + (8 << 20)), PAGE) for vma in vmas]
    ).astype(np.uint64)
    shuffled = np.random.default_rng(3).permutation(vaddrs)

    def by(source, which):
        with Process(stopped.pid, source=source) as process:
            found = process.translate_array(which)
            entries = found.entries & np.uint64(PM_PRESENT | PM_SWAP | PM_PFRAME_MASK)
            return entries.tolist(), found.paddrs.tolist()

    for which in (vaddrs, shuffled):
        entries, _ = agreed(lambda: by("pagemap", which), lambda: by("bpf", which))  # noqa: B023
        assert sum(entry >> 63 for entry in entries) * PAGE > 20 << 20


@pytest.mark.needs("cc", "machine")
def test_pagemap_tells_what_is_unstable(tmp_path):
    """A C program replaces the run of the BPF program: all of its answers change every time."""
    core = [ROOT / f"csrc/{name}.c" for name in CORE_OF_BPF]
    program, source = tmp_path / "unstable", ROOT / "tests/support/unstable.c"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "csrc"]
    subprocess.run(["cc", *options, "-o", program, source, *core], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    nr_pages, nr_runs = map(int, result.stdout.split())
    assert nr_pages == 1500
    assert nr_runs > 3 * 16  # each answer is asked for again, as often as the core tries


@pytest.mark.alone("it moves the pages of all processes")
@pytest.mark.needs("bpf", "cc")
@pytest.mark.once("a race")
def test_a_race_with_all_that_changes_page_tables(tmp_path):
    """Extents are in order, have only entries of pagemap's form, and miss no page at rest."""
    with subprocess.Popen(
        [compile_program(tmp_path, "race"), "60", "mutate"], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            child.stdout.readline()
            with ProcDir(child.pid) as proc:
                at_rest = next(v for v in MemoryMap(proc).vmas if v.path.endswith("/race"))
            nr_pages = nr_moved = nr_runs = 0
            # Three seconds, and more where other VMs take the processors.
            stop, most = time.monotonic() + 3, time.monotonic() + 50
            while (now := time.monotonic()) < stop or (nr_pages <= 10_000 and now < most):
                before = by_pagemap(child.pid, at_rest.start, at_rest.end)
                found = by_bpf(child.pid)
                ends = [vaddr + nr * PAGE for vaddr, _, nr in found]
                assert all(end <= after[0] for end, after in zip(ends, found[1:], strict=False))
                assert all(entry & (PM_PRESENT | PM_SWAP) for _, entry, _ in found)
                # The kernel may move a page at rest, too, but not every time.
                nr_moved += [item for item in found if item[0] in at_rest] != before
                nr_runs += 1
                nr_pages += sum(nr for _, _, nr in found)
        finally:
            child.kill()
    assert nr_pages > 10_000
    assert nr_moved <= nr_runs // 10


class TestBits:
    def test_a_snapshot_keeps_all_bits_unless_told_otherwise(self):
        region = Region(1).touch()
        with Snapshot() as snapshot:
            (rows,) = snapshot.iter_extents(region.start, region.end)
        assert int(rows["entry"][0]) == raw_entry(region.start)
        with Snapshot(frames_only=True) as snapshot:
            (rows,) = snapshot.iter_extents(region.start, region.end)
        assert int(rows["entry"][0]) == raw_entry(region.start) & COMMON


class TestChoice:
    def test_a_wrong_name(self):
        with pytest.raises(UsageError, match="unknown source"):
            choose_frame_source("kmod", 0)

    @pytest.mark.needs("bpf")
    def test_auto_takes_bpf_where_it_pays(self):
        assert choose_frame_source("auto", MIN_PAGES - 1) == "pagemap"
        assert choose_frame_source("auto", MIN_PAGES) == "bpf"
        assert choose_frame_source("bpf", 0) == "bpf"
        assert choose_frame_source("pagemap", MIN_PAGES) == "pagemap"

    def test_auto_takes_pagemap_where_bpf_is_not_available(self, monkeypatch):
        monkeypatch.setattr(bpf, "_MACHINES", ())
        assert choose_frame_source("auto", MIN_PAGES) == "pagemap"

    @pytest.mark.needs("bpf", "kpage")
    def test_the_document_names_the_source(self, physview, sleeper):
        pid = str(sleeper.pid)
        for words, source in (
            (("pages", pid), "pagemap"),
            (("pages", pid, "--summary"), "pagemap"),
            (("owners", "pfn:0x1", "--pid", pid), "pagemap"),
            (("owners", "pfn:0x1", "--pid", pid, "--source", "bpf"), "bpf"),
        ):
            assert json.loads(physview(*words, "--json").stdout)["source"] == source


class TestRefusals:
    @pytest.mark.needs("bpf", "nobody")
    @pytest.mark.parametrize(
        "words", [("pages", "self"), ("pages", "self", "--each"), ("pages", "self", "--summary")]
    )
    def test_nobody_may_not_load_a_program(self, physview, words):
        result = physview(*words, "--source", "bpf", prefix=AS_NOBODY)
        assert "; run as root, or use --source pagemap" in one_line(result, 1)

    @pytest.mark.needs("bpf", "kpage", "kthread")
    @pytest.mark.parametrize("pid", ["2", "4194303"])
    def test_a_process_without_memory_is_refused_as_by_pagemap(self, physview, pid):
        for words in (("pages", pid), ("owners", "pfn:0x1", "--pid", pid)):
            by_bpf, by_pagemap = (
                one_line(physview(*words, "--source", source), 1) for source in ("bpf", "pagemap")
            )
            assert by_bpf == by_pagemap

    @pytest.mark.needs("nobody")
    def test_nobody_gets_pagemaps_answer(self, physview):
        result = physview("pages", "self", "--json", prefix=AS_NOBODY)
        assert result.returncode == 0
        assert json.loads(result.stdout)["source"] == "pagemap"

    def test_parquet_keeps_bits_that_only_pagemap_has(self, physview, tmp_path):
        words = ("--format", "parquet", "-o", str(tmp_path / "a"), "--source", "bpf")
        assert "only pagemap knows them" in one_line(physview("pages", "self", *words), 2)
