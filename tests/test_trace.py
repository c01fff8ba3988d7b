# SPDX-License-Identifier: GPL-2.0-or-later
"""physview trace with tracepoints, and the clean-up of its objects in tracefs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import wait_for
from failures import one_line
from limits import DEFAULT_SIGNALS
from memory import PAGE, raw_entry
from processor import PROCESSOR
from users import AS_NOBODY

import physview as api
from physview.commands import parse
from physview.tracing.instance import new_owner

PFN = (1 << 55) - 1
TRACE = [sys.executable, "-m", "physview", "trace"]
PIPES = "import os\nfor _ in range(40): [os.close(fd) for fd in os.pipe()]"
# Happens to nobody: a trace of it goes on until it is ended.
NEVER = "oom:mark_victim"

needs_tracefs = [pytest.mark.needs("tracefs"), pytest.mark.usefixtures("tracefs")]
pytestmark = needs_tracefs


def functions(event):
    return [frame["symbol"] for frame in event["stack"]]


def instances(tracefs):
    return {name for name in os.listdir(f"{tracefs}/instances") if name.startswith("physview-")}


@pytest.fixture
def tracer(tracefs):
    """A function that starts a trace in the background. The trace ends with the test."""
    started = []

    def start(*args):
        before = instances(tracefs)
        process = subprocess.Popen(
            [*DEFAULT_SIGNALS, *TRACE, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)

        def is_at_work():
            assert process.poll() is None, process.communicate()
            new = instances(tracefs) - before
            try:
                return any(
                    Path(tracefs, "instances", name, "tracing_on").read_text() == "1\n"
                    and Path(tracefs, "instances", name, "set_event").read_text()
                    for name in new
                    if name.split("-")[2] == str(process.pid)
                )
            except FileNotFoundError:  # it is just being made: its files come after it
                return False

        wait_for(is_at_work, 60)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_kmalloc_of_a_command_from_its_first_instruction(physview):
    result = physview("trace", "kmalloc", "-n", "5000", "--json", "--", sys.executable, "-c", PIPES)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["probes"][0], document["means"]) == ("kmem:kmalloc", "tracepoint")
    assert document["nr_lost"] == 0
    events = document["events"]
    assert {event["tid"] for event in events} == {document["pid"]}
    pipes = [event for event in events if "alloc_pipe_info" in functions(event)]
    assert len(pipes) >= 80  # the pipe and its ring
    for event in pipes:
        at = functions(event).index(PROCESSOR.entry + "pipe2")
        if os.uname().machine == "x86_64":  # on arm64, more functions lead to it
            assert at == len(functions(event)) - 3
        assert PROCESSOR.is_system_call(functions(event)[at : at + 2], "pipe2")
        assert event["fields"]["bytes_alloc"] >= event["fields"]["bytes_req"] > 0
        assert event["fields"]["gfp_flags"].startswith("GFP_KERNEL_ACCOUNT")
        assert int(event["fields"]["ptr"], 16) >= 1 << 63
    times = [event["time_ns"] for event in events]
    assert times == sorted(times)
    (asked,) = [one for one in document["addresses"] if one["field"] == "ptr"][-1:]
    assert asked["area"] != "user"


def test_areas_that_are_not_known_have_a_cause(physview):
    result = physview("trace", "kmalloc", "--no-stacks", "--", "ls", "/")
    assert result.returncode == 0, result.stderr
    has_kcore = os.path.exists("/proc/kcore")
    named = re.search(r"^  ptr +\S+ direct map, ", result.stdout, re.MULTILINE)
    assert bool(named) == has_kcore
    assert ("lie in the direct map is not known" in result.stderr) != has_kcore
    shown = re.search(r"^  all +\S+ user, process \d+$", result.stdout, re.MULTILINE)
    assert ("it ended before its mappings could be read" in result.stderr) != bool(shown)


def test_nothing_counts_that_was_before_the_command(physview):
    result = physview("trace", "raw_syscalls:sys_enter", "--json", "-n", "50", "--", "true")
    calls = [event["fields"]["id"] for event in json.loads(result.stdout)["events"]]
    assert calls[0] == PROCESSOR.brk  # the first of ld.so
    assert PROCESSOR.execve not in calls


def test_page_allocations_are_those_that_pagemap_shows(tracer, python):
    child = python(
        "import memory; r = memory.Region(50); print(r.start, flush=True)",
        wait="input(); r.touch(); print('done', flush=True); input()",
    )
    process = tracer("mm_page_alloc", str(child.pid), "-n", "100000", "--json")
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"
    before = frames_of(child.pid, 50)
    process.send_signal(signal.SIGINT)
    document = json.loads(process.communicate()[0])
    assert process.returncode == 0
    allocated = {}
    for event in document["events"]:
        for now in event["now"]:
            for owner in now["owners"]:
                if owner["pid"] == child.pid:
                    allocated[int(owner["vaddr"], 16)] = now["pfn"], now["use"]
    assert len(before) == 50
    assert before.keys() <= allocated.keys()
    # The kernel may have moved some pages, before or after physview has read where they are.
    stayed = before.items() & frames_of(child.pid, 50).items()
    assert len(stayed) > 25
    assert stayed <= allocated.items()
    assert document["nr_frames"] >= 50


def frames_of(pid, nr_pages):
    """The frame of each page of the regions with a size, by address, as `allocated` has it."""
    return {
        start + i * PAGE: (entry & PFN, "anon")
        for start, nr in regions_of(pid, nr_pages)
        for i in range(nr)
        if (entry := raw_entry(start + i * PAGE, pid)) >> 63
    }


def regions_of(pid, nr_pages):
    """The mappings with one of these sizes in pages: (start, pages)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if end - start == nr_pages * PAGE and line.split()[-1] == "0":
            yield start, nr_pages


def test_any_tracepoint_and_text_of_any_length(physview):
    program = "true"
    result = physview("trace", "sched:sched_process_exec", "--json", "--", program)
    (event,) = json.loads(result.stdout)["events"]
    assert event["fields"]["filename"].endswith("/true")
    assert event["comm"] == "true"


def test_names_with_blanks_and_brackets_are_names(physview):
    code = f"import ctypes; ctypes.CDLL(None).prctl(15, b'a <b> [c]'); {PIPES}"
    result = physview("trace", "kmalloc", "-n", "9999", "--json", "--", sys.executable, "-c", code)
    assert "a <b> [c]" in {event["comm"] for event in json.loads(result.stdout)["events"]}


def test_lines_for_people_have_fields_stacks_and_what_frames_are_now(physview):
    result = physview("trace", "mm_page_alloc", "-n", "3", "--", "echo", "hello")
    lines = result.stdout.splitlines()
    assert lines[0] == "hello"
    assert " echo  mm_page_alloc  pfn=" in lines[1]
    assert lines[2].startswith("    now ")
    assert lines[3].startswith("        ")
    assert "3 events of kmem:mm_page_alloc (tracepoint)" in lines
    assert any(line.startswith("  now, counting each frame once: ") for line in lines)
    assert result.stderr == "physview: 3 events are traced; waiting for echo to end\n"


def test_the_summary_counts_all_events_by_their_stacks(physview):
    command = ["--", sys.executable, "-c", PIPES]
    result = physview("trace", "kmalloc", "-n", "9999", "--summary", "--json", *command)
    document = json.loads(result.stdout)
    stacks = document["stacks"]
    counts = [stack["nr_events"] for stack in stacks]
    assert sum(counts) == document["nr_events"]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 40
    total = sum(stack["sizes"]["bytes_req"] for stack in stacks)
    assert total == document["sizes"]["bytes_req"]
    text = physview("trace", "kmalloc", "-n", "9999", "--summary", *command).stdout
    assert text.splitlines()[0].split()[1:3] == ["kmalloc", text.split()[2]]
    assert "bytes requested" in text.splitlines()[0]


def test_without_stacks(physview):
    command = ["--", sys.executable, "-c", PIPES]
    result = physview("trace", "kmalloc", "--no-stacks", "-n", "5", "--json", *command)
    assert [event["stack"] for event in json.loads(result.stdout)["events"]] == [[]] * 5


def test_it_ends_with_the_process(python, tracer):
    child = python()
    process = tracer("sched:sched_switch", "--pid", str(child.pid), "-n", "99999")
    child.communicate("\n")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert " of sched:sched_switch (tracepoint)" in stdout


def test_threads_are_traced_and_with_follow_what_a_process_starts(physview):
    code = "import subprocess; subprocess.run(['true'])"
    args = ["raw_syscalls:sys_enter", "-n", "99999", "--no-stacks", "--json"]
    for follow in ([], ["--follow"]):
        result = physview("trace", *args, *follow, "--", sys.executable, "-c", code)
        document = json.loads(result.stdout)
        tids = {event["tid"] for event in document["events"]}
        assert document["pid"] in tids
        assert len(tids) == 1 + len(follow)


def test_a_time_limit(physview):
    start = time.monotonic()
    result = physview("trace", NEVER, "--seconds", "0.5")
    assert result.returncode == 1  # nothing happened
    assert result.stdout == f"0 events of {NEVER} (tracepoint)\n"
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_a_signal_ends_it_and_nothing_is_left(tracer, tracefs, signum, code):
    process = tracer(NEVER)
    process.send_signal(signum)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (code, "")
    assert bool(stdout) == (signum == signal.SIGINT)
    assert not any(name.split("-")[2] == str(process.pid) for name in instances(tracefs))


def test_a_command_ends_with_its_tracer(tracer):
    process = tracer(NEVER, "--", "sleep", "1000")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()


def test_what_was_killed_is_removed_by_the_next_and_the_living_are_left_alone(
    tracer, tracefs, physview
):
    living = tracer(NEVER)
    killed = tracer("kmalloc", "-n", "999999")
    killed.kill()
    killed.communicate()
    mine = new_owner()
    reused = mine._replace(start_time=mine.start_time + 1)
    elsewhere = mine._replace(namespace=1, pid=1 << 30)
    for owner in (reused, elsewhere):
        os.mkdir(f"{tracefs}/instances/{owner.instance}")
    try:
        pids = {name.split("-")[2] for name in instances(tracefs)}
        assert {str(killed.pid), str(living.pid)} <= pids
        assert physview("trace", NEVER, "--seconds", "0.1").returncode == 1
        names = instances(tracefs)
        assert elsewhere.instance in names
        assert reused.instance not in names
        pids = {name.split("-")[2] for name in names}
        assert str(killed.pid) not in pids
        assert str(living.pid) in pids
        assert living.poll() is None
    finally:
        os.rmdir(f"{tracefs}/instances/{elsewhere.instance}")


def test_two_at_once_and_a_third_whose_settings_stay(tracer, tracefs):
    top = Path(tracefs)
    (top / "set_event").write_text("sched:sched_process_exit\n")
    (top / "set_event_pid").write_text(str(os.getpid()))
    names = ("tracing_on", "current_tracer", "set_event", "set_event_pid", "trace_clock")

    def settings():
        return {name: (top / name).read_text() for name in names} | {
            option: (top / "options" / option).read_text()
            for option in ("stacktrace", "event-fork", "overwrite")
            if (top / "options" / option).exists()
        }

    try:
        before = settings()
        assert before["set_event"] == "sched:sched_process_exit\n"
        program = [sys.executable, "-c", f"import time; time.sleep(1); {PIPES}"]
        both = [
            tracer("kmalloc", "--json", "-n", "9999", "--follow", "--", *program),
            tracer("raw_syscalls:sys_enter", "--json", "-n", "9999", "--", *program),
        ]
        assert settings() == before
        documents = [json.loads(process.communicate()[0]) for process in both]
        assert settings() == before
    finally:
        (top / "set_event").write_text("\n")
        (top / "set_event_pid").write_text("\n")
    for document, name in zip(documents, ("kmalloc", "sys_enter"), strict=True):
        assert {event["name"] for event in document["events"]} == {name}
        assert {event["tid"] for event in document["events"]} == {document["pid"]}


def test_a_buffer_that_is_too_small_is_said(tracer):
    code = f"import time; time.sleep(1)\nfor _ in range(100):\n {PIPES.splitlines()[0]}\n"
    code += " [os.close(fd) for _ in range(40) for fd in os.pipe()]"
    args = ["kmalloc", "-n", "900000", "--buffer", "8", "--json"]
    process = tracer(*args, "--", sys.executable, "-c", code)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] == "Z", 60)
    process.send_signal(signal.SIGCONT)
    stdout, stderr = process.communicate()
    document = json.loads(stdout)
    assert document["nr_lost"] > 1000
    said = f"physview: events lost: {document['nr_lost']} more happened while the buffer was full;"
    assert said in stderr
    assert "--buffer" in stderr


def test_the_exit_code_of_a_command_is_told(physview):
    result = physview("trace", "mm_page_alloc", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert result.returncode == 1
    assert result.stdout.startswith("out\n")
    assert "err\n" in result.stderr
    assert "physview: sh ended with exit code 3\n" in result.stderr
    as_json = physview("trace", "kmalloc", "--json", "--", "echo", "out")
    assert json.loads(as_json.stdout)["event"] == "kmalloc"
    assert as_json.stderr.startswith("out\n")


def test_memview_sleeps_for_a_tracer(physview):
    command = [sys.executable, "-m", "physview", "memview", "--virtual", "--sleep", "3"]
    memview = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    pid = memview.stderr.readline().split()[2].decode()
    result = physview("trace", "mm_page_alloc", pid, "--json", "-n", "9999")
    memview.communicate()
    document = json.loads(result.stdout)
    assert {event["tid"] for event in document["events"]} == {int(pid)}
    assert any(one["path"] == "[stack]" for one in document["mappings"])


def test_through_keeps_only_events_whose_stack_passes_a_function(physview):
    command = [sys.executable, "-c", PIPES]
    args = ["kmalloc", "--through", "alloc_pipe_info", "-n", "50"]
    result = physview("trace", *args, "--json", "--", *command)
    document = json.loads(result.stdout)
    assert (document["through"], document["nr_events"]) == ("alloc_pipe_info", 50)
    assert document["nr_others"] > 50  # the interpreter's start
    assert all("alloc_pipe_info" in functions(event) for event in document["events"])
    result = physview("trace", *args, "--summary", "--", *command)
    assert re.search(
        r"^50 events of kmem:.*\(tracepoint\) through alloc_pipe_info, and [0-9]+ other events$",
        result.stdout,
        re.MULTILINE,
    )


@pytest.mark.parametrize("command", [["physview"], ["sh", "-c", 'exec physview "$@"', "sh"]])
def test_a_traced_command_finds_physview_where_it_is_not_on_path(physview, command):
    """As in a checkout, where only scripts/run is."""
    own = os.path.dirname(sys.executable)
    path = ":".join(name for name in os.environ["PATH"].split(":") if name != own)
    result = physview(
        *("trace", "kmalloc", "-n", "1", "--", *command, "--version"),
        env=os.environ | {"PATH": path},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"physview {api.__version__}\n")


def test_options_may_stand_between_the_event_and_the_pid():
    args = parse(["trace", "kmalloc", "-n", "3", "4711"])
    assert (args.event, args.number, args.process) == ("kmalloc", 3, "4711")
    args = parse(["trace", "-n", "3", "kmalloc", "--summary", "4711", "--follow"])
    assert (args.event, args.number, args.process) == ("kmalloc", 3, "4711")


def test_the_library_yields_events_as_they_happen():
    with api.Tracer("kmem:kmalloc", pid=os.getpid()) as tracer:
        os.close(os.dup(0))
        for fd in os.pipe():
            os.close(fd)
        event = next(event for event in tracer if "alloc_pipe_info" in map(str, event.stack))
    assert event.tid == os.getpid()
    assert event.fields["bytes_req"] > 0
    assert event.name == "kmalloc"
    assert tracer.probes[0] == "kmem:kmalloc"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["kmem:kmallok"], "no event 'kmem:kmallok'"),
        (["kmaloc"], "no event or function 'kmaloc'"),
        (["sched_switch"], "similar names are sched:sched_switch"),
        (["a/../b:c"], "no event 'a/../b:c'"),
        (["kmalloc", "1", "--pid", "2"], "trace takes one PID, --pid or command"),
        (["kmalloc", "1", "--", "true"], "trace takes one PID, --pid or command"),
        (["kmalloc", "--"], "nothing to run"),
        (["kmalloc", "--follow"], "--follow needs a process"),
        (["kmalloc", "-n", "0"], "is not a number"),
        (["kmalloc", "--through", "vfs_reed"], "no function 'vfs_reed': this kernel has no"),
        (["kmalloc", "--through", "no_such:vfs_read"], "no function 'no_such:vfs_read'"),
        (["kmalloc", "--through", "x", "--no-stacks"], "--through and --no-stacks exclude"),
        (["kmalloc", "--seconds", "0"], "is not a time from 0.001s"),
    ],
)
def test_wrong_uses(physview, args, said):
    assert said in one_line(physview("trace", *args), 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["kmalloc", "2147483647"], "no process 2147483647"),
        (["kmalloc", "--", "no-such-program"], "cannot run no-such-program: there is no such"),
        (["kmalloc", "--", "/etc/passwd"], "cannot run /etc/passwd"),
    ],
)
def test_missing_events_are_named(physview, args, said):
    assert said in one_line(physview("trace", *args), 1)


def test_a_process_that_has_ended(physview, zombie):
    assert "is gone: it ended" in one_line(physview("trace", "kmalloc", str(zombie.pid)), 1)


@pytest.mark.needs("nobody")
def test_an_unprivileged_user_is_told_that_trace_needs_root(physview):
    line = one_line(physview("trace", "kmalloc", prefix=AS_NOBODY), 1)
    assert "cannot trace: only root may use tracefs; run as root" in line


@pytest.mark.needs("mountns")
def test_how_to_mount_tracefs_where_it_is_not(physview):
    hide = ["unshare", "-m", "sh", "-c", 'umount -a -t tracefs,debugfs; exec "$@"', "sh"]
    line = one_line(physview("trace", "kmalloc", prefix=hide), 1)
    assert "tracefs is not mounted; mount it: " in line
    mount = line.partition("mount it: ")[2].strip()
    again = [*hide[:4], f"umount -a -t tracefs,debugfs; {shlex.join(shlex.split(mount))} && exec "]
    again[4] += '"$@"'
    result = physview("trace", "mm_page_alloc", "--", "true", prefix=[*again, "sh"])
    assert result.returncode == 0, result
