# SPDX-License-Identifier: GPL-2.0-or-later
"""physview watch of several processes: pids, a cgroup, and all."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from descriptors import open_files
from failures import one_line
from screens import LEFT, PtyRun
from users import AS_NOBODY

from physview.analysis.watch_processes import ProcessesWatcher

SETUP = "from memory import Region\nregion = Region(400)"


@pytest.fixture
def start_obedient(obedient_python):
    """A function that starts a process which executes lines of Python on command."""
    return lambda: obedient_python(SETUP)


def of(reading, child):
    return next((one for one in reading.readings if one.pid == child.pid), None)


def test_each_process_has_its_own_changes(start_obedient):
    first, second = start_obedient(), start_obedient()
    with ProcessesWatcher(lambda: [first.pid, second.pid]) as watcher:
        reading = watcher.read()
        assert (reading.seconds, reading.nr_new, reading.nr_gone) == (None, 2, 0)
        assert of(reading, first).nr_changed is None
        first.tell("region.touch(*range(300))")
        reading = watcher.read()
        assert of(reading, first).nr_changed["new"] >= 300
        assert of(reading, second).nr_changed["new"] < 50
        assert of(reading, first).new_faults[0] >= 300


def test_processes_come_and_go(start_obedient, python):
    staying, going = start_obedient(), start_obedient()
    pids = [staying.pid, going.pid]
    with ProcessesWatcher(lambda: pids) as watcher:
        watcher.read()
        going.kill()
        going.wait()
        coming = start_obedient()
        pids.append(coming.pid)
        reading = watcher.read()
        assert (reading.nr_new, reading.nr_gone) == (1, 1)
        assert of(reading, going) is None
        assert of(reading, coming).nr_changed is None
        assert of(watcher.read(), coming).nr_changed is not None
        before = open_files()
        pids.clear()
        assert watcher.read().readings == []
        assert open_files() < before


def test_a_process_that_runs_another_program_begins_anew(python):
    code = f"import os; os.execv({sys.executable!r}, ['python', '-c', 'print(1); input()'])"
    child = python("import os", wait=f"input(); {code}")
    with ProcessesWatcher(lambda: [child.pid]) as watcher:
        watcher.read()
        child.stdin.write("go\n")
        child.stdin.flush()
        assert child.stdout.readline() == "1\n"
        (reading,) = watcher.read().readings
        assert reading.counts is None


def test_several_pids_as_text_and_as_documents(physview, start_obedient):
    first, second = start_obedient(), start_obedient()
    pids = [str(first.pid), str(second.pid)]
    text = physview("watch", *pids, "--ticks", "2", "--interval", "0.1").stdout
    assert text.count("2 processes  mem ") == 2
    for pid in pids:
        assert len(re.findall(rf"^ *{pid} +\S+ .* python", text, re.MULTILINE)) == 2
    lines = physview("watch", *pids, "--ticks", "2", "--interval", "0.1", "--json").stdout
    documents = [json.loads(line) for line in lines.splitlines()]
    assert [{one["pid"] for one in each["processes"]} for each in documents] == [
        {first.pid, second.pid}
    ] * 2
    assert documents[0]["processes"][0]["changes"] is None
    assert documents[1]["processes"][0]["changes"] is not None


def test_one_bad_pid_does_not_lose_the_rest(physview, start_obedient):
    first, second = start_obedient(), start_obedient()
    args = ["watch", str(first.pid), "2147483647", str(second.pid), "--ticks", "1"]
    result = physview(*args, "--json")
    assert "no process 2147483647" in one_line(result, 1)
    document = json.loads(result.stdout)
    assert len(document["processes"]) == 2
    assert document["errors"][0]["asked"] == "2147483647"


@pytest.mark.needs("root")
def test_all_processes_are_those_of_proc(physview):
    document = json.loads(physview("watch", "--all", "--ticks", "1", "--json").stdout)
    pids = {one["pid"] for one in document["processes"]}
    assert {os.getpid(), os.getppid()} <= pids
    own = next(one for one in document["processes"] if one["pid"] == os.getpid())
    statm = Path("/proc/self/statm").read_text().split()
    assert abs(own["nr_resident"] - int(statm[1])) < 4000


@pytest.mark.needs("nobody")
def test_other_users_processes_are_counted_not_shown(physview, stopped):
    result = physview("watch", "--all", "--ticks", "1", "--json", prefix=AS_NOBODY)
    if result.returncode:  # nobody has no other process here
        assert "nothing to watch: you may not examine these" in one_line(result, 1)
        return
    document = json.loads(result.stdout)
    assert document["nr_denied"] > 0
    assert stopped.pid not in {one["pid"] for one in document["processes"]}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "no process is named, or several ways"),
        (["1", "--all"], "no process is named, or several ways"),
        (["--all", "--cgroup", "/"], "no process is named, or several ways"),
        (["--cgroup", "/etc"], "'/etc' is no cgroup"),
    ],
)
def test_wrong_uses(physview, args, said):
    assert said in one_line(physview("watch", *args, "--ticks", "1"), 2)


def test_the_screen_sorts_scrolls_and_quits(start_obedient):
    small, large = start_obedient(), start_obedient()
    large.tell("big = Region(9000).touch()")
    command = [sys.executable, "-m", "physview", "watch", str(small.pid), str(large.pid)]
    with PtyRun([*command, "--interval", "0.2"]) as run:
        run.shows("by mem")
        assert pids_of(run) == [large.pid, small.pid]
        run.press("i")
        run.shows("by pid")
        assert pids_of(run) == sorted([small.pid, large.pid])
        run.press("q")
        assert run.wait() == 0
        assert LEFT.encode() in run.raw


def pids_of(run):
    rows = (line.split() for line in run.lines)
    return [int(words[0]) for words in rows if words[-1:] == ["python"]]
