# SPDX-License-Identifier: GPL-2.0-or-later
"""A process with names that an attacker chose, and runs of all commands on it.

As a program, it starts the process and runs every command in every form of output. It uses the
locale and the user that it was started with. Each run is physview's main() in a forked child. The
results are pickled to stdout.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import cgroups
from command_server import import_what_it_did, prepare_for_forks, tell_imports

STYLE = b"\x1b[7;35m"  # a style that physview does not use
FORGED = b"FORGE"
# A style, invalid UTF-8, the one-byte CSI, a right-to-left override, CR, BEL, a newline.
NASTY = STYLE + b"\xff\xfe\xc2\x9b\xe2\x80\xae\r\x07\v\x1b]0;t\x07\xe2\x80\xa8\\\n" + FORGED
COMM = STYLE + b"\xff\xfe\n" + FORGED  # the kernel keeps 15 bytes
TIMEOUT = 60

CHILD = r"""
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None)
nasty, path, mount = map(os.fsencode, sys.argv[1:])
sys.stdin.readline()  # the parent moves this process into its cgroup first
memory = mmap.mmap(-1, 1 << 16)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.prctl(0x53564D41, 0, ctypes.c_ulong(address), ctypes.c_ulong(1 << 16), nasty)  # PR_SET_VMA
fds = [os.memfd_create(nasty)]
fds += [os.open(name, os.O_RDWR | os.O_CREAT) for name in (path, mount) if name]
maps = []
for fd in fds:
    os.truncate(fd, 1 << 16)
    maps.append(mmap.mmap(fd, 1 << 16))
for each in (memory, *maps):
    each[:] = b"x" * len(each)
at = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (memory, *maps)]
libc.prctl(15, COMM)  # PR_SET_NAME
print(*at, flush=True)
sys.stdin.read()
""".replace("COMM", repr(COMM))


class Target(NamedTuple):
    """The process with hostile names.

    Args:
        pid: Its pid.
        vaddrs: The addresses of its named mappings.
        folder: A folder with a hostile name, for files of the tests.
        cgroup: The path of its cgroup, or None.
    """

    pid: int
    vaddrs: list[int]
    folder: str
    cgroup: str | None


class Result(NamedTuple):
    """The result of one command."""

    command: list[str]
    code: int
    stdout: bytes
    stderr: bytes


@contextlib.contextmanager
def hostile_process(folder: str) -> Iterator[Target]:
    """Start the process. Its files are in a new folder with a hostile name below `folder`."""
    nasty = os.fsdecode(os.path.join(os.fsencode(folder), NASTY))
    os.mkdir(nasty)
    mount = os.path.join(nasty, "mount" + os.fsdecode(NASTY))
    os.mkdir(mount)
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "t", mount], check=False, stderr=subprocess.DEVNULL
        ).returncode
    )
    command = [sys.executable, "-c", CHILD, os.fsdecode(NASTY), f"{nasty}/mapped"]
    command.append(f"{mount}/mapped" if mounted else "")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        cgroup = _make_cgroup(process.pid)
        try:
            process.stdin.write(b"\n")
            process.stdin.flush()
            vaddrs = [int(word) for word in process.stdout.readline().split()]
            yield Target(process.pid, vaddrs, nasty, cgroup)
        finally:
            process.stdin.close()
            process.wait()
            if cgroup:
                os.rmdir(cgroup)
            if mounted:
                subprocess.run(["umount", mount], check=True)


def _make_cgroup(pid: int) -> str | None:
    """Make a memory cgroup with a hostile name, but without newline, which the kernel refuses."""
    cgroups.writable_memory()  # else cgroup2 would charge the memory to its root
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split(b" ") for line in file.read().split(b"\n") if b" - cgroup" in line]
    for line in lines:
        options = line[-1].split(b",")
        if b"cgroup2" not in line and b"memory" not in options:
            continue
        path = os.fsdecode(line[4] + b"/physview-test-%d" % pid + NASTY.replace(b"\n", b""))
        try:
            os.mkdir(path)
            with open(f"{path}/cgroup.procs", "w") as file:
                file.write(str(pid))
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(path)
            continue
        return path
    return None


@contextlib.contextmanager
def hostile_qemu() -> Iterator[str]:
    """A QMP socket at which this process answers, with hostile names for its own memory."""
    import ctypes
    from pathlib import Path

    from qemus import answers, serve

    memory = ctypes.create_string_buffer(b"x" * 8192, 8192)
    name, start = os.fsdecode(NASTY), ctypes.addressof(memory)
    view = ' AS "memory", root: system\n' + f"  {0:016x}-{4095:016x} (prio 0, ram): {name}\n"

    def monitor(line: str) -> str:
        if line.startswith("info"):
            return view
        return f"{name} is {start + int(line.split(' ')[1], 16):#x}"

    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), lambda connection: answers(connection, monitor)) as path,
    ):
        yield path


def fleet_of(target: Target) -> str:
    """The dataset. Its own name is plain: a name that is not UTF-8 is refused."""
    return os.path.join(os.path.dirname(target.folder), f"fleet-{target.pid}")


def make_fleet(folder: str) -> None:
    """Make a dataset in which a program and a host have hostile names."""
    sys.path.append(os.path.join(os.path.dirname(__file__), "../../scripts"))
    from fleet_generate import Fleet, generate

    name = NASTY.decode("utf-8", "replace")
    generate(folder, Fleet(hosts=2, days=0.1, programs=2, interval=600, hostile=name))


def commands(target: Target, qmp: str, *, with_machine: bool) -> dict[str, list[list[str]]]:
    """The command lines to run, by command: every form of output of each.

    Args:
        target: The process.
        qmp: The socket of `hostile_qemu()`.
        with_machine: Also run the slow ones, which read all frames or all processes, and forms
            whose names are printed by the same functions as those of the others.
    """
    pid, vaddr, nasty = str(target.pid), hex(target.vaddrs[-1]), os.fsdecode(NASTY)
    before, after = (f"{target.folder}/{name}.parquet" for name in ("before", "after"))
    both = [before, after]
    fleet = fleet_of(target)
    every = f"{target.vaddrs[0]:#x}-{target.vaddrs[0] + 8192:#x}"
    pages = ["pages", pid, "--columns", "flags,mapcount,cgroup,node"]
    record = [f"{target.folder}/data", "--samples", "1", "--frames-every", "never", "--by"]
    found = {
        "memview": [[], ["--json"], ["--virtual"], ["--repeat", "2", "--virtual"]],
        "translate": [[pid, *map(hex, target.vaddrs), every, "0x0"], [pid, vaddr, "--json"]],
        "maps": [
            [pid], [pid, "--json"], [pid, "--rollup"], [pid, "self"], [pid, "self", "--json"],
            ["--all", "--rollup"], ["--cgroup", target.cgroup or nasty], [pid, "--name", nasty],
            [pid, "-o", "+pss,vmflags,command"], [pid, "-o", nasty], [pid, "--sort", nasty],
            [pid, "-o", "name,command", "--sort", "name", "--format", "csv"],
            [pid, "--format", "jsonl"], [pid, "-o", "name,rss", "--json"],
            [pid, "--format", "parquet", "--output", f"{target.folder}/maps.parquet"],
        ],
        "pages": [
            pages[1:], [*pages[1:], "--each"], [*pages[1:], "--json"], [pid, "--summary"],
            [pid, "--summary", "--json"], [*pages[1:], "--format", "csv"],
            [*pages[1:], "--format", "jsonl"],
            [*pages[1:], "--format", "parquet", "-o", f"{target.folder}/pages.parquet"],
        ],
        "watch": [
            [pid, "--ticks", "2", "--interval", "0.1"],
            [pid, "--ticks", "1", "--json"],
            [pid, "self", "--ticks", "1"], [pid, "self", "--ticks", "1", "--json"],
        ],
        "record": [[*record, "cgroup", *form] for form in ([], ["--json"])],
        "touched": [
            [pid, "--for", "0"], [pid, "--for", "0", "--json"], [pid, "--for", "0", "--top", "1"],
            *([pid, "--for", "0", "--format", f, "--clear"] for f in ("csv", "jsonl")),
            [pid, "--for", "0", "--format", "parquet", "--output", f"{target.folder}/t.parquet"],
            *([pid, "--for", "0", "--picture", f"{target.folder}/t.{s}"] for s in ("svg", "html")),
        ],
        "snapshot": [
            [pid, "-o", before], ["self", "-o", after, "--columns", "flags,cgroup"],
            [pid, "-o", f"{target.folder}/more.parquet", "--json"], [pid, "-o", before],
        ],
        "diff": [
            both, [*both, "--extents"], [*both, "--json"], [*both, "--extents", "--json"],
            [after, before], [*both, "--picture", f"{target.folder}/diff.svg"],
        ],
        "walk": [
            [pid, vaddr], [pid, vaddr, "--json"],
            *([pid, vaddr, "--picture", f"{target.folder}/walk.{s}"] for s in ("svg", "html")),
        ],
        "compare": [[pid], [pid, "--json"]],
        "tables": [[pid], [pid, "self"], ["--all"], [pid, "--json"]],
        "frames": [["--picture", f"{target.folder}/no-frames.gif"]],
        "owners": [[vaddr, "--pid", pid], [vaddr, "--pid", pid, "--json"]],
        "file": [
            [target.folder], [target.folder, "--each"], [target.folder, "--json"],
            [target.folder, "--frames"], [target.folder, "--frames", "--json"],
            [f"{target.folder}/none"], ["--pid", pid], ["--pid", pid, "--json"],
            [target.folder, "--top", "3"],
        ],
        "guest": [
            ["--qmp", qmp], ["--qmp", qmp, "--json"], ["--qmp", qmp, "0x0", "0x123000"],
            ["--qmp", qmp, "0x0", "--json"], ["--qmp", qmp, "--pid", pid], ["--qmp", nasty],
        ],
        "exporter": [
            ["--once", "--by", "cgroup"],
            *(["--print", name] for name in ("alerts", "unit")),
            ["--listen", nasty], ["--password-file", nasty], ["--cert", nasty, "--key", nasty],
        ],
        "picture": [],
        "fleet": [
            [fleet, "thp"], [fleet, "hosts", "--format", "csv"],
            [fleet, "worst", "resident", "--format", "jsonl"], [fleet, "hosts", "--hosts", nasty],
            [fleet, "--sql", "SELECT DISTINCT host, name FROM groups"], [fleet, "--sql", nasty],
            [fleet, "hosts", "--since", nasty], [target.folder, "hosts"],
        ],
        "lab": [[], ["--json"], ["zero"], ["zero", "--json"], ["zero", "--quiz"]],
        "trace": [
            ["kmalloc", "-n", "3", "--seconds", "0.2", pid],
            ["kmalloc", "-n", "3", "--seconds", "0.2", "--json"],
            ["mm_page_alloc", "-n", "9", "--", f"{target.folder}/program"],
            ["kmalloc", "--summary", "-n", "9", "--", f"{target.folder}/program"],
        ],
        "module": [["status"], ["status", "--json"]],
        "vm": [
            ["--memory", nasty], ["list"], ["list", "--json"],
            ["exec", nasty, "--", "true"], ["shell", nasty], ["stop", nasty],
        ],
        "doctor": [[], ["--json"]],
        "completion": [["bash"], ["zsh"], ["fish"]],
    }  # fmt: skip
    if with_machine:
        found["record"] += [[*record, "program"], [*record, "pid", "--json"]]
        found["exporter"] += [["--once"], ["--once", "--by", "pid", "--top", "9999"]]
        found["fleet"] += [
            [fleet, "thp", "--json"], [fleet, "report", "-o", f"{target.folder}/fleet.html"],
        ]  # fmt: skip
        found["vm"] += [["--kernel", nasty, "--", "true"]]  # asks apt
        found["frames"] += [
            [], ["--json"], ["--flags"], ["--picture", f"{target.folder}/frames.svg"],
            ["--cgroup", target.cgroup or nasty, "--list"],
            ["pfn:0x1000-pfn:0x1010", "--list", "--format", "csv"],
        ]  # fmt: skip
        found["picture"] += [
            [pid, "-o", f"{target.folder}/b.svg", "--json"], [pid, "-o", f"{target.folder}/b.html"],
        ]  # fmt: skip
        found["diff"] += [[*both, "--picture", f"{target.folder}/diff.html"]]
    # For each command: a hostile name as argument and as option; and --help. One parser prints what
    # the last two get.
    for command, forms in found.items():
        if with_machine:
            forms += [[f"--{nasty}"], ["--help"]]
        if command not in ("vm", "record"):  # it would start a VM, or record without an end
            forms += [[nasty, nasty], ["--json", f"{nasty}.parquet"]]
        found[command] = [[command, *form] for form in forms]
    found[""] = [[nasty], ["--help"], [f"--{nasty}"]]
    return found


def run(words: list[str]) -> Result:
    """Run a command line in a fork of this process, with files for stdout and stderr."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        learnt, tell = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(learnt)
            _become(words, stdout, stderr, tell)
        os.close(tell)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        import_what_it_did(learnt)
        stdout.seek(0)
        stderr.seek(0)
        return Result(words, code, stdout.read(), stderr.read())


def _become(words: list[str], stdout: Any, stderr: Any, tell: int) -> None:
    import signal

    code: Any = 99
    try:
        signal.alarm(TIMEOUT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        sys.argv = ["physview", *words]
        from physview.commands import main

        code = main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        tell_imports(tell)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Run all commands and write the results to stdout."""
    folder, with_machine = sys.argv[1], sys.argv[2] == "machine"
    prepare_for_forks()
    with hostile_process(folder) as target, hostile_qemu() as qmp:
        with open(f"{target.folder}/program", "w") as file:
            file.write("#!/bin/sh\necho done\n")
        os.chmod(f"{target.folder}/program", 0o755)
        make_fleet(fleet_of(target))
        results = {
            name: [tuple(run(words)) for words in forms]
            for name, forms in commands(target, qmp, with_machine=with_machine).items()
        }
        files = {}
        for name in os.listdir(target.folder):
            if os.path.isfile(f"{target.folder}/{name}"):
                with open(f"{target.folder}/{name}", "rb") as opened:
                    files[name] = opened.read()
    encodings = sys.stdout.encoding, sys.getfilesystemencoding()
    pickle.dump((tuple(target), encodings, results, files), sys.stdout.buffer)


if __name__ == "__main__":
    main()
