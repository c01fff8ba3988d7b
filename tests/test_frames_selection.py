# SPDX-License-Identifier: GPL-2.0-or-later
"""Some frames: frames/selection.py, sources/saved_flags.py, and the lists of physview frames."""

import csv
import io
import json
import os
import re
import subprocess
import time
from collections import Counter
from pathlib import Path

import cgroups
import pytest
from failures import notes, one_line
from hypothesis import given
from hypothesis import strategies as st
from memory import PAGE, Region, raw_entry
from plain_reads import agreed, plain_values, while_frames_stay

from physview.frames.selection import cut_ranges
from physview.model import PM_PFRAME_MASK
from physview.sources import ram
from physview.sources.cgroups import cgroup_paths, find_cgroup
from physview.sources.kpage import KPF_KSM
from physview.sources.page_flags import FLAG_BITS, well_known
from physview.sources.saved_flags import NOPAGE

ANON, LRU, MMAP = (1 << FLAG_BITS[name] for name in ("anon", "lru", "mmap"))

_RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5)


@given(_RANGES, _RANGES)
def test_ranges_are_cut(ranges, within):
    within = cut_ranges([each for each in within if each[0] < each[1]], [(0, 99)])
    found = cut_ranges(ranges, within)
    frames = [at for low, high in found for at in range(low, high)]
    inside = {at for low, high in within for at in range(low, high)}
    assert frames == sorted({at for low, high in ranges for at in range(low, high)} & inside)


def pfn_of(region, page=0):
    return raw_entry(region.start + page * PAGE) & PM_PFRAME_MASK


def steady_range():
    """Frames whose flags seldom change: the lowest RAM."""
    low, high = ram.ram_ranges(ram.read_resources())[0]
    return low, min(high, low + 4096)


def page_types_list(*options):
    """The runs that page-types lists: columns as text."""
    command = ["page-types", "-N", "-r", *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].split()[-1] == "flags"
    return [line.split() for line in lines[1:] if line]


def our_list(physview, *options):
    text = physview("frames", "--raw", "--format", "csv", *options).stdout
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.needs("kpage", "page-types")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([], []), (["--flags", "buddy"], ["-b", "buddy"]), (["--flags", "!buddy"], ["-b", "~buddy"])],
)
def test_runs_are_those_of_page_types(physview, ours, theirs):
    low, high = steady_range()
    where = f"pfn:{low:#x}-pfn:{high:#x}"
    agreed(
        lambda: [
            (int(first, 16), int(nr, 16))
            for first, nr, _ in page_types_list("-l", "-a", f"{low},{high}", *theirs)
        ],
        lambda: [
            (int(row["pfn"]), int(row["nr_frames"]))
            for row in our_list(physview, where, "--list", *ours)
        ],
    )


@pytest.mark.needs("kpage", "page-types")
def test_map_counts_and_cgroups_are_those_of_page_types(physview):
    low, high = steady_range()
    where = f"pfn:{low:#x}-pfn:{high:#x}"
    paths = {path: inode for inode, path in cgroup_paths().items()}
    agreed(
        lambda: [
            (int(pfn, 16), int(mapcount), int(cgroup[1:]))
            for cgroup, mapcount, pfn, _ in page_types_list("-LMC", "-a", f"{low},{high}")
        ],
        lambda: [
            (int(row["pfn"]), int(row["mapcount"]), paths.get(row["cgroup"], 0))
            for row in our_list(physview, where, "--each", "--columns", "mapcount,cgroup,flags")
        ],
    )


@pytest.mark.needs("kpage", "pfn")
def test_a_frame_of_ours_is_listed_in_every_form(physview):
    region = Region(1).touch()

    def check(pfn):
        words = [f"pfn:{pfn:#x}", "--list", "--columns", "flags,mapcount,cgroup,node"]
        (line,) = physview("frames", *words).stdout.splitlines()[1:]
        assert line.split()[:3] == [f"pfn:{pfn:#x}", "1", "1"]
        assert {"anon", "mmap", "swapbacked"} <= set(line.split()[-1].split(","))
        document = json.loads(physview("frames", *words, "--json").stdout)
        assert document["errors"] == []
        (frame,) = document["frames"]
        assert (frame["pfn"], frame["paddr"], frame["nr_frames"]) == (pfn, hex(pfn * PAGE), 1)
        assert {"anon", "mmap", "swapbacked"} <= set(frame["flags"])
        assert frame["mapcount"] == 1
        inode = plain_values("kpagecgroup", pfn, 1)[0]
        assert frame["cgroup"] == (cgroup_paths().get(inode, f"@{inode}") if inode else None)
        (row,) = csv.DictReader(io.StringIO(physview("frames", *words, "--format", "csv").stdout))
        assert (row["paddr"], row["pfn"], row["nr_frames"]) == (hex(pfn * PAGE), str(pfn), "1")
        counts = json.loads(physview("frames", hex(pfn * PAGE + 5), "--json").stdout)
        assert (counts["nr_frames"], counts["uses"][0]["use"]) == (1, "anon")
        assert physview("frames", words[0]).stdout.startswith(
            "1 frame, 4.0 KiB" if PAGE == 4096 else "1"
        )

    while_frames_stay(lambda: pfn_of(region), check)


@pytest.mark.needs("kpage", "pfn")
def test_flags_choose_frames(physview):
    region = Region(300).touch()

    def check(pfns):
        words = [f"pfn:{pfn:#x}" for pfn in pfns]
        counts = json.loads(physview("frames", *words, "--flags", "anon", "--json").stdout)
        assert counts["nr_frames"] == 300
        none = physview("frames", *words, "--flags", "!anon|slab")
        assert none.returncode == 2
        none = json.loads(physview("frames", *words, "--flags", "!anon,!slab", "--json").stdout)
        assert (none["nr_frames"], none["uses"], none["flags"]) == (0, [], [])

    while_frames_stay(lambda: [pfn_of(region, page) for page in range(300)], check)


@pytest.mark.needs("kpage", "pfn", "memory-cgroups", "page-types")
def test_a_cgroup_chooses_frames(physview, python):
    name = f"physview-test-{os.getpid()}"
    with cgroups.branch([name], [], cgroups.writable_memory()) as folder:
        code = (
            f"import os; open({folder!r} + '/cgroup.procs', 'w').write(str(os.getpid()));"
            "from memory import Region; r = Region(700).touch()"
        )
        child = python(code)
        inode = os.stat(folder).st_ino
        try:
            for word in (folder, f"@{inode}", cgroup_paths()[inode]):
                counts = json.loads(physview("frames", "--cgroup", word, "--json").stdout)
                uses = {use["use"]: use["nr_frames"] for use in counts["uses"]}
                assert 700 <= uses["anon"] <= 7000
            rows = our_list(physview, "--cgroup", folder, "--list", "--columns", "flags,cgroup")
            assert {row["cgroup"] for row in rows} == {cgroup_paths()[inode]}
            theirs = page_types_list("-c", f"@{inode}", "-l", "-b", "anonymous")
            anon = sum(int(row["nr_frames"]) for row in rows if "anon" in row["flags"].split("|"))
            assert sum(int(nr, 16) for _, nr, _ in theirs) == pytest.approx(anon, abs=20)
        finally:
            child.kill()
            child.communicate()


@pytest.mark.needs("kpage", "pfn", "memory-cgroups")
def test_frames_of_a_removed_cgroup_are_reported_under_its_ancestor(physview):
    """The kernel looks for the nearest cgroup that exists, so `@inode` does not appear."""
    name = f"physview-test-{os.getpid()}"
    top = cgroups.writable_memory()
    with cgroups.branch([name], [], top) as above:
        if os.path.exists(f"{above}/cgroup.subtree_control"):  # version 2
            Path(above, "cgroup.subtree_control").write_text("+memory")
        os.mkdir(f"{above}/below")
        fd = os.memfd_create("charged")
        write = (
            "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()));"
            "os.write(int(sys.argv[2]), bytes(64 * os.sysconf('SC_PAGESIZE')))"
        )
        command = ["python3", "-I", "-c", write, f"{above}/below", str(fd)]
        subprocess.run(command, check=True, pass_fds=[fd])
        region = Region(64, flags=1, fd=fd)  # MAP_SHARED
        for page in range(64):
            region.read(page)
        inodes = {plain_values("kpagecgroup", pfn_of(region, page), 1)[0] for page in range(64)}
        assert inodes == {os.stat(f"{above}/below").st_ino}
        os.rmdir(f"{above}/below")  # the kernel takes a moment to do so

        def charged():
            time.sleep(0.1)
            return {plain_values("kpagecgroup", pfn_of(region, page), 1)[0] for page in range(64)}

        agreed(charged, lambda: {os.stat(above).st_ino})
        listed = our_list(physview, f"pfn:{pfn_of(region):#x}", "--list", "--columns", "cgroup")
        assert [row["cgroup"] for row in listed] == [cgroup_paths()[os.stat(above).st_ino]]
        os.close(fd)


def test_a_cgroup_that_is_none(tmp_path):
    assert [find_cgroup(str(tmp_path)), find_cgroup("/no/cgroup"), find_cgroup("a\0b")] == [
        None
    ] * 3
    assert [find_cgroup("@17"), find_cgroup("@"), find_cgroup("@-1")] == [17, None, None]


def write_copy(path, values):
    path.write_bytes(b"".join(value.to_bytes(8, "little") for value in values))
    return str(path)


def test_a_copy_is_counted_and_listed(physview, tmp_path):
    copy = write_copy(tmp_path / "copy", [NOPAGE, 1 << 10, 1 << 10, ANON | LRU, LRU | 1 << 34])
    document = json.loads(physview("frames", "--from", copy, "--json").stdout)
    uses = {use["use"]: use["nr_frames"] for use in document["uses"]}
    assert uses == {"no_frame": 1, "free": 2, "anon": 1, "page_cache": 1}
    rows = our_list(physview, "--from", copy, "--list", "--flags", "lru|buddy")
    assert [(row["pfn"], row["nr_frames"], row["flags"]) for row in rows] == [
        ("1", "2", "buddy"),
        ("3", "1", "lru|anon"),
        ("4", "1", "lru|bit_34"),
    ]
    rows = our_list(physview, "--from", copy, "--each", "pfn:0x1-pfn:0x3")
    assert [row["pfn"] for row in rows] == ["1", "2"]


def test_a_copy_of_a_kernel_that_calls_every_anonymous_page_ksm(physview, tmp_path):
    copy = write_copy(tmp_path / "copy", [ANON | KPF_KSM, ANON | KPF_KSM | LRU, LRU])
    result = physview("frames", "--from", copy, "--json")
    uses = {use["use"]: use["nr_frames"] for use in json.loads(result.stdout)["uses"]}
    assert uses == {"anon": 2, "page_cache": 1}
    assert "the kernel of this copy calls every anonymous page ksm" in result.stderr
    copy = write_copy(tmp_path / "other", [ANON | KPF_KSM, ANON | LRU])
    result = physview("frames", "--from", copy, "--json")
    uses = {use["use"]: use["nr_frames"] for use in json.loads(result.stdout)["uses"]}
    assert (uses, result.stderr) == ({"ksm": 1, "anon": 1}, "")


@pytest.mark.needs("kpage", "page-types")
def test_a_saved_copy_is_what_page_types_reads_too(physview, tmp_path):
    copy = tmp_path / "copy"
    result = physview("frames", "--save", str(copy))
    assert (result.returncode, notes(result)) == (0, "")
    assert copy.stat().st_mode & 0o777 == 0o600
    document = json.loads(physview("frames", "--from", str(copy), "--json").stdout)
    assert document["nr_frames"] * 8 == copy.stat().st_size
    ours = Counter()
    for item in document["flags"]:
        ours[well_known(int(item["value"], 16))] += item["nr_frames"]
    output = subprocess.run(
        ["page-types", "-F", str(copy)], capture_output=True, text=True, check=True
    ).stdout
    rows = re.findall(r"^(0x\w+)\s+(\d+)", output, re.M)
    assert {int(flags, 16): int(nr) for flags, nr in rows} == ours
    assert ours[NOPAGE] == document["nr_frames"] - sum(
        high - low for low, high in ram.ram_ranges(ram.read_resources())
    )
    line = one_line(physview("frames", "--save", str(copy)), 1)
    assert "it is there already" in line


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b""), "its size is no multiple of 8 bytes, or 0"),
        (lambda path: path.write_bytes(bytes(12)), "its size is no multiple of 8 bytes, or 0"),
        (lambda path: path.write_bytes(os.urandom(80_000)), "too many different values"),
        (lambda path: path.write_bytes(b"some text" * 8), "values that are no flags"),
        (lambda path: path.write_bytes(b"\xff" * 16), "values that are no flags"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 38), "64 TiB"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("/nowhere"), "No such file or directory"),
    ],
)
def test_a_file_that_is_no_copy_is_refused_in_one_line(physview, tmp_path, make, why):
    make(tmp_path / "a\rcopy\x1b")
    result = physview("frames", "--from", str(tmp_path / "a\rcopy\x1b"))
    line = one_line(result, 1 if "No such" in why else 2)
    assert why in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--save", "/no/file", "--list"], "--save and --list exclude each other"),
        (["--picture", "/no/a.svg", "--flags", "lru"], "--picture and --flags exclude each other"),
        (["--columns", "flags"], "--columns needs a list"),
        (["--format", "csv"], "--format needs a list"),
        (["--list", "--each"], "not allowed with"),
        (["--from", "/no/file", "--cgroup", "/"], "--from and --cgroup exclude each other"),
        (["--from", "/no/file", "--list", "--columns", "mapcount"], "a copy has no mapcount"),
        (["--flags", "soft_dirty"], "flags of pages of a process"),
        (["--flags", "colour"], "no flag 'colour'"),
        (["--cgroup", "/no/cgroup"], "no cgroup '/no/cgroup'"),
        (["--theme", "dark"], "need a picture"),
        (["10"], "may be"),
    ],
)
@pytest.mark.needs("kpage")
def test_wrong_use(physview, words, why):
    assert why in physview("frames", *words).stderr
    assert physview("frames", *words).returncode == 2


@pytest.mark.needs("kpage")
def test_frames_that_are_no_ram(physview):
    beyond = max(high for _, high in ram.ram_ranges(ram.read_resources())) + (1 << 30)
    assert "no RAM that is online" in one_line(physview("frames", f"pfn:{beyond:#x}"), 1)
