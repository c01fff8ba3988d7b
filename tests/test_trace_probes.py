# SPDX-License-Identifier: GPL-2.0-or-later
"""physview trace by probes in kernel functions; and what the kernel's addresses are."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import one_line

import physview as api
from physview.tracing.instance import me

pytestmark = [pytest.mark.needs("tracefs"), pytest.mark.usefixtures("tracefs")]

# The course's ioctl, once; it says where its argument lies, of 16 bytes.
ASK = """
import ctypes, fcntl
argument = (ctypes.c_uint64 * 2)(id(fcntl), 0)
with open('/dev/3000physicalview', 'rb') as device:
    fcntl.ioctl(device, 0xC0106B01, argument)
print(ctypes.addressof(argument))
"""
# clone() with CLONE_CHILD_SETTID is told the new thread's number by put_user().
THREADS = "import os, threading; [threading.Thread(target=print).start() for _ in range(3)]"


def functions(event):
    return [frame["symbol"] for frame in event["stack"]]


def probes(tracefs):
    return [
        line
        for line in Path(tracefs, "kprobe_events").read_text().splitlines()
        if "physview_" in line
    ]


@pytest.mark.needs("kprobes", "kmod")
@pytest.mark.parametrize(
    ("event", "user", "kernel"),
    [
        ("copy_to_user", "to", "from"),
        ("copy_from_user", "from", "to"),
    ],
)
def test_the_ioctl_of_the_module_copies(physview, event, user, kernel):
    # Python copies a small argument into a buffer of its own first, on its stack.
    command = ["--", sys.executable, "-S", "-c", ASK]
    result = physview("trace", event, "-n", "100000", "--json", *command)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["probes"] == [f"_{event}"]
    assert document["means"] in ("kprobe", "breakpoint")
    assert (document["nr_lost"], document["nr_throttled"]) == (0, 0)
    (ioctl,) = [e for e in document["events"] if "physicalview_ioctl" in functions(e)]
    assert ioctl["stack"][0]["symbol"] == f"_{event}"
    assert ioctl["stack"][1]["module"] == "3000physicalview"
    assert functions(ioctl)[2:4] == ["__x64_sys_ioctl", "do_syscall_64"]
    assert ioctl["fields"]["n"] == 16
    assert int(ioctl["fields"][user], 16) < 1 << 63 <= int(ioctl["fields"][kernel], 16)
    (stack,) = [one for one in document["mappings"] if one["path"] == "[stack]"]
    assert int(stack["start"], 16) <= int(ioctl["fields"][user], 16) < int(stack["end"], 16)
    assert {one["area"] for one in document["addresses"] if one["field"] == user} == {"user"}
    assert {event["tid"] for event in document["events"]} == {document["pid"]}


@pytest.mark.needs("kprobes", "kmod")
def test_memview_through_the_module_shows_the_ioctl(physview):
    memview = [sys.executable, "-m", "physview", "memview", "--source", "kmod"]
    args = ["copy_from_user", "-n", "100000", "--summary", "--", *memview]
    result = physview("trace", *args)
    assert "physicalview_ioctl [3000physicalview]" in result.stdout
    assert "Memory map report (virtual -> physical)" in result.stdout
    assert " events of _copy_from_user (" in result.stdout


@pytest.mark.needs("kprobes")
def test_put_user_stores_a_value_where_it_is_told_to(physview):
    command = ["--", sys.executable, "-S", "-c", THREADS]
    result = physview("trace", "put_user", "-n", "100000", "--json", *command)
    document = json.loads(result.stdout)
    assert document["probes"] == ["__put_user_1", "__put_user_2", "__put_user_4", "__put_user_8"]
    events = document["events"]
    assert events
    assert all(event["stack"][0]["symbol"].startswith("__put_user_") for event in events)
    assert all(0 < int(event["fields"]["to"], 16) < 1 << 63 for event in events)
    told = [e for e in events if e["name"] == "__put_user_4" and "kernel_clone" in functions(e)]
    # The value is the new thread's number: none is the process's own.
    assert len({event["fields"]["value"] for event in told}) == 3


@pytest.mark.needs("kprobes")
def test_any_function_with_its_arguments(physview, tracefs):
    result = physview("trace", "vfs_read", "-n", "3", "--json", "--", "cat", "/proc/self/stat")
    document = json.loads(result.stdout)
    assert document["means"] == "kprobe"
    for event in document["events"]:
        assert event["stack"][0]["symbol"] == "vfs_read"
        _, buffer, count, *_ = event["fields"].values()
        assert int(buffer, 16) < 1 << 63 if isinstance(buffer, str) else buffer < 1 << 63
        assert count
    assert not probes(tracefs)


@pytest.mark.needs("kprobes")
def test_probes_of_a_trace_that_was_killed_are_removed(physview, tracefs):
    command = [sys.executable, "-m", "physview", "trace", "do_coredump", "-n", "10"]
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
    mine = me()
    group = f"p:{mine.group}/mine do_coredump\n"
    fd = os.open(f"{tracefs}/kprobe_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, group.encode())
        assert physview("trace", "do_exit", "--seconds", "0.1").returncode == 1
        assert [f"{mine.group}/mine" in line for line in probes(tracefs)] == [True]
    finally:
        os.write(fd, f"-:{mine.group}/mine\n".encode())
        os.close(fd)


@pytest.mark.needs("kprobes")
def test_a_function_that_is_none(physview):
    line = one_line(physview("trace", "vfs_raed"), 2)
    assert "no event or function 'vfs_raed'" in line
    assert "vfs_read" in line


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
    assert "physview vm --kernel 6.1 -- physview trace" in line
