# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace buffer of one's own: an instance in tracefs, and probes in a group of one's own.

Nothing of the machine's other tracers is touched. What is made here is removed; what a tracer left
that was killed is removed by the next. Its name tells who made it: pid namespace, pid and start
time, so that neither a reused pid nor one of another container is taken for it.

Source: Documentation/trace/ftrace.rst, Documentation/trace/kprobetrace.rst
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from physview import invocation
from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.procfs import parse_stat

MOUNT = "mount -t tracefs nodev /sys/kernel/tracing"
LOCKDOWN = "/sys/kernel/security/lockdown"

_count = itertools.count()


def trace_in_vm() -> str:
    """The advice for who cannot trace here."""
    return f"trace in a throwaway VM: {invocation.in_vm('trace …', '--kernel 6.1')}"


class Owner(NamedTuple):
    """Who made an instance, or a group of probes.

    Args:
        namespace: Inode of its pid namespace.
        pid: Its pid there.
        start_time: When it started, in clock ticks after boot.
        number: Which of its instances.
    """

    namespace: int
    pid: int
    start_time: int
    number: int

    @classmethod
    def parse(cls, name: str) -> Owner | None:
        """Who a name names; None if it was not given here.

        >>> Owner.parse("physview-1-2-3-0") == Owner.parse("physview_1_2_3_0") == (1, 2, 3, 0)
        True
        >>> Owner.parse("someone's"), Owner.parse("physview-1")
        (None, None)
        """
        match = re.fullmatch("physview" + "[-_]([0-9]+)" * 4, name)
        return cls(*map(int, match.groups())) if match else None

    @property
    def instance(self) -> str:
        """The instance's name."""
        return "-".join(map(str, ("physview", *self)))

    @property
    def group(self) -> str:
        """The probes' group; a name in C."""
        return self.instance.replace("-", "_")

    @property
    def is_dead(self) -> bool:
        """Whether it surely ended: of other pid namespaces nothing can be told."""
        return self.namespace == _namespace() and start_time(self.pid) != self.start_time


def me() -> Owner:
    """This process, and a number that was not given before."""
    pid = os.getpid()
    return Owner(_namespace(), pid, start_time(pid) or 0, next(_count))


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = parse_stat(file.read())
    except OSError:
        return None
    return None if stat.state in "ZX" else stat.start_time


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def find_tracefs() -> str:
    """Where tracefs is mounted.

    Raises:
        Unsupported: It is not mounted, or not in this kernel.
        AccessDenied: It is root's.
    """
    what = "cannot trace"
    with open("/proc/self/mounts", "rb") as file:
        mounts = [line.split(b" ") for line in file]
    found = [os.fsdecode(fields[1]) for fields in mounts if fields[2] == b"tracefs"]
    # Below debugfs the kernel mounts it by itself as soon as it is looked for.
    found += [f"{os.fsdecode(f[1])}/tracing" for f in mounts if f[2] == b"debugfs"]
    for path in found:
        if os.path.exists(f"{path}/instances"):
            if os.access(f"{path}/instances", os.W_OK | os.X_OK):
                return path
            why, remedy = "tracefs is root's", "run as root"
            raise AccessDenied(what, why, remedy, path=path)
    if os.geteuid() != 0:
        raise AccessDenied(what, "tracefs is root's", "run as root")
    with open("/proc/filesystems", "rb") as file:
        if b"\ttracefs\n" in file.read():
            raise Unsupported(
                what, "tracefs is not mounted", f"mount it: {invocation.as_root(MOUNT)}"
            )
    why, remedy = "this kernel has no tracefs", "it takes one with CONFIG_FTRACE=y"
    raise Unsupported(what, why, f"{remedy}, or {trace_in_vm()}")


def locked_down() -> str:
    """The kernel's lockdown, where it is on; "" where it is not."""
    try:
        with open(LOCKDOWN, encoding="ascii") as file:
            match = re.search(r"\[(\w+)\]", file.read())
    except OSError:
        return ""
    return match[1] if match and match[1] != "none" else ""


def refused(what: str, error: OSError, path: str) -> PhysviewError:
    """What an error of a file in tracefs means."""
    if error.errno in (errno.EACCES, errno.EPERM):
        level = locked_down()
        if level:
            why = f"the kernel is locked down ({level})"
            return AccessDenied(what, why, f"boot without lockdown, or {trace_in_vm()}", path=path)
        why = "the kernel refuses this user"
        return AccessDenied(what, why, "run as root, outside of a container", path=path)
    return PhysviewError(what, f"{path}: {error.strerror}", path=path)


def write(path: str, text: str) -> None:
    """Write to a file of tracefs, without cutting it off first: that would clear it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str) -> bytes:
    """Read a file of tracefs.

    Raises:
        PhysviewError: The kernel refuses.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise refused("cannot trace", error, path) from None


class Instance:
    """An instance in tracefs, for as long as it is used.

    Args:
        tracefs: Where tracefs is mounted.

    Raises:
        AccessDenied: The kernel refuses.
        PhysviewError: The kernel has no memory for it.
    """

    def __init__(self, tracefs: str) -> None:
        self.tracefs = tracefs
        self.owner = me()
        self.path = f"{tracefs}/instances/{self.owner.instance}"
        self._open = False
        remove_dead(tracefs)
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise refused("cannot make a trace buffer", error, self.path) from None
        self._open = True

    def set(self, name: str, value: str) -> None:
        """Write one of its files.

        Raises:
            PhysviewError: The kernel refuses.
        """
        path = f"{self.path}/{name}"
        try:
            write(path, value)
        except OSError as error:
            raise refused(f"cannot set {name} to '{value}'", error, path) from None

    def has(self, name: str) -> bool:
        """Whether it has a file."""
        return os.path.exists(f"{self.path}/{name}")

    def add_probe(self, name: str, definition: str) -> None:
        """Define a probe in a group of this instance.

        Args:
            name: What its event is called.
            definition: The place, and what to fetch there.

        Raises:
            OSError: The kernel refuses it.
        """
        write(f"{self.tracefs}/kprobe_events", f"p:{self.owner.group}/{name} {definition}\n")

    def close(self) -> None:
        """Remove it, and its probes. Closing twice is harmless."""
        if self._open:
            self._open = False
            remove(self.tracefs, self.owner)


def remove_dead(tracefs: str) -> None:
    """Remove what tracers left that were killed."""
    names = os.listdir(f"{tracefs}/instances")
    owners = {owner for name in names if (owner := Owner.parse(name))}
    owners |= {owner for group, _ in _probes(tracefs) if (owner := Owner.parse(group))}
    for owner in owners:
        if owner.is_dead:
            remove(tracefs, owner)


def remove(tracefs: str, owner: Owner) -> None:
    """Remove an instance and its probes; that another does so at the same time is no harm."""
    for wait in (0.01, 0.05, 0.2, 1.0, None):
        try:
            os.rmdir(f"{tracefs}/instances/{owner.instance}")
        except FileNotFoundError:
            break
        except OSError as error:
            # Somebody looks into one of its files.
            if error.errno != errno.EBUSY or wait is None:
                break
            time.sleep(wait)
    for wait in (0.05, 0.2, None):
        if _remove_probes(
            tracefs, (n for group, n in _probes(tracefs) if group == owner.group), owner
        ):
            break
        if wait is not None:
            time.sleep(wait)


def _remove_probes(tracefs: str, names: Iterable[str], owner: Owner) -> bool:
    done = True
    for name in list(names):
        try:
            write(f"{tracefs}/kprobe_events", f"-:{owner.group}/{name}\n")
        except OSError as error:
            done = done and error.errno == errno.ENOENT
    return done


def _probes(tracefs: str) -> list[tuple[str, str]]:
    """Group and name of every probe that is defined."""
    try:
        lines = read(f"{tracefs}/kprobe_events").decode().splitlines()
    except PhysviewError:  # there are none in this kernel
        return []
    found = (re.match(r"[a-z][0-9]*:([^/ ]+)/(\S+)", line) for line in lines)
    return [(match[1], match[2]) for match in found if match]
