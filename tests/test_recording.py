# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sample has: groups of processes, zones, frames and counters."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from memory import PAGE
from paths import ROOT
from users import AS_NOBODY

from physview.analysis.usage_reader import UsageReader
from physview.errors import UsageError
from physview.frames.machine import by_use, read_machine
from physview.recording import groups as groups_module
from physview.recording import process_list, schema
from physview.recording.budget import BURST_SECONDS, Budget
from physview.recording.groups import GroupReader, read_groups
from physview.recording.machine import hash_of_machine, machine, read_counters, read_moment
from physview.recording.process_list import ProcessList, Seen, parse_stat
from physview.recording.process_memory import SUMS
from physview.recording.zones import read_zones, usable_bytes

HOSTILE = b"\x1b[7m\xff\n) R 1"


def row_of(columns, **wanted):
    """The row of a sample with these values."""
    nr = len(columns["name"])
    rows = [{name: values[at] for name, values in columns.items()} for at in range(nr)]
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


NR_CPUS = os.cpu_count() or 1
MAX_COUNTER_ERROR = 3 * NR_CPUS * max(64, 2 * NR_CPUS) * PAGE
"""What the kernel's counters of files, anonymous and shared memory may lack or have too much."""


@pytest.fixture
def few(monkeypatch):
    """Only the processes of the test are listed, so that a reading does not take long."""
    pids = [os.getpid()]
    monkeypatch.setattr(process_list, "list_pids", lambda: pids)
    return pids


@pytest.fixture
def named(python, few):
    """A function that starts a process with a name (comm), which obeys lines of code."""

    def start(name, setup=""):
        code = f"open('/proc/self/comm', 'wb').write({name!r})\nimport mmap\n{setup}"
        child = python(code)
        os.kill(child.pid, signal.SIGSTOP)  # or it would touch one more page some time later
        os.waitpid(child.pid, os.WUNTRACED)
        few.append(child.pid)
        return child

    return start


def test_a_process_has_what_maps_rollup_says(stopped, physview, few):
    few.append(stopped.pid)
    row = row_of(read_groups("pid"), pid=stopped.pid)
    told = json.loads(physview("maps", str(stopped.pid), "--rollup", "--json").stdout)
    told = told["processes"][0]["total"]
    assert row["nr_processes"] == row["nr_read"] == 1
    names = {
        "resident": "resident_bytes",
        "swapped": "swapped_bytes",
        "huge": "huge_bytes",
        "file": "file_bytes",
        "nr_extents": "nr_extents",
    }
    assert {name: row[name] for name in names} == {
        name: told[theirs] for name, theirs in names.items()
    }


@pytest.mark.needs("pfn", "kpage")
def test_blocks_and_folios_are_those_of_the_usage(stopped, few):
    from physview.analysis.usage import Usage
    from physview.memory.snapshot import Snapshot

    few.append(stopped.pid)
    row = row_of(read_groups("pid"), pid=stopped.pid)
    total = Usage()
    with UsageReader() as reader, Snapshot(stopped.pid) as snapshot:
        for usage in reader.iter_usage(snapshot):
            total.add(usage)
    assert row["in_64k"] == total.contiguous.get(65536, 0)
    assert row["in_2m"] == total.contiguous.get(1 << 21, 0)
    assert row["largest_extent"] == total.largest_bytes
    assert row["folios"] == total.thp_bytes
    partial = sum(kind.partial_bytes for kind in total.folios.values())
    assert sum(row["folios_by_order"]) == total.thp_bytes - partial


def test_a_program_is_the_sum_of_its_processes(named):
    first, second = (
        named(b"pv-sum"),
        named(b"pv-sum", "m = mmap.mmap(-1, 1 << 20); m[:] = b'x' * (1 << 20)"),
    )
    with GroupReader("program") as programs, GroupReader("pid") as pids:
        row = row_of(programs.read(), name="pv-sum")
        each = pids.read()
    parts = [row_of(each, pid=child.pid) for child in (first, second)]
    assert row["nr_processes"] == 2
    for name in (*SUMS, "minor_faults", "major_faults"):
        if name != "shared" and row[name] is not None:  # others start and end
            assert row[name] == sum(part[name] for part in parts), name
    assert row["largest_extent"] in (None, max(part["largest_extent"] or 0 for part in parts))


def test_a_process_that_has_not_changed_is_not_read_again(named, monkeypatch):
    child = named(b"pv-kept")
    with GroupReader("pid") as reader:
        before = row_of(reader.read(), pid=child.pid)
        after = row_of(reader.read(), pid=child.pid)
        assert (before["nr_read"], before["nr_kept"], before["age"]) == (1, 0, 0)
        assert (after["nr_read"], after["nr_kept"], after["nr_stale"]) == (0, 1, 0)
        assert after["age"] > 0
        assert [after[name] for name in SUMS] == [before[name] for name in SUMS]
        # Its frames may move without a trace in stat, so it is read again some time.
        monkeypatch.setattr(groups_module, "REFRESH_SECONDS", 0.0)
        assert row_of(reader.read(), pid=child.pid)["nr_read"] == 1


def test_a_process_that_has_changed_is_read_again_or_called_stale(obedient, few):
    few.append(obedient.pid)
    with GroupReader("pid") as reader:
        before = row_of(reader.read(), pid=obedient.pid)
        obedient.tell(
            f"regions.append(mmap.mmap(-1, {64 * PAGE})); regions[-1][:] = bytes({64 * PAGE})"
        )
        stale = row_of(reader.read(0.0), pid=obedient.pid)
        kept = stale["nr_kept"], stale["nr_stale"], stale["resident"]
        assert kept == (1, 1, before["resident"])
        after = row_of(reader.read(), pid=obedient.pid)
        assert after["nr_read"] == 1
        assert after["resident"] >= before["resident"] + 64 * PAGE


def test_without_budget_processes_are_unread_and_in_no_sum(named):
    child = named(b"pv-unread")
    with GroupReader("pid") as reader:
        row = row_of(reader.read(0.0), pid=child.pid)
        assert (row["nr_processes"], row["nr_unread"], row["resident"]) == (1, 1, None)
        read = reader.read(1e-9)
        assert sum(read["nr_read"]) == 1  # one, however large it is


def test_without_budget_the_kernel_s_own_counters_tell_the_size_of_each_process(obedient, few):
    few.append(obedient.pid)
    grow = f"regions.append(mmap.mmap(-1, {1 << 24})); regions[-1][:] = bytes({1 << 24})"
    with GroupReader("pid") as reader:
        exact = row_of(reader.read(), pid=obedient.pid)
        assert abs(exact["resident_approx"] - exact["resident"]) <= MAX_COUNTER_ERROR
        obedient.tell(grow)
        stale = row_of(reader.read(0.0), pid=obedient.pid)
        assert stale["resident"] == exact["resident"]
        grown = stale["resident_approx"] - exact["resident_approx"]
        assert abs(grown - (1 << 24)) <= 2 * MAX_COUNTER_ERROR
    with GroupReader("pid") as reader:
        unread = row_of(reader.read(0.0), pid=obedient.pid)
        assert unread["resident"] is None
        assert abs(unread["resident_approx"] - stale["resident_approx"]) <= MAX_COUNTER_ERROR


def test_faults_of_ended_processes_stay_in_the_sum(named):
    first, second = named(b"pv-ended"), named(b"pv-ended")
    with GroupReader("program") as reader:
        before = row_of(reader.read(), name="pv-ended")
        first.kill()
        first.wait()
        after = row_of(reader.read(), name="pv-ended")
    assert second.poll() is None
    assert after["nr_processes"] == 1
    assert after["minor_faults"] >= before["minor_faults"] > 0


def test_small_groups_are_joined_in_one_row_without_a_name(named):
    named(b"pv-small"), named(b"pv-small")
    with GroupReader("pid", max_groups=1) as reader:
        found = reader.read()
    assert reader.nr_groups == 3
    assert len(found["name"]) == 2
    assert found["name"][1] is found["pid"][1] is None
    assert found["resident"][0] >= 0
    assert found["nr_processes"][0] == 1
    assert found["nr_processes"][1] == 2


def test_hostile_names_stay_one_name(named):
    child = named(HOSTILE)
    row = row_of(read_groups("pid"), pid=child.pid)
    row["name"].encode()  # valid UTF-8
    assert row["name"] == r"\x1b[7m\xff\n) R 1"


def test_kernel_threads_and_zombies_are_left_out(python):
    listed = {seen.pid for seen in ProcessList().read()}
    assert os.getpid() in listed
    for pid in listed:
        if os.path.exists(f"/proc/{pid}/stat"):
            assert (
                not int(
                    Path(f"/proc/{pid}/stat")
                    .read_text(errors="replace")
                    .rpartition(")")[2]
                    .split(" ")[7]
                )
                & 0x200000
            )
    assert parse_stat(1, b"1 (a) X 1 7 7 0 -1 64 5 0 6 0 0 0 0 0 20 0 1 0 99 8192 3 0") is None


def test_a_wrong_grouping_names_the_right_one():
    with pytest.raises(UsageError, match="program"):
        GroupReader("progam")


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_records_own_processes_and_counts_the_others():
    code = (
        "import json, os\n"
        "from physview.recording.groups import read_groups\n"
        "from physview.recording.zones import read_zones\n"
        "zones = read_zones()\n"
        "print(json.dumps([os.getpid(), read_groups('pid'), zones]))"
    )
    run = [*AS_NOBODY, sys.executable, "-c", code]
    output = subprocess.run(run, capture_output=True, check=True, cwd=ROOT).stdout
    pid, found, zones = json.loads(output)
    own = row_of(found, pid=pid)
    assert own["resident"] > 0
    assert own["nr_extents"] is own["folios"] is own["largest_extent"] is None
    assert found["name"][-1] is None
    assert found["nr_denied"][-1] > 0
    assert found["resident"][-1] is None
    assert sum(zones["free"]) > 0


def test_zones_agree_with_the_kernels_lists():
    found = read_zones()
    blocks = Path("/proc/buddyinfo").read_text()
    assert [f"{node} {zone}" for node, zone in zip(found["node"], found["zone"], strict=True)] == [
        f"{node} {zone}"
        for node, zone in re.findall(r"^Node (\d+), zone +(\w+) ", blocks, re.M)
        if f"{node} {zone}"
        in [f"{n} {z}" for n, z in zip(found["node"], found["zone"], strict=True)]
    ]
    for at, free_blocks in enumerate(found["free_blocks"]):
        pages = [nr << order for order, nr in enumerate(free_blocks)]
        for order, index in enumerate(found["unusable"][at]):
            suitable = sum(pages[order:])
            assert index == pytest.approx((sum(pages) - suitable) / max(1, sum(pages)))
        assert 0 <= found["managed"][at] <= found["present"][at]
    assert all(value is None for value in found["could_2m"])
    assert usable_bytes([0] * 11, 1 << 21) == 0


@pytest.mark.needs("kpage")
def test_frames_are_counted_as_the_command_frames_counts_them():
    found = read_zones(with_frames=True)
    told = {}
    for zone in read_machine().zones:
        for use, (nr, _) in by_use(zone.counts).items():
            told[use.value] = told.get(use.value, 0) + nr * PAGE
    mine = {name: sum(found[name]) for name in ("anon", "file", "slab", "page_tables", "reserved")}
    assert mine["reserved"] == told["reserved"]
    assert mine["anon"] == pytest.approx(told["anon"] + told.get("ksm", 0), rel=0.3)
    assert mine["file"] == pytest.approx(told["page_cache"] + told.get("shmem", 0), rel=0.3)
    for at, present in enumerate(found["present"]):
        assert found["could_1g"][at] <= found["could_2m"][at] <= present
        assert found["usable_1g"][at] <= found["could_1g"][at]
        used = sum(found[name][at] for name in ("anon", "file", "slab", "page_tables", "other"))
        assert used <= present


def test_frames_of_two_megabytes_are_movable_only_if_all_are():
    from physview.recording.zone_frames import FRAMES_IN_2M, ZoneFrames

    free, anon, slab = 1 << 10, 1 << 12, 1 << 7
    counter = ZoneFrames()
    counter.add(0, {free: FRAMES_IN_2M - 1, anon: 1})
    counter.add(FRAMES_IN_2M, {free: FRAMES_IN_2M - 1, slab: 1})
    counter.add(2 * FRAMES_IN_2M, {free: FRAMES_IN_2M})
    row = counter.row()
    assert (row["could_2m"], row["could_1g"], row["usable_1g"]) == (2 << 21, 0, 0)
    assert (row["anon"], row["slab"]) == (PAGE, PAGE)
    for block in range((1 << 30) // (1 << 21)):
        counter.add((1 << 30) // PAGE + block * FRAMES_IN_2M, {free: FRAMES_IN_2M})
    row = counter.row()
    assert (row["could_1g"], row["usable_1g"]) == (1 << 30, 1 << 30)


def test_counters_are_those_of_vmstat_and_meminfo():
    row = {name: values[0] for name, values in read_counters().items()}
    assert set(row) == {*schema.MEMINFO, *schema.VMSTAT}
    assert row["total"] == os.sysconf("SC_PHYS_PAGES") * PAGE
    assert row["pgfault"] > 0


def test_the_machine_is_a_hash_that_systemd_makes_too():
    moment = read_moment()
    machine_id = Path("/etc/machine-id")
    if machine_id.exists() and machine_id.read_text().strip():
        assert machine_id.read_text().strip() not in str(moment)
    # Computed by systemd-id128 machine-id --app-specific=7d0d4d3f52b94c0c9f5fb0e7e5a8c416.
    known = bytes.fromhex("3d1219c7c4c5404aaa1f6d2a48adfda4")
    assert hash_of_machine(known) == "074cc56a78ca4a898a56c222a15cbebe"
    assert moment["machine"] == machine()
    assert moment["since_boot"] > 0


class Spender:
    """Runs a budget for a time that is only counted, and adds up what was spent."""

    def __init__(self, budget, every=10.0):
        self.budget, self.every = budget, every
        self.spent = self.nr_samples = self.nr_skipped = self.nr_frames = 0

    def run(self, seconds, *, fixed, wanted, frames=0.0):
        for _ in range(int(seconds / self.every)):
            self.budget.pass_time(self.every)
            if not self.budget.allows_sample():
                self.nr_skipped += 1
                continue
            memory = wanted if self.budget.seconds_for_memory() > 0 else 0.0
            self.budget.pay(fixed + memory, memory)
            self.spent += fixed + memory
            self.nr_samples += 1
            if frames and self.budget.allows_frames():
                self.budget.pay_frames(frames)
                self.spent += frames
                self.nr_frames += 1


@pytest.mark.parametrize(
    ("fixed", "wanted", "frames", "skips"),
    [
        (0.02, 0.5, 0.3, False),
        (0.02, 30.0, 0.3, False),  # one process that takes half a minute
        (0.5, 0.5, 0.3, True),
        (0.01, 0.01, 20.0, False),
    ],
)
def test_a_budget_is_kept_whatever_a_sample_costs(fixed, wanted, frames, skips):
    share, hours = 0.01, 24 * 3600.0
    spender = Spender(Budget(share, total_bytes=10 << 30))
    spender.run(hours, fixed=fixed, wanted=wanted, frames=frames)
    allowed = share * (hours + BURST_SECONDS) + wanted + fixed + frames
    assert spender.spent <= allowed
    assert bool(spender.nr_skipped) == skips
    assert spender.nr_samples > 100
    assert spender.nr_frames > 3


def test_frames_can_be_read_at_fixed_times_or_never():
    never = Spender(Budget(0.01, frames_every=0))
    never.run(3600, fixed=0.01, wanted=0.0, frames=0.3)
    assert never.nr_frames == 0
    each = Spender(Budget(0.01, frames_every=60))
    each.run(3600, fixed=0.01, wanted=0.0, frames=0.3)
    assert each.nr_frames == 60


def test_a_process_that_ends_while_it_is_read_is_no_trouble(named, monkeypatch):
    child, real = named(b"pv-gone"), UsageReader.iter_chunks

    def iter_chunks(reader, snapshot, **options):
        for chunk in real(reader, snapshot, **options):
            if snapshot.pid == child.pid:
                child.kill()
                child.wait()
            yield chunk

    monkeypatch.setattr(UsageReader, "iter_chunks", iter_chunks)
    with GroupReader("pid") as reader:
        row = row_of(reader.read(), pid=child.pid)
        assert (row["nr_unread"], row["resident"]) == (1, None)
        assert reader.trouble == ""
        assert reader.nr_gone == 1
        assert child.pid not in reader.read()["pid"]


def test_a_large_process_that_changes_all_the_time_does_not_starve_small_ones():
    """100 samples with time for 20 ms: a process that takes 19 ms, and 30 that take 1 ms each."""

    def known(pid, cost):
        found = groups_module._Known(Seen(pid, b"1", b"a", 0, 0, b"1", 1))
        found.memory, found.read_as, found.read_at, found.cost = (
            object(),
            found.seen.changes,
            0.0,
            cost,
        )
        return found

    large, small = known(1, 0.019), [known(pid, 0.001) for pid in range(2, 32)]
    oldest = {}
    for now in range(10, 1010, 10):
        for one, faults in [(large, 10_000), *((each, 10) for each in small)]:
            one.seen = one.seen._replace(minor_faults=one.seen.minor_faults + faults)
        left = 0.02
        for one in sorted([large, *small], key=lambda one: one.priority(now), reverse=True):
            if one.cost <= left:
                left -= one.cost
                one.read_as, one.read_at = one.seen.changes, float(now)
        for one in (large, *small):
            oldest[one.seen.pid] = max(oldest.get(one.seen.pid, 0), now - one.read_at)
    assert oldest.pop(1) <= 120
    assert max(oldest.values()) <= 120


@pytest.mark.needs("swap")
def test_swapped_memory_is_told_of_the_process_and_of_the_machine(named):
    size = 8 << 20
    code = f"m = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    code += f"import os\nm.write(os.urandom({size}))\nm.madvise(21)"  # MADV_PAGEOUT
    before = read_counters()["pswpout"][0]
    child = named(b"pv-swap", code)
    row = row_of(read_groups("pid"), pid=child.pid)
    assert row["swapped"] >= size // 2
    assert read_counters()["pswpout"][0] - before >= size // 2 // PAGE


@pytest.mark.needs("nodes")
def test_each_node_has_its_zones(physview):
    found = read_zones()
    assert {0, 1} <= set(found["node"])
    assert len(set(zip(found["node"], found["zone"], strict=True))) == len(found["node"])


def test_new_processes_do_not_go_before_one_that_changed_long_ago():
    now = groups_module._clock()
    old = groups_module._Known(Seen(1, b"1", b"a", 100, 0, b"1", 10))
    old.memory, old.read_as, old.read_at = object(), (0, 0, b"1", 10, b"a"), now - 60
    new = groups_module._Known(Seen(2, b"1", b"a", 200, 0, b"1", 100))
    assert old.priority(now) > new.priority(now)
