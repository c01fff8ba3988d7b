# SPDX-License-Identifier: GPL-2.0-or-later
"""Real cgroups for the tests, made below the root of a hierarchy and removed afterwards."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

from physview.sources.cgroups import memory_cgroup_mount
from physview.text import proctext


def writable() -> str:
    """The root of a hierarchy in which cgroups can be made, or ""."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = file.read().split(b"\n")
    # Prefer version 2. In mountinfo, " - " stands before the type of the file system.
    tops = [line.split(b" ")[4] for line in lines if b" - cgroup2 " in line]
    tops += [line.split(b" ")[4] for line in lines if b" - cgroup " in line]
    for top in map(os.fsdecode, tops):
        probe = f"{top}/physview-test-probe-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.mkdir(probe)
            os.rmdir(probe)
            return top
    return ""


def writable_memory() -> str:
    """The root of the hierarchy that memory is charged to, if cgroups can be made there, or ""."""
    mount = memory_cgroup_mount(proctext.read_mounts())
    if mount is None:
        return ""
    probe = f"{mount.path}/physview-test-probe-{os.getpid()}"
    try:
        if mount.kind == "cgroup2":
            with open(f"{mount.path}/cgroup.subtree_control", "w") as file:
                file.write("+memory")
        os.mkdir(probe)
        has_memory = any(name.startswith("memory.") for name in os.listdir(probe))
        os.rmdir(probe)
    except OSError:
        return ""
    return mount.path if has_memory else ""


@contextlib.contextmanager
def branch(names: Sequence[str], pids: Sequence[int], top: str = "") -> Iterator[str]:
    """Nested cgroups, with processes in the innermost.

    Args:
        names: The names of the cgroups, the outermost first.
        pids: The processes that move into the innermost cgroup.
        top: The root of the hierarchy; by default that of `writable()`.

    Yields:
        The path of the outermost cgroup.
    """
    top = top or writable()
    fds = [os.open(top, os.O_RDONLY | os.O_DIRECTORY)]
    made = 0
    try:
        for name in names:
            os.mkdir(name, dir_fd=fds[-1])
            made += 1
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        for pid in pids:
            _move(pid, fds[-1])
        yield f"{top}/{names[0]}"
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _move(pid, fds[0])
        for name, above in reversed(list(zip(names[:made], fds[:made], strict=True))):
            _remove(name, above)
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def joined(path: str, pid: int) -> Iterator[None]:
    """A process is in a cgroup inside the `with` block, and in the root cgroup after it."""
    for folder in (path, None):
        fd = os.open(folder or writable(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            _move(pid, fd)
        finally:
            os.close(fd)
        if folder:
            yield


def _move(pid: int, folder: int) -> None:
    with open(os.open("cgroup.procs", os.O_WRONLY, dir_fd=folder), "wb") as file:
        file.write(b"%d" % pid)


def _remove(name: str, above: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return os.rmdir(name, dir_fd=above)
        except OSError:  # a process is still leaving the cgroup
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
