# SPDX-License-Identifier: GPL-2.0-or-later
"""physview maps agrees with smaps, and with tools/mm/thpmaps where that is on PATH."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from failures import one_line
from memory import HUGE, PAGE, WAIT, Region, every_second_page
from paths import ROOT
from plain_reads import smaps
from readings import usage_of, usages
from users import AS_NOBODY

from physview.analysis.usage import Usage
from physview.analysis.usage_reader import UsageReader
from physview.errors import ProcessGone
from physview.memory.extents import BATCH, SLICE_BYTES, ExtentReader
from physview.memory.snapshot import Snapshot
from physview.sources.folio_sizes import smallest_anon_order

KIB = 1024


@pytest.mark.parametrize("use_scan", [None, False])
def test_rss_swap_and_huge_pages_are_those_of_smaps(stopped, use_scan):
    expected = smaps(stopped.pid)
    found = {usage.vma.start: usage for usage in usages(stopped.pid, use_scan=use_scan)}
    assert set(expected) - set(found) <= {0xFFFFFFFFFF600000}  # [vsyscall]
    for start, usage in found.items():
        fields = expected[start]
        names = ("Size", "Rss", "AnonHugePages")
        ours = (usage.size_bytes, usage.resident_bytes, usage.anon_huge_bytes)
        assert ours == tuple(fields[name] for name in names), usage.vma
        if not usage.vma.perms.endswith("s"):  # of shared memory smaps asks the file system
            assert usage.swapped_bytes == fields["Swap"]
    assert sum(usage.zero_bytes or 0 for usage in found.values()) >= 700 * PAGE


@pytest.mark.needs("pfn", "kpage")
def test_a_total_is_the_sum(stopped):
    found = usages(stopped.pid)
    total = Usage()
    for usage in found:
        total.add(usage)
    assert total.nr_vmas == len(found)
    for name in ("size_bytes", "resident_bytes", "nr_extents", "exclusive_bytes", "shared_bytes"):
        assert getattr(total, name) == sum(getattr(usage, name) for usage in found)
    assert total.largest_bytes == max(usage.largest_bytes for usage in found)
    assert total.thp_bytes == sum(usage.thp_bytes for usage in found)
    assert sum(total.nodes.values()) == total.resident_bytes + total.hugetlb_bytes
    sizes = sorted(total.contiguous)
    assert all(total.contiguous[a] >= total.contiguous[b] for a, b in pairwise(sizes))


@pytest.mark.needs("pfn", "kpage", "thp")
def test_a_huge_page_and_then_a_part_of_it():
    with Region.huge(2) as region:
        region.touch()
        usage = usage_of(region, usages())
        assert usage.folios["anon"].pmd_bytes == usage.anon_huge_bytes == 2 * HUGE
        assert usage.huge_bytes == 2 * HUGE
        assert usage.contiguous[HUGE] == 2 * HUGE
        assert usage.alignment_bytes == HUGE
        assert usage.largest_bytes >= HUGE
        assert usage.shared_bytes == 0
        assert not usage.folios["anon"].contiguous
        hole = Region.__new__(Region)
        hole.start, hole.size = region.start + 16 * PAGE, PAGE
        hole.madvise(Region.MADV_DONTNEED)
        usage = usage_of(region, usages())
        anon = usage.folios["anon"]
        assert anon.partial_bytes == HUGE - PAGE
        # The kernel may map the other one by PTE meanwhile, as for migration between nodes.
        assert anon.pmd_bytes + anon.aligned.get(HUGE, 0) == HUGE
        assert anon.pmd_bytes == smaps("self")[usage.vma.start]["AnonHugePages"]
        assert anon.contiguous[16 * PAGE] == HUGE - 16 * PAGE
        assert usage.contiguous[HUGE] == HUGE
        hole.size = 0


@pytest.mark.needs("pfn", "kpage", "thp")
def test_memory_after_fork_is_shared(python):
    child = python(
        "import os; from memory import Region; region = Region(256).touch()\n"
        "pid = os.fork()\nif not pid: import signal; signal.pause()",
        wait=WAIT,
    )
    try:
        (found,) = [
            usage
            for usage in usages(child.pid)
            if usage.size_bytes == 256 * PAGE and usage.resident_bytes == 256 * PAGE
        ]
        assert (found.shared_bytes, found.exclusive_bytes) == (256 * PAGE, 0)
    finally:
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


@pytest.mark.needs("pfn", "kpage", "thpmaps")
def test_large_folios_are_those_of_thpmaps(stopped):
    # PROT_NONE is left out by thpmaps and so here.
    theirs = {}
    command = [
        sys.executable,
        shutil.which("thpmaps"),
        "--pid",
        str(stopped.pid),
        "--rollup",
        "--inc-empty",
    ]
    command += ["--cont", "16K", "--cont", "64K", "--cont", "2M"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, size in re.findall(r"^(\S+): +(\d+) kB", output, re.MULTILINE):
        theirs[name] = int(size) * KIB
    total = Usage()
    for usage in usages(stopped.pid):
        if usage.vma.perms[:3] != "---":
            total.add(usage)
    assert compare_with_thpmaps(total, theirs) > 20
    assert any(theirs.values())


def compare_with_thpmaps(total, theirs):
    """Compare all values of thpmaps; return how many there were."""
    nr = 0
    for name, expected in theirs.items():
        kind, what, how, *rest = name.split("-")
        folios = total.folios[kind]
        size = int(rest[-1].removesuffix("kB")) * KIB if name.endswith("kB") else 0
        if how == "pmd":
            found = folios.pmd_bytes
        elif what == "cont":
            found = folios.contiguous.get(size, 0)
        elif rest[0] == "partial":
            found = folios.partial_bytes
        else:
            found = getattr(folios, rest[0]).get(size, 0)
        assert found == expected, name
        nr += 1
    return nr


# Folios of every kind, mapped whole, cut, and out of place, with ordinary pages between them.
FOLIOS = """
from memory import HUGE, PAGE, Region, SHARED, libc
outer = Region.huge(6)
huge = outer.__enter__()
huge.touch()
libc.mprotect(huge.start + HUGE + 100 * PAGE, 50 * PAGE, 1)
for first, nr in ((700, 1), (1024, 30), (1500, 200)):
    libc.munmap(huge.start + first * PAGE, nr * PAGE)
libc.madvise(huge.start + 2100 * PAGE, 3 * PAGE, Region.MADV_DONTNEED)
small = Region(5000).touch()
between = [Region(64) for _ in range(40)]
for region in between:
    region.madvise(Region.MADV_HUGEPAGE, check=False)
    region.touch()
shared = Region(700, flags=SHARED).touch()
"""


def plain(usage):
    """The fields of a usage to compare. The sharing of library pages changes all the time."""
    fields = vars(usage) | {"folios": {kind: vars(has) for kind, has in usage.folios.items()}}
    if usage.vma.path.startswith("/"):
        del fields["exclusive_bytes"]
    return fields


@pytest.mark.alone("others start and end, and the libraries' pages are no longer ours alone")
@pytest.mark.needs("pfn", "kpage", "thp")
def test_parts_make_the_same_whole(python, monkeypatch):
    child = python(FOLIOS, wait=WAIT)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)

    def read(nr_threads, batch=BATCH, *, every_flag=False):
        with Snapshot(child.pid) as snapshot, UsageReader(every_flag=every_flag) as reader:
            snapshot.reader.close()
            snapshot.reader = ExtentReader(snapshot.proc, batch=batch)
            found = reader.iter_usage(snapshot, nr_threads=nr_threads)
            return [plain(usage) for usage in found]

    whole = read(1, every_flag=True)

    def agree(*args, **options):
        """Read both again if they differ: the kernel may have moved a page meanwhile."""
        nonlocal whole
        for _ in range(20):
            if read(*args, **options) == whole:
                return True
            with monkeypatch.context() as patch:
                patch.setattr("physview.memory.extents.SLICE_BYTES", SLICE_BYTES)
                whole = read(1, every_flag=True)
        return False

    folios = [usage["folios"]["anon"] for usage in whole]
    assert sum(item["pmd_bytes"] for item in folios) >= 2 * HUGE
    assert any(item["partial_bytes"] for item in folios)
    assert agree(1)
    # Batches of a few extents and slices of no round size: folios and runs cross the borders.
    for slice_pages, batch in ((BATCH, 3), (20, BATCH), (77, 2)):
        monkeypatch.setattr("physview.memory.extents.SLICE_BYTES", slice_pages * PAGE)
        for every_flag in (False, True):
            assert agree(1, batch, every_flag=every_flag)
            assert agree(4, batch, every_flag=every_flag)


@pytest.mark.needs("pfn", "kpage", "mthp")
def test_folios_smaller_than_huge_pages():
    """Memory in folios of 64 KiB, which the kernel's own counter confirms."""
    with Region.huge(1) as region:
        region.madvise(Region.MADV_NOHUGEPAGE)
        region.size = HUGE - 16 * PAGE  # too little for a huge page
        small = Region(16).touch()
        region.madvise(Region.MADV_HUGEPAGE)
        region.touch()
        assert smallest_anon_order() == 4
        usage = usage_of(region, usages())
        assert usage.folios["anon"].aligned == {64 * KIB: HUGE - 64 * KIB}
        assert usage.folios["anon"].contiguous[64 * KIB] == HUGE - 64 * KIB
        assert usage_of(small, usages()).thp_bytes == 0
        region.size = HUGE


def test_the_smallest_folio_is_what_the_kernel_counts_or_may_make(tmp_path):
    def make(nr_pages, nr_anon, enabled):
        folder = tmp_path / f"thp/hugepages-{nr_pages * PAGE // KIB}kB"
        (folder / "stats").mkdir(parents=True, exist_ok=True)
        (folder / "stats/nr_anon").write_text(f"{nr_anon}\n")
        (folder / "enabled").write_text(
            "always inherit madvise never\n".replace(enabled, f"[{enabled}]")
        )

    def order():
        return smallest_anon_order(f"{tmp_path}/thp", f"{tmp_path}/hugetlb")

    assert order() == 0
    (tmp_path / "thp/hugepages-8kB/stats").mkdir(parents=True)
    (tmp_path / "hugetlb/hugepages-1048576kB").mkdir(parents=True)
    assert order() == 0  # nobody counts
    make(512, 0, "inherit")
    make(16, 0, "never")
    make(4, 0, "never")
    assert order() == 9
    make(16, 0, "madvise")
    assert order() == 4
    make(16, 3, "never")
    assert order() == 4
    make(4, 1, "never")
    assert order() == 0  # not worth it


@pytest.mark.needs("pfn", "kpage")
def test_the_document(physview, stopped):
    document = json.loads(physview("maps", str(stopped.pid), "--json").stdout)
    (process,) = document["processes"]
    assert process["pid"] == stopped.pid
    with open(f"/proc/{stopped.pid}/maps") as file:
        nr = sum("vsyscall" not in line for line in file)
    assert len(process["mappings"]) == nr
    rss = sum(fields["Rss"] for fields in smaps(stopped.pid).values())
    assert document["total"]["resident_bytes"] == process["total"]["resident_bytes"] == rss
    assert sum(item["resident_bytes"] for item in process["mappings"]) == rss
    rollup = json.loads(physview("maps", str(stopped.pid), "self", "--rollup", "--json").stdout)
    assert [item["mappings"] for item in rollup["processes"]] == [None, None]
    for name in ("resident_bytes", "nr_extents", "contiguous", "folios"):
        assert rollup["processes"][0]["total"][name] == process["total"][name]


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_every_line_fits_the_terminal(physview, stopped, columns):
    environment = os.environ | {"COLUMNS": str(columns)}
    for options in ([], ["--rollup", "--frames"]):
        lines = physview("maps", str(stopped.pid), *options, env=environment).stdout.splitlines()
        assert max(map(len, lines)) <= max(columns, 80)
        assert " rss " in lines[0]
        assert (" excl " in lines[0]) == (columns >= 120)
    assert len(lines) >= 2


def test_all_processes_and_a_cgroup(physview, sleeper):
    lines = physview("maps", "--all", "--rollup").stdout.splitlines()
    assert any(line.split()[0] == str(sleeper.pid) for line in lines[1:] if line)
    with open("/proc/self/mountinfo", "rb") as file:  # other tests mount where no text names
        lines = [line for line in file.read().split(b"\n") if b" - cgroup" in line]
    mounts = [os.fsdecode(line.split(b" ")[4]) for line in lines]
    mounts = [mount for mount in mounts if os.path.exists(f"{mount}/cgroup.procs")]
    if mounts:
        document = json.loads(physview("maps", "--cgroup", mounts[0], "--rollup", "--json").stdout)
        assert sleeper.pid in [process["pid"] for process in document["processes"]]


def test_a_folder_that_pretends_to_be_a_cgroup_holds_nobody_up(physview, tmp_path):
    os.mkfifo(tmp_path / "cgroup.procs")
    for path in (tmp_path, tmp_path / "cgroup.procs"):
        result = physview("maps", "--cgroup", str(path), timeout=20)
        assert "is no cgroup" in one_line(result, 2)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no process is named, or several ways"),
        (["self", "--all"], "give one of"),
        (["--cgroup", "/nowhere"], "'/nowhere' is no cgroup: No such file"),
        (["--cgroup", "/tmp"], "it lies in another file system"),
        (["+5"], "is no pid"),
    ],
)
def test_wrong_use(physview, words, why):
    assert why in one_line(physview("maps", *words), 2)


def test_no_such_process_and_a_zombie(physview, zombie):
    assert "no process" in one_line(physview("maps", "4194305"), 1)
    assert "zombie" in one_line(physview("maps", str(zombie.pid)), 1)


@pytest.mark.needs("kthread")
def test_a_kernel_thread(physview):
    assert "kernel thread" in one_line(physview("maps", "2"), 1)


@pytest.mark.needs("nobody")
def test_nobody_gets_sizes_and_hears_what_is_missing(physview):
    result = physview("maps", "self", "--json", prefix=AS_NOBODY)
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert "frame numbers are hidden" in result.stderr
    total = json.loads(result.stdout)["total"]
    assert total["resident_bytes"] > 1 << 20
    assert (total["nr_extents"], total["contiguous"], total["folios"]) == (None, None, None)
    code = (
        "from memory import Region\n"
        "from plain_reads import smaps\n"
        "from readings import usage_of, usages\n"
        "region = Region(300, prot=1); [region.read(i) for i in range(200)]\n"
        "usage = usage_of(region, usages())\n"
        "expected = smaps('self')[usage.vma.start]\n"
        "print(usage.resident_bytes - expected['Rss'], usage.zero_bytes)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
    command = [*AS_NOBODY, sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    difference, zero = map(int, found.stdout.split())
    assert difference == 0
    if os.path.exists("/sys/kernel/mm/transparent_hugepage"):
        assert zero in (0, 200 * PAGE)  # 0 before 6.7, where nothing tells


def test_a_process_that_ends_while_it_is_read(python):
    child = python("from memory import Region; r = Region(1000).touch()")
    with Snapshot(child.pid) as snapshot, UsageReader() as reader:
        usages = reader.iter_usage(snapshot)
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            list(usages)


@pytest.mark.needs("scan")
def test_memory_stays_small_and_numpy_is_not_needed(python):
    child = python(every_second_page(400_000, 1600))
    code = (
        "import re, sys\n"
        "from physview.commands import main\n"
        f"assert main(['maps', '{child.pid}', '--rollup', '--frames']) == 0\n"
        "assert 'numpy' not in sys.modules and 'rich' not in sys.modules\n"
        # ru_maxrss would be that of the tests, from before the exec
        "print(re.search('VmHWM:(.*) kB', open('/proc/self/status').read()).group(1))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) < 60_000
