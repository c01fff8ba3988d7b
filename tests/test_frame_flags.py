# SPDX-License-Identifier: GPL-2.0-or-later
"""Flags of frames: BPF and /proc/kpageflags give the same answer, for memory of every kind."""

import ctypes
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from failures import one_line
from guests import compile_program
from memory import HUGE, HUGETLB, PAGE, PRIVATE, SHARED, Region, libc
from paths import ROOT
from users import AS_NOBODY

from physview import UsageError
from physview.errors import Unsupported
from physview.frames.machine import Use, by_use, read_machine
from physview.model import PM_PFRAME_MASK, PM_PRESENT
from physview.sources import bpf
from physview.sources.frame_flags import MIN_FRAMES, choose_flag_source, count_frames
from physview.sources.kpage import KpageFile
from physview.sources.memory_blocks import read_online_ram
from physview.sources.page_flags import FLAG_BITS

# BPF knows struct page of x86-64 kernels only.
pytestmark = pytest.mark.needs("root", "pfn", "kpage", "x86_64")

MAX_ORDER = 10
CHUNK = 4096
MADV_MERGEABLE, MADV_HWPOISON = 12, 100
KSM = Path("/sys/kernel/mm/ksm")
CORE = ("bpf_flags", "bpf_frames", "kpage", "page_key", "pagemap")


@pytest.fixture
def flags():
    with KpageFile("kpageflags") as file:
        yield file


class Compared:
    """How many frames were compared, and for how many of them the kernel was not asked."""

    def __init__(self):
        self.nr = self.nr_alike = 0


def compare(file, ranges):
    """Count the frames of each range by BPF, and compare with the flags before and after.

    Others run meanwhile. A range whose flags changed is tried again, and so is one that differs: a
    frame can be taken and freed between two readings. A wrong answer differs every time.
    """
    ffi, _ = file.core
    compared = Compared()
    for first, end in ranges:
        for tries in range(30):
            before = values_of(file, first, end)
            runs = ffi.new("struct pv_frames *", (first, end - first))
            found = count_frames(file, runs, 1, "bpf", max_order=MAX_ORDER)
            if not np.array_equal(values_of(file, first, end), before):
                continue
            values, numbers = np.unique(before, return_counts=True)
            expected = file.without_false(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
            if found.counts == expected:
                compared.nr += end - first
                compared.nr_alike += found.nr_alike
                break
            assert tries < 29, f"pfn {first:#x}: {found.counts} instead of {expected}"
    return compared


def values_of(file, first, end):
    return np.frombuffer(os.pread(file.fd, (end - first) * 8, first * 8), dtype=np.uint64)


def frames_of(region):
    """The frames of a region, as sorted ranges."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        found = os.pread(file.fileno(), region.size // PAGE * 8, region.start // PAGE * 8)
    entries = np.frombuffer(found, dtype=np.uint64)
    present = entries[entries & np.uint64(PM_PRESENT) != 0] & np.uint64(PM_PFRAME_MASK)
    return joined([(pfn, pfn + 1) for pfn in np.unique(present).tolist()])


def advise(region, advice, first, nr=1):
    """Give advice about some pages of a region."""
    assert libc.madvise(region.start + first * PAGE, nr * PAGE, advice) == 0


def joined(ranges):
    found = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            found[-1] = found[-1][0], end
        else:
            found.append((first, end))
    return found


def around(ranges):
    """The chunks that these frames are in, so that their keys have frames enough."""
    wanted = {pfn // CHUNK for first, end in ranges for pfn in (first, end - 1)}
    online = read_online_ram()
    return [
        (max(low, at * CHUNK), min(high, (at + 1) * CHUNK))
        for at in sorted(wanted)
        for low, high in online
        if low < (at + 1) * CHUNK and high > at * CHUNK
    ]


def kind_of(file, ranges):
    """The flags that any of these frames has."""
    found = 0
    for first, end in ranges:
        found |= int(np.bitwise_or.reduce(values_of(file, first, end)))
    return {name for name, bit in FLAG_BITS.items() if found >> bit & 1}


@pytest.mark.needs("bpf")
class TestEquality:
    """Each test compares all frames near the memory that it makes."""

    def same(self, file, ranges, flag):
        assert ranges
        assert flag in kind_of(file, ranges)
        return compare(file, [*ranges[:100], *around(ranges)[:20]])

    @pytest.mark.once("other frames each time")
    def test_all_frames(self, flags):
        chunks = [
            (at, min(at + CHUNK, high))
            for low, high in read_online_ram()
            for at in range(low, high, CHUNK)
        ]
        random.Random(time.time_ns()).shuffle(chunks)
        compared = compare(flags, chunks[:600])
        assert compared.nr > 100 * CHUNK
        assert compared.nr_alike > compared.nr / 3

    def test_small_pages(self, flags):
        region = Region(3000).touch()
        ranges = frames_of(region)
        assert self.same(flags, ranges, "anon").nr_alike > 1000
        assert libc.mlock(ctypes.c_void_p(region.start), ctypes.c_size_t(region.size)) == 0
        self.same(flags, frames_of(region), "mlocked")

    def test_shared_memory_and_files(self, flags, tmp_path):
        shared = Region(2000, flags=SHARED).touch()
        self.same(flags, frames_of(shared), "swapbacked")
        path = tmp_path / "file"
        path.write_bytes(os.urandom(2000 * PAGE))
        with path.open("rb") as file:
            mapped = Region(2000, flags=1, fd=file.fileno(), prot=1)
            for at in range(2000):
                mapped.read(at)
            self.same(flags, frames_of(mapped), "mmap")

    def test_zero_pages(self, flags):
        region = Region(700)
        for at in range(700):
            region.read(at)
        self.same(flags, frames_of(region), "zero_page")

    @pytest.mark.needs("thp")
    def test_huge_pages(self, flags):
        with Region.huge(8) as region:
            region.touch()
            compared = self.same(flags, frames_of(region), "thp")
            assert compared.nr_alike > HUGE // PAGE
            # Now one page of each is mapped in its own right, and another was freed.
            for at in range(8):
                advise(region, Region.MADV_DONTNEED, at * 512 + 100)
            self.same(flags, frames_of(region), "anon")

    @pytest.mark.needs("thp")
    def test_the_huge_zero_page(self, flags):
        with Region.huge(2) as region:
            region.read(0)
            region.read(512)
            ranges = frames_of(region)
            self.same(flags, ranges, "zero_page")

    @pytest.mark.needs("hugetlb")
    @pytest.mark.parametrize("kind", [PRIVATE, SHARED])
    def test_hugetlb(self, flags, kind):
        region = Region(2 * HUGE // PAGE, flags=kind | HUGETLB).touch(3)
        self.same(flags, frames_of(region), "huge")

    @pytest.mark.needs("swap")
    def test_the_swap_cache(self, flags):
        region = Region(2000).touch()
        region.madvise(Region.MADV_PAGEOUT)
        for at in range(0, 2000, 2):
            region.read(at)
        self.same(flags, frames_of(region), "anon")

    @pytest.mark.needs("ksm")
    def test_merged_pages(self, flags):
        region = Region(120)
        for at in range(120):
            region.touch(at, value=1 + at // 2)
        wanted = {"sleep_millisecs": "1", "pages_to_scan": "10000", "run": "1"}
        before = {name: (KSM / name).read_text() for name in wanted}
        try:
            for name, value in wanted.items():
                (KSM / name).write_text(value)
            region.madvise(MADV_MERGEABLE)
            # ksmd also scans what others have given to it, such as the memory of VMs.
            end = time.monotonic() + 180
            while sum(end - first for first, end in frames_of(region)) > 60:
                assert time.monotonic() < end
                time.sleep(0.02)
            self.same(flags, frames_of(region), "anon")
        finally:
            for name, value in before.items():
                (KSM / name).write_text(value)

    @pytest.mark.needs("hwpoison")
    def test_broken_frames(self, flags):
        region = Region(400).touch()
        chosen = frames_of(region)
        before = signal.signal(signal.SIGBUS, lambda *_: None)  # Linux 7.3 sends it at once
        try:
            advise(region, MADV_HWPOISON, 7)
            advise(region, MADV_HWPOISON, 200)
        finally:
            signal.signal(signal.SIGBUS, before)
        self.same(flags, chosen, "hwpoison")

    @pytest.mark.needs("cc", "machine")
    @pytest.mark.once("a race")
    def test_while_memory_changes(self, flags, tmp_path):
        with subprocess.Popen(
            [compile_program(tmp_path, "race"), "60", "mutate"], stdout=subprocess.PIPE
        ) as child:
            try:
                child.stdout.readline()
                self.test_small_pages(flags)
            finally:
                child.kill()


@pytest.mark.needs("bpf", "machine")
class TestCommands:
    @pytest.mark.parametrize("words", [(), ("paddr:0x1000000-0x10000000",), ("--flags", "buddy")])
    def test_frames_names_the_source(self, physview, words):
        def by(*source):
            return json.loads(physview("frames", *words, "--json", *source).stdout)

        document = by("--source", "bpf")
        assert document["source"] == "bpf"
        assert by("--source", "kpageflags")["source"] == "kpageflags"
        assert sum(use["nr_frames"] for use in document["uses"]) == document["nr_frames"]

    def test_the_uses_of_all_frames(self):
        """The machine runs on, so the counts differ a little."""
        one, other = (by_use(read_machine(source=s).counts) for s in ("kpageflags", "bpf"))
        assert one[Use.RESERVED][0] == other[Use.RESERVED][0]
        nr_all = sum(nr for nr, _ in one.values())
        assert sum(nr for nr, _ in other.values()) == nr_all
        for use in Use:
            assert abs(one.get(use, (0, 0))[0] - other.get(use, (0, 0))[0]) < nr_all / 10

    def test_the_summary_of_pages_names_the_source(self, physview, sleeper):
        words = ("pages", str(sleeper.pid), "--summary", "--json", "--source")
        for source, flag_source in (("pagemap", "kpageflags"), ("bpf", "bpf")):
            document = json.loads(physview(*words, source).stdout)
            assert (document["source"], document["flag_source"]) == (source, flag_source)

    def test_bpf_only_counts(self, physview, tmp_path):
        for words in (["--list"], ["--each"], ["--save", str(tmp_path / "a")]):
            result = physview("frames", *words, "--source", "bpf")
            assert "BPF only counts frames" in one_line(result, 2)

    @pytest.mark.needs("nobody")
    def test_nobody_may_not(self, physview):
        result = physview("frames", "--source", "bpf", prefix=AS_NOBODY)
        one_line(result, 1)


@pytest.mark.needs("machine")
class TestChoice:
    def test_a_wrong_name(self):
        with pytest.raises(UsageError, match="unknown source"):
            choose_flag_source("pagemap", 0)

    @pytest.mark.needs("bpf")
    def test_auto_takes_bpf_where_it_pays(self):
        assert choose_flag_source("auto", MIN_FRAMES - 1) == "kpageflags"
        assert choose_flag_source("auto", MIN_FRAMES) == "bpf"
        assert choose_flag_source("bpf", 0) == "bpf"
        assert choose_flag_source("kpageflags", MIN_FRAMES) == "kpageflags"

    def test_auto_takes_kpageflags_where_bpf_is_not_available(self, monkeypatch):
        monkeypatch.setattr(bpf, "_MACHINES", ())
        assert choose_flag_source("auto", MIN_FRAMES) == "kpageflags"
        with pytest.raises(Unsupported, match="use --source kpageflags"):
            choose_flag_source("bpf", 0)


@pytest.mark.needs("cc", "machine")
def test_made_up_machines(tmp_path):
    """The core counts as the file does, whatever the frames are, and if the core knows too little.

    A C program has frames that no real machine has on demand, and replaces the run of the BPF
    program. See its first comment.
    """
    core = [ROOT / f"csrc/{name}.c" for name in CORE]
    program, source = tmp_path / "alike", ROOT / "tests/support/alike.c"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(["cc", *options, "-I", ROOT / "csrc", "-o", program, source, *core], check=True)
    result = subprocess.run(
        [program, tmp_path / "flags"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.split(" ") for line in result.stdout.splitlines()]
    assert {equal for _, equal, *_ in rows} == {"equal"}
    alike = {name: (int(nr), int(nr_alike)) for name, _, nr, nr_alike, _ in rows}
    assert alike["machine"][1] > alike["machine"][0] / 4
    assert alike["machine"][1] > alike["old"][1] > alike["old"][0] / 8
    assert alike["unknown"][1] == alike["changes"][1] == 0
