# SPDX-License-Identifier: GPL-2.0-or-later
"""physview watch: what it counts of processes that change on command, and what it prints."""

import json
import os
import re
import subprocess
import sys

import pytest
from failures import one_line
from memory import PAGE
from plain_reads import smaps
from screens import watch
from users import AS_NOBODY

from physview.analysis.changes import Change
from physview.analysis.watch import MAX_KEPT, Watcher


def at(reading, start):
    """The index of the mapping at an address."""
    return next(i for i, vma in enumerate(reading.vmas) if vma.start <= start < vma.end)


def address_of(child):
    """The address of the process's last region."""
    child.stdin.write("print(regions[-1].start, flush=True)\n")
    child.stdin.flush()
    start = int(child.stdout.readline())
    assert child.stdout.readline() == "done\n"
    return start


def test_what_grows_goes_and_is_unmapped_is_told_of(obedient):
    obedient.tell("regions.append(Region(1000)); regions[-1].madvise(Region.MADV_NOHUGEPAGE)")
    start = address_of(obedient)
    with Watcher(obedient.pid) as watcher:
        first = watcher.read()
        assert (first.changes, first.counts, first.seconds, first.new_faults) == (None,) * 4
        obedient.tell("regions[-1].touch(*range(300))")
        grown = watcher.read()
        index = at(grown, start)
        assert grown.changes["new"][index] == 300
        assert grown.pages["resident"][index] - first.pages["resident"][at(first, start)] == 300
        assert grown.new_faults[0] >= 300
        assert grown.nr_minor_faults - first.nr_minor_faults == grown.new_faults[0]
        obedient.tell("regions[-1].madvise(Region.MADV_DONTNEED)")
        freed = watcher.read()
        assert freed.changes["gone"][at(freed, start)] == 300
        obedient.tell("regions[-1].touch(*range(7))")
        watcher.read()
        obedient.tell("regions.clear()")
        unmapped = watcher.read()
        assert unmapped.counts[Change.UNMAPPED] == 7
        obedient.tell("regions.append(Region(20000).touch())")
        mapped = watcher.read()
        assert mapped.counts.get(Change.MAPPED, 0) + mapped.counts.get(Change.APPEARED, 0) >= 20000


@pytest.mark.needs("pfn")
def test_pages_given_back_and_touched_again_have_moved(obedient):
    obedient.tell("regions.append(Region(200).touch())")
    start = address_of(obedient)
    with Watcher(obedient.pid) as watcher:
        watcher.read()
        # Others take the frames first, or the same would come back.
        obedient.tell(
            "regions[-1].madvise(Region.MADV_DONTNEED); taken = Region(5000).touch();"
            " regions[-1].touch(*reversed(range(200)))"
        )
        reading = watcher.read()
        assert reading.changes["moved"][at(reading, start)] > 100
        assert reading.counts[Change.MOVED] > 100


@pytest.mark.needs("pfn")
def test_a_zero_page_that_is_written_to_was_copied_not_moved(obedient):
    obedient.tell("regions.append(Region(64)); [regions[-1].read(i) for i in range(64)]")
    with Watcher(obedient.pid) as watcher:
        assert not watcher.read().counts
        obedient.tell("regions[-1].touch()")
        after = watcher.read()
        assert after.counts[Change.COPIED] >= 64
        assert Change.MOVED not in after.counts


@pytest.mark.needs("swap")
def test_what_is_swapped_out_and_in_again_is_told_of(obedient):
    obedient.tell("regions.append(Region(2000)); regions[-1].madvise(Region.MADV_NOHUGEPAGE)")
    obedient.tell("regions[-1].touch()")
    start = address_of(obedient)
    with Watcher(obedient.pid) as watcher:
        watcher.read()
        obedient.tell("regions[-1].madvise(21)")  # MADV_PAGEOUT
        out = watcher.read()
        nr_out = int(out.changes["out"][at(out, start)])
        assert nr_out > 1000, "MADV_PAGEOUT swapped nothing out"
        assert out.pages["swapped"][at(out, start)] == nr_out
        obedient.tell("[regions[-1].read(i) for i in range(2000)]")
        back = watcher.read()
        assert back.changes["in"][at(back, start)] == nr_out


def test_what_it_has_is_what_smaps_says(stopped):
    expected = smaps(stopped.pid)
    with Watcher(stopped.pid) as watcher:
        reading = watcher.read()
        again = watcher.read()
    if reading.knows_frames:
        for vma, nr in zip(reading.vmas, reading.pages["resident"].tolist(), strict=True):
            fields = expected[vma.start]
            hugetlb = fields.get("Shared_Hugetlb", 0) + fields.get("Private_Hugetlb", 0)
            assert nr * PAGE == fields["Rss"] + hugetlb, vma
        assert reading.ram.nr_elsewhere + reading.ram.frames.sum() <= sum(
            reading.pages["resident"].tolist()
        )
    assert again.counts == {}
    assert all(not column.any() for column in again.changes.values())


@pytest.mark.needs("root")
def test_every_frame_is_in_its_cell_of_ram(stopped):
    from physview.memory.snapshot import Snapshot
    from physview.sources.ram import ram_ranges, read_resources

    ranges = ram_ranges(read_resources())
    with Watcher(stopped.pid) as watcher, Snapshot(stopped.pid) as snapshot:
        ram = watcher.read().ram
        zero_pfn = snapshot.reader.zero_pfn
        expected = [0] * len(ram.frames)
        for rows in snapshot.iter_extents():
            for pfn, nr in zip(rows["pfn"].tolist(), rows["nr_pages"].tolist(), strict=True):
                if pfn in (zero_pfn, (1 << 64) - 1):
                    continue
                for frame in range(pfn, pfn + nr):
                    place = 0
                    for first, end in ranges:
                        if first <= frame < end:
                            expected[(place + frame - first) // ram.cell_frames] += 1
                        place += end - first
    assert ram.frames.tolist() == expected
    assert sum(expected) > 1000
    assert ram.nr_frames == sum(end - first for first, end in ranges)


def test_what_is_kept_is_bounded_and_the_limit_is_named(obedient):
    obedient.tell("regions.append(Region(100).touch(*range(0, 100, 2)))")
    with Watcher(obedient.pid, max_kept=10) as watcher:
        first = watcher.read()
        assert first.compared_to is not None
        assert len(watcher._before.extents) == 10
        with Watcher(obedient.pid) as other:
            assert other.read().pages["resident"].sum() == first.pages["resident"].sum()
        obedient.tell("regions[-1].touch(*range(1, 100, 2))")
        second = watcher.read()
        assert second.pages["resident"].sum() >= first.pages["resident"].sum() + 50
        assert second.compared_to <= first.vmas[-1].end


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
@pytest.mark.parametrize("max_kept", [MAX_KEPT, 500])
def test_what_it_has_is_the_same_however_long_it_was_followed(obedient, max_kept):
    """A reading updates the previous one. Its result equals that of a first reading."""
    obedient.tell("import random; regions.append(Region(2000).touch(*range(0, 2000, 3)))")
    obedient.tell("random.seed(7); some = lambda: random.sample(range(2000), 300)")
    lines = [
        "regions[0].touch(*some())",
        "[libc.madvise(regions[0].start + i * PAGE, PAGE, 4) for i in some()]",
        "[regions[0].read(i) for i in some()]",  # zero pages
        "pass",
        "regions.append(Region(700).touch(1, 5, 699))",
        "regions[0].touch(*some())",
        "last = regions.pop(); libc.munmap(last.start, 700 * PAGE)",
        "regions[0].touch(*range(2000))",
    ]
    obedient.tell("from memory import libc")
    with Watcher(obedient.pid, max_kept=max_kept) as watcher:
        watcher.read()
        for line in lines:
            obedient.tell(line)
            for _ in range(50):  # until no process with these libraries comes or goes meanwhile
                expected = first_reading(obedient.pid)
                reading = contents(watcher.read())
                if first_reading(obedient.pid) == expected:
                    break
            assert reading == expected, line


def first_reading(pid):
    with Watcher(pid) as fresh:
        return contents(fresh.read())


def contents(reading):
    pages = {name: nr.tolist() for name, nr in reading.pages.items()}
    ram = reading.ram and (reading.ram.frames.tolist(), reading.ram.nr_elsewhere)
    return reading.vmas, pages, ram


def test_what_only_one_reading_kept_is_not_compared(obedient):
    """An extent across the other reading's limit is split there; no page appears or vanishes."""
    with Watcher(obedient.pid) as watcher:
        watcher.read()
        extents = watcher._before.extents
        large = int(extents["nr_pages"].argmax())
        assert extents["nr_pages"][large] > 1
        half = watcher._before.of(extents[: large + 1].copy())
        half.extents["nr_pages"][-1] -= 1
        half.limit = int(half.extents["vaddr"][-1] + half.extents["nr_pages"][-1] * PAGE)
        watcher._before = half
        reading = watcher.read()
        assert reading.counts == {}
        assert reading.compared_to == half.limit


def test_where_it_cannot_draw_it_says_what_can_be_done(physview, sleeper):
    said = one_line(physview("watch", str(sleeper.pid)), 2)
    assert "terminal" in said
    assert " maps PID prints" in said
    assert "--ticks N" in said
    with watch(sleeper.pid, env={"TERM": "dumb"}) as run:
        assert run.wait() == 2
        assert b"--ticks N" in run.raw
        assert b"\x1b" not in run.raw


def test_ticks_print_as_many_readings(physview, sleeper):
    result = physview("watch", str(sleeper.pid), "--ticks", "3", "--interval", "0.1")
    assert result.returncode == 0, result
    assert len(re.findall(rf"^\S+ \({sleeper.pid}\)  mem", result.stdout, re.MULTILINE)) == 3
    assert result.stdout.count("[stack]") == 3
    assert "pages   first reading" in result.stdout


def test_json_is_a_document_a_line(physview, obedient):
    obedient.tell("regions.append(Region(5).touch())")
    # A late first look is followed by a shorter time, which is still half the interval.
    result = physview("watch", str(obedient.pid), "--ticks", "2", "--json", "--interval", "0.2")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["changes"] is first["seconds"] is first["mappings"][0]["changes"] is None
    assert second["changes"] == {}
    assert second["seconds"] >= 0.1
    start = hex(address_of(obedient))
    (found,) = [m for m in second["mappings"] if m["mapping"]["start"] == start]
    assert found["nr_resident"] == 5
    assert found["changes"]["new"] == 0
    if second["ram"]:
        total = sum(m["nr_resident"] for m in second["mappings"])
        assert 0 < sum(second["ram"]["cells"].values()) <= total


def test_json_goes_on_until_the_process_ends(python):
    child = python(wait="input()")
    command = [sys.executable, "-m", "physview", "watch", str(child.pid), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--interval", "0.1"], **pipes) as watching:
        lines = [watching.stdout.readline() for _ in range(3)]
        child.kill()
        rest, said = watching.communicate()
    assert watching.returncode == 1
    assert said.count("\n") == 1
    assert f"{child.pid}" in said
    assert all(json.loads(line)["pid"] == child.pid for line in [*lines, *rest.splitlines()])


@pytest.mark.parametrize(
    "options",
    [
        ["--interval", "0"],
        ["--interval", "nan"],
        ["--interval", "x"],
        ["--ticks", "0"],
        ["--ticks", "-1"],
    ],
)
def test_wrong_numbers_are_refused(physview, options):
    one_line(physview("watch", "self", *options), 2)


def test_a_missing_process_is_an_error_before_anything_is_drawn():
    with watch(1 << 30) as run:
        assert run.wait() == 1
        assert b"\x1b[?" not in run.raw  # the error's colour does not count
        assert b"no process" in run.raw


@pytest.mark.needs("nobody")
def test_without_root_the_virtual_half_is_shown_and_what_is_missing(python, physview):
    child = python(prefix=AS_NOBODY)
    result = physview(
        "watch", str(child.pid), "--ticks", "2", "--interval", "0.1", prefix=AS_NOBODY
    )
    assert result.returncode == 0, result
    assert "frame numbers are hidden" in result.stdout
    assert "? moved" in result.stdout
    assert not re.search(r"^RAM +\d", result.stdout, re.MULTILINE)
    assert "as root: " in result.stderr
    stranger = physview("watch", str(os.getpid()), "--ticks", "1", prefix=AS_NOBODY)
    assert "you may not examine process" in one_line(stranger, 1)
