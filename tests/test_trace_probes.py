# SPDX-License-Identifier: GPL-2.0-or-later
"""physview trace with probes in kernel functions, and the meaning of kernel addresses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from failures import one_line
from processor import PROCESSOR

import physview as api
from physview.tracing.instance import new_owner

pytestmark = [pytest.mark.needs("tracefs"), pytest.mark.usefixtures("tracefs")]

# The course's ioctl. Python copies a small argument to its stack first.
ASK = """
with open('/dev/3000physicalview', 'rb') as device:
    fcntl.ioctl(device, 0xC0106B01, argument)
"""
THREADS = "for _ in range(3): threading.Thread(target=int).start()"


def functions(event):
    return [frame.symbol for frame in event.stack]


@pytest.fixture
def traced(python):
    """A function that runs Python code in a traced process; returns the process and the events."""

    def trace(event, code, *, whole_machine=False):
        setup = "import ctypes, fcntl, threading; argument = (ctypes.c_uint64 * 2)(id(fcntl), 0)"
        child = python(setup, wait=f"input()\n{code}\nprint('done', flush=True); input()")
        with api.Tracer(event, pid=None if whole_machine else child.pid) as tracer:
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            events = tracer.finish()
            assert tracer.losses == (0, 0)
        return child, tracer, events

    return trace


def probes(tracefs):
    return [
        line
        for line in Path(tracefs, "kprobe_events").read_text().splitlines()
        if "physview_" in line
    ]


@pytest.mark.needs("kprobes", "kmod")
@pytest.mark.parametrize(
    ("event", "user", "kernel"), [("copy_to_user", "to", "from"), ("copy_from_user", "from", "to")]
)
def test_the_ioctl_of_the_module_copies(traced, event, user, kernel):
    child, tracer, events = traced(event, ASK)
    assert tracer.probes == (PROCESSOR.copy + event,)
    assert tracer.means in ("kprobe", "breakpoint")
    (ioctl, *again) = [event for event in events if "physicalview_ioctl" in functions(event)]
    assert len(again) <= PROCESSOR.repeats
    assert all((event.fields, event.stack) == (ioctl.fields, ioctl.stack) for event in again)
    assert functions(ioctl)[0] == tracer.probes[0]
    assert ioctl.stack[1].module == "3000physicalview"
    assert PROCESSOR.is_system_call(functions(ioctl)[2:4], "ioctl")
    assert ioctl.fields["n"] == 16
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    start, end = re.search(r"^(\w+)-(\w+) .*\[stack\]$", maps, re.MULTILINE).groups()
    assert int(start, 16) <= ioctl.fields[user] < int(end, 16)
    assert ioctl.fields[kernel] >= 1 << 63
    assert {event.tid for event in events} == {child.pid}


@pytest.mark.needs("kprobes", "kmod")
def test_memview_through_the_module_shows_the_ioctl(physview):
    memview = [sys.executable, "-m", "physview", "memview", "--source", "kmod"]
    args = ["copy_to_user", "-n", "100000", "--summary", "--", *memview]
    result = physview("trace", *args)
    assert "physicalview_ioctl [3000physicalview]" in result.stdout
    assert "Memory map report (virtual -> physical)" in result.stdout
    assert f" events of {PROCESSOR.copy}copy_to_user (" in result.stdout


# Each call copies a mask of N bytes: 3 in the main thread, 5 in another, 6 in a child, and 7 after
# exec() in another thread of the child.
COPY = """
import ctypes, os, sys, threading
def copy(n): ctypes.CDLL(None).sched_setaffinity(0, n, b'\\xff' * n)
"""
COPIES = f"""{COPY}
copy(3)
thread = threading.Thread(target=copy, args=[5])
thread.start()
thread.join()
if os.fork():
    os.wait()
else:
    copy(6)
    command = [sys.executable, '-S', '-c', {COPY + "copy(7)"!r}]
    threading.Thread(target=os.execv, args=[sys.executable, command]).start()
"""


@pytest.mark.needs("kprobes")
@pytest.mark.parametrize(("follow", "copied"), [([], {3}), (["--follow"], {3, 5, 6, 7})])
def test_the_copies_of_a_command_and_of_what_it_starts(physview, python, follow, copied):
    """Others copy all the time, and the command's copies before its exec() are physview's."""
    python(COPY, wait="while True: copy(4)")
    words = ["copy_from_user", "-n", "1000000", "--no-stacks", "--json", *follow]
    result = physview("trace", *words, "--", sys.executable, "-S", "-c", COPIES)
    document = json.loads(result.stdout)
    assert document["nr_lost"] == 0
    assert {event["fields"]["n"] for event in document["events"]} & set(range(3, 8)) == copied


@pytest.mark.needs("kprobes", "x86_64")  # elsewhere it is inlined
def test_put_user_stores_a_value_where_it_is_told_to(traced):
    child, tracer, events = traced("put_user", THREADS, whole_machine=True)
    assert tracer.probes == ("__put_user_1", "__put_user_2", "__put_user_4", "__put_user_8")
    events = [event for event in events if event.tid == child.pid]
    assert all(functions(event)[0] == event.name for event in events)
    # clone() with CLONE_PARENT_SETTID is told the new thread's number so.
    told = [e for e in events if e.name == "__put_user_4" and "kernel_clone" in functions(e)]
    assert len({event.fields["value"] for event in told}) == 3
    assert all(child.pid < event.fields["value"] for event in told)
    assert all(0 < event.fields["to"] < 1 << 63 for event in told)


@pytest.mark.needs("kprobes")
def test_any_function_with_its_arguments(traced, tracefs):
    _, tracer, events = traced("vfs_read", "open('/proc/self/stat', 'rb', buffering=0).read(4711)")
    assert tracer.means == "kprobe"
    (event,) = [event for event in events if 4711 in event.fields.values()]
    assert functions(event)[0] == "vfs_read"
    file, buffer, count, *_ = event.fields.values()
    assert (file >> 63, buffer >> 63, count) == (1, 0, 4711)
    assert not probes(tracefs)


@pytest.mark.needs("kprobes")
def test_a_function_by_its_address(traced):
    symbols = Path("/proc/kallsyms").read_text()
    (address,) = re.findall(r"^(\w{16}) [tTwW] vfs_read$", symbols, re.MULTILINE)
    code = "open('/proc/self/stat', 'rb', buffering=0).read(4711)"
    _, tracer, events = traced(f"0x{address}", code)
    assert (tracer.probes, tracer.means) == ((f"vfs_read at 0x{address}",), "kprobe")
    (event,) = [event for event in events if 4711 in event.fields.values()]
    assert (event.name, functions(event)[0]) == ("vfs_read", "vfs_read")


@pytest.mark.needs("kprobes", "kmod")
def test_a_function_of_a_module(traced):
    name = "3000physicalview:physicalview_ioctl"
    _, tracer, events = traced(name, ASK)
    assert tracer.probes == (name,)
    # open() asks, too. The caller is the system call's function, also where a register has it.
    callers = {tuple(functions(event)[:2]) for event in events}
    assert callers == {("physicalview_ioctl", f"{PROCESSOR.entry}ioctl")}
    assert not any("physview_link" in event.fields for event in events)
    with pytest.raises(api.UsageError, match="no event '3000physicalview:no_such'"):
        api.Tracer("3000physicalview:no_such")


@pytest.mark.needs("kprobes")
def test_probes_of_a_trace_that_was_killed_are_removed(tracefs):
    command = [sys.executable, "-m", "physview", "trace", "kernel_restart"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not any(f"_{killed.pid}_" in line for line in probes(tracefs)):
        assert time.monotonic() < end
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.1)
    time.sleep(1)  # for it to be at work
    killed.kill()
    killed.communicate()
    with api.Tracer("kmem:kmalloc", pid=os.getpid()):
        assert not probes(tracefs)
    # One that is defined, and belongs to somebody who lives, stays.
    mine = new_owner()
    probe = f"p:{mine.group}/mine kernel_restart\n"
    fd = os.open(f"{tracefs}/kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, probe.encode())
        with api.Tracer("kernel_halt") as tracer:
            assert tracer.means == "kprobe"
            assert [f"{mine.group}/mine" in line for line in probes(tracefs)].count(True) == 1
            assert len(probes(tracefs)) == 2
        assert len(probes(tracefs)) == 1
    finally:
        os.write(fd, f"-:{mine.group}/mine\n".encode())
        os.close(fd)


@pytest.mark.needs("kprobes")
def test_a_function_that_is_none():
    with pytest.raises(api.UsageError, match=r"no event or function 'vfs_raed'.*vfs_read"):
        api.Tracer("vfs_raed")


@pytest.mark.needs("kprobes", "x86_64")  # exc_int3 is its
def test_a_function_that_is_refused_by_its_name_is_not_said_to_lack_kprobes(physview):
    """It handles the breakpoints themselves (NOKPROBE_SYMBOL, noinstr)."""
    line = one_line(physview("trace", "exc_int3", "--", "true"), 1)
    assert line.startswith("physview: cannot trace exc_int3: ")
    assert "none in this function" in line
    assert "no kprobes" not in line


@pytest.mark.needs("kcore", "kpage")
def test_kernel_objects_lie_in_the_direct_map_and_in_slabs(physview):
    code = "import os, time\nkept = [os.pipe() for _ in range(40)]\ntime.sleep(1)"
    result = physview(
        "trace", "kmalloc", "-n", "40", "--json", "--", sys.executable, "-S", "-c", code
    )
    document = json.loads(result.stdout)
    offset = int(document["direct_map"], 16)
    for event in document["events"]:
        assert int(event["fields"]["ptr"], 16) == int(event["paddr"], 16) + offset
    uses = {one["use"]: one["nr_frames"] for one in document["uses_now"]}
    assert max(uses, key=uses.get) == "slab"
    assert [one["area"] for one in document["addresses"]] == ["direct map"]


def test_a_kernel_without_kprobes_offers_a_vm(physview, tracefs):
    if os.path.exists(f"{tracefs}/kprobe_events"):
        return
    line = one_line(physview("trace", "copy_to_user"), 1)
    assert "this kernel has no kprobes" in line
    assert " vm --kernel 6.1 -- physview trace" in line
