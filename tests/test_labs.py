# SPDX-License-Identifier: GPL-2.0-or-later
"""The labs' evidence: on this machine and in the VM, it agrees with independent readings."""

import os

import pytest
from drawn_walks import WALKS
from memory import HUGE, PAGE, Region, kpageflags, raw_entry

from physview import Cause, UsageError, labs
from physview.labs import evict, heap, levels, migrate, pages, traced_process
from physview.labs.model import document
from physview.model import PM_FILE, PagemapEntry, Translation

ZERO_PAGE = 1 << 24

pytestmark = [
    pytest.mark.alone("labs tell what of physview's own files others map"),
    pytest.mark.usefixtures("alone_with_the_library"),
]


def run(name, **options):
    """Run a lab, and check what all labs have in common."""
    evidence = labs.run(name, **options)
    said = document(labs.find(name), evidence)
    assert said["tables"]
    assert all(table["rows"] for table in said["tables"])
    assert len(said["questions"]) == len(evidence.answers) > 0
    for question in said["questions"]:
        assert question["answer"] is None or 0 <= question["answer"] < len(question["choices"])
    assert all(finding["text"].endswith(".") for finding in said["findings"])
    return evidence


def columns(evidence, *names, table=0):
    return [evidence.tables[table].column(name) for name in names]


MAY_DIFFER = {
    "cache": "the file can be in the same frame again, by chance",
    "levels": "there can be five",
    "pages": "the slabs that there are can be enough",
    "witnesses": "there can be no device mapping",
}
"""Labs whose evidence can be usual although an answer is not that of docs/key.md."""
if os.uname().machine == "aarch64":
    MAY_DIFFER["copies"] = "put_user() is inlined"


def usual(evidence):
    assert evidence.is_usual, evidence.findings
    if evidence.lab not in MAY_DIFFER:
        questions = labs.find(evidence.lab).questions
        assert evidence.answers == [question.usual for question in questions]


@pytest.mark.needs("pfn")
def test_report():
    evidence = run("report")
    usual(evidence)
    vaddrs, paddrs = columns(evidence, "vaddr", "paddr")
    assert len(vaddrs) == 40
    assert all(v % PAGE == p % PAGE for v, p in zip(vaddrs, paddrs, strict=True))
    assert evidence.answers == [1]


@pytest.mark.needs("pfn")
def test_heap():
    evidence = run("heap")
    vaddrs, steps, paddrs = columns(evidence, "vaddr", "step", "paddr")
    assert len(vaddrs) == 30
    assert steps[0] is None
    assert {int(step, 16) for step in steps[1:]} == {0x1010}
    assert vaddrs[-1] - vaddrs[0] == 29 * 0x1010
    assert len({p // PAGE for p in paddrs}) == len({v // PAGE for v in vaddrs})
    assert evidence.answers[0] == 1
    usual(evidence)


@pytest.mark.needs("pfn", "kpage")
def test_runs():
    evidence = run("runs", nr_repetitions=2)
    labels, virtual, physical, what = columns(evidence, "label", "virtual", "physical", "what")
    by_label = dict(zip(labels, zip(virtual, physical, what, strict=True), strict=True))
    assert by_label["main"][0] == "2 different"
    assert by_label["main"][1] == "stayed"
    assert "_native." in by_label["main"][2]
    assert by_label["main"][2].endswith(".so, cached")
    assert by_label["malloc"][2].endswith("libc.so.6, cached")
    assert by_label["&gmsg"][2].startswith("a private copy of _native")
    assert by_label["&buf"][2] == "anonymous, [stack]"
    assert set(evidence.tables[0].column("virtual_without")) == {"stayed"}
    assert evidence.answers == [1, 0]
    usual(evidence)


@pytest.mark.parametrize("nr_repetitions", [0, 1, 101])
def test_a_wrong_number_of_repetitions(nr_repetitions):
    with pytest.raises(UsageError, match="from 2 to 100"):
        labs.run("runs", nr_repetitions=nr_repetitions)


@pytest.mark.needs("pfn", "kpage", "evicts-core")
def test_cache():
    evidence = run("cache")
    usual(evidence)
    labels, first, second, third = columns(evidence, "label", "first", "second", "third")
    assert labels == ["main", "lmsg", "gmsg", "malloc"]
    assert first == second
    has_changed = [one != other for one, other in zip(second, third, strict=True)]
    assert any(has_changed[:3])
    assert not has_changed[3]
    assert ["third" in row.changed for row in evidence.tables[0].rows] == has_changed
    assert evidence.answers == [int(has_changed[0]), 1]


def test_unmapped_clean_pages_return_at_the_next_access(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE * 5)
    with open(path, "r+b") as file:
        region = Region(5, flags=2, fd=file.fileno())  # MAP_PRIVATE
    assert {region.read(i) for i in range(5)} == {b"x"}
    region.touch(3, value=ord("y"))
    assert evict.unmap_clean_pages(str(path)) == 4
    entries = [PagemapEntry(raw_entry(page)) for page in region.pages]
    assert [entry.present for entry in entries] == [False] * 3 + [True, False]
    assert not entries[3].raw & PM_FILE
    assert [region.read(i) for i in range(5)] == [b"x"] * 3 + [b"y", b"x"]


@pytest.mark.needs("pfn")
def test_cow():
    evidence = run("cow")
    usual(evidence)
    before, forked, parent, childs = columns(evidence, "before", "forked", "parent", "child")
    assert before == forked
    assert [b == p for b, p in zip(before, parent, strict=True)] == [True, True, True, False]
    assert [b == c for b, c in zip(before, childs, strict=True)] == [True, True, False, True]
    assert evidence.answers == [0, 1]


@pytest.mark.needs("pfn", "kpage")
def test_zero():
    evidence = run("zero")
    usual(evidence)
    fresh, read, written = columns(evidence, "fresh", "read", "written")
    assert fresh == [Cause.ABSENT] * 6
    assert kpageflags(read[0] // PAGE) & ZERO_PAGE
    assert read == [read[0]] * 4 + [Cause.ABSENT] * 2
    assert written[2:] == read[2:]
    assert len({*written[:3]}) == 3
    assert document(labs.find("zero"), evidence)["tables"][0]["rows"][5]["causes"] == {
        "fresh": "absent",
        "read": "absent",
        "written": "absent",
    }


@pytest.mark.needs("pfn")
def test_shared():
    evidence = run("shared")
    usual(evidence)
    vaddrs, childs = columns(evidence, "vaddr", "child_vaddr")
    assert not set(vaddrs) & set(childs)
    paddrs, child_paddrs = columns(evidence, "paddr", "child_paddr")
    assert paddrs[:7] == child_paddrs[:7]
    assert paddrs[7] != child_paddrs[7]
    assert evidence.answers == [1]


@pytest.mark.needs("pfn", "kpage", "thp")
def test_huge():
    evidence = run("huge")
    usual(evidence)
    vaddrs, paddrs, runs, mapped_by = columns(evidence, "vaddr", "paddr", "runs", "mapped_by")
    assert (vaddrs[1] % HUGE, paddrs[1] % HUGE, runs[1]) == (0, 0, 1)
    assert mapped_by == ["pte entries", "a pmd entry"]
    assert evidence.answers == [1, 2]


@pytest.mark.needs("pfn", "swap")
def test_swap():
    # A kernel with little to do may give each page its old frame again. The lab then says so.
    evidence = next((found for found in map(run, ["swap"] * 5) if found.is_usual), None)
    assert evidence, "five times no page was in another frame"
    before, out, back = columns(evidence, "before", "out", "back")
    assert all(words.startswith("area ") for words in out)
    assert len(set(out)) == len(out)
    assert any(one != other for one, other in zip(before, back, strict=True))
    assert None not in back
    assert evidence.answers == [1]


@pytest.mark.needs("root", "pfn", "compaction")
def test_migrate():
    evidence = run("migrate")
    before, after = columns(evidence, "before", "after")
    has_moved = [one != other for one, other in zip(before, after, strict=True)]
    assert ["after" in row.changed for row in evidence.tables[0].rows] == has_moved
    if any(has_moved):
        usual(evidence)
        assert evidence.answers == [1]
    else:  # before MADV_COLLAPSE, 6.1, where compaction finds nothing to do
        assert migrate._collapse() is None
        (finding,) = (one for one in evidence.findings if not one.usual)
        assert " vm --append numa=fake=2 -- physview lab migrate" in finding.text
        assert evidence.answers == [None]


def nr_levels():
    """The levels of page tables, by the end of the pagemap: 9, 11 or 13 bits each."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        end = next(b for b in range(30, 60) if not os.pread(file.fileno(), 8, (8 << b) // PAGE))
    bits = end + (os.uname().machine == "x86_64") - (PAGE.bit_length() - 1)
    return -(-bits // (PAGE.bit_length() - 4))


def test_levels():
    evidence = run("levels")
    usual(evidence)
    (asked, given, end), bits = columns(evidence, "vaddr", "bits")
    assert (given >= asked) == (end > asked)
    assert bits[2] == (end - 1).bit_length()  # of the last user address
    assert evidence.answers == [nr_levels() - 2]


@pytest.mark.parametrize(
    "name", ["4 levels", "1 GiB, 5 levels", *(name for name in WALKS if name.startswith("arm64"))]
)
def test_an_entrys_index_is_that_of_the_address(name):
    """Also where the root is smaller than a page, and lies anywhere in one."""
    walks = WALKS[name]
    geometry, walk = walks.geometry, walks.first.walk
    root, size = geometry.levels[0], 8 * geometry.levels[0].nr_entries
    real = [level for level in walk.levels if not level.folded]
    assert real[0].address is not None
    moved = real[0]._replace(address=(1 << 30) + 5 * size + 8 * root.index_of(walk.vaddr))
    found = [
        index
        for level, index in levels.iter_indices(
            geometry,
            walk._replace(levels=[moved if each is real[0] else each for each in walk.levels]),
        )
        if not level.folded
    ]
    assert found == [place.index_of(walk.vaddr) for place in geometry.levels[: len(real)]]


def test_buffers_in_one_page_and_in_contiguous_frames():
    def at(page, frame, offset=0):
        return Translation(page * PAGE + offset, frame * PAGE + offset, None)

    one = at(100, 7, 16)
    assert heap.follows(one, at(101, 8))
    assert heap.follows(one, at(102, 9))  # a step of more than a page skips one now and then
    assert heap.follows(one, at(100, 7, 32))
    assert not heap.follows(one, at(101, 7))
    assert not heap.follows(one, at(102, 8))
    assert [heap.page_step(one, two) for two in (at(100, 7, 32), at(102, 9))] == [0, 2]


@pytest.mark.needs("root", "pfn", "walk")
def test_levels_are_walked():
    evidence = run("levels")
    usual(evidence)
    labels, names, at = columns(evidence, "label", "level", "at", table=1)
    assert names[:5] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert sum(address is None for address in at[:5]) == 5 - nr_levels()
    assert ("above 47 bits" in labels) == (columns(evidence, "vaddr")[0][2] > 1 << 48)
    assert {"levels", "index", "agrees"} <= {finding.check for finding in evidence.findings}
    (sentence,) = [finding.text for finding in evidence.findings if finding.check == "levels"]
    folded = {4: "p4d is folded", 3: "p4d and pud are folded"}.get(nr_levels(), "")
    assert folded in sentence


@pytest.mark.needs("root", "pfn", "walk")
def test_witnesses():
    evidence = run("witnesses")
    usual(evidence)
    pages, verdicts = columns(evidence, "pages", "verdict")
    assert pages[verdicts.index("all sources name the same frame")] * PAGE > 2_000_000
    assert evidence.answers[0] in (0, 1)


@pytest.mark.needs("root", "pfn")
def test_hidden():
    evidence = run("hidden")
    usual(evidence)
    entries, paddrs = columns(evidence, "entry", "paddr")
    assert paddrs[0] == paddrs[1]
    assert paddrs[2] is Cause.HIDDEN
    assert int(entries[2], 16) % (1 << 55) == 0
    assert evidence.answers == [0]


@pytest.mark.needs("root", "kprobes", "kmod")
def test_copies():
    evidence = run("copies")
    usual(evidence)
    functions, user, kernel, sizes = columns(evidence, "function", "user", "kernel", "bytes")
    inlined = os.uname().machine == "aarch64"  # put_user()
    names = [name.strip("_").removeprefix("arch_") for name in functions]
    assert names == [
        *("copy_from_user", "copy_to_user", "copy_to_user", "copy_from_user"),
        "put_user" if inlined else "put_user_4",
    ]
    assert (sizes[:2], sizes[3:]) == ([16, 16], [16, None if inlined else 4])
    assert user[0] == user[1]
    assert all(0 < one < 1 << 56 for one in (user[:4] if inlined else user))
    assert all(one > 1 << 63 for one in kernel[:4])
    for name in ("from_user", "to_user"):
        stack = [cell for cell in evidence.tables[1].column(name) if cell]
        assert stack[1] == "physicalview_ioctl"
        assert f"__{'arm64' if inlined else 'x64'}_sys_ioctl" in stack
    put_user = [cell for cell in evidence.tables[1].column("put_user") if cell]
    assert put_user[:2] == ([] if inlined else ["__put_user_4", "pipe_ioctl"])
    assert evidence.answers == [0, None if inlined else 1]


@pytest.mark.needs("root", "pfn", "tracefs")
@pytest.mark.usefixtures("tracefs")
def test_kmalloc():
    evidence = run("kmalloc")
    usual(evidence)
    allocated, events, requested = columns(evidence, "allocated", "events", "requested")
    assert sum(events) == 100
    assert allocated == sorted(set(allocated))
    for size, words in zip(allocated, requested, strict=True):
        assert int(words.split()[-1]) <= size
    pointers, paddrs = columns(evidence, "ptr", "paddr", table=1)
    assert all(pointer >= 1 << 63 for pointer in pointers)
    if None not in paddrs:  # /proc/kcore tells where the direct map is
        assert len({v - p for v, p in zip(pointers, paddrs, strict=True)}) == 1
        assert "direct_map" in {finding.check for finding in evidence.findings}
    assert evidence.answers == [1, 1]


@pytest.mark.needs("root", "pfn", "tracefs")
@pytest.mark.usefixtures("tracefs")
def test_pages():
    evidence = run("pages")
    usual(evidence)
    uses, events, frames = columns(evidence, "use", "events", "frames")
    by_use = dict(zip(uses, events, strict=True))
    assert sum(events) == 100
    assert by_use[pages.PROCESS] >= traced_process.NR_TOUCHED
    assert all(nr_frames >= nr for nr_frames, nr in zip(frames, events, strict=True))
    paddrs, orders = columns(evidence, "paddr", "order", table=1)
    assert all(p % (PAGE << order) == 0 for p, order in zip(paddrs, orders, strict=True))
    assert evidence.answers[0] == 1


def test_a_lab_without_its_requirements_says_so():
    for name in labs.NAMES:
        lab = labs.find(name)
        assert lab.name == name
        why = lab.why_not()
        if why is not None:
            assert f"cannot do the lab {name}: " in str(why)
            assert "; " in str(why)
            with pytest.raises(type(why)):
                labs.run(name)


def test_unknown_names_and_options():
    with pytest.raises(UsageError, match="do you mean heap"):
        labs.run("hep")
    with pytest.raises(UsageError, match="choose one of report, heap"):
        labs.run("§")
    with pytest.raises(UsageError, match="heap has no option machine"):
        labs.run("heap", machine=True)
