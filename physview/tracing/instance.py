# SPDX-License-Identifier: GPL-2.0-or-later
"""A private ftrace instance: its own trace buffer in tracefs, and its own group of probes.

An instance does not affect other tracers of the machine. The tracer removes its instance at the
end. If a tracer was killed, the next tracer removes the stale instance. An instance's name contains
its owner's pid namespace, pid and start time, so that a process with a reused pid, or with the same
pid in another container, is not taken for the owner.

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

from physview.errors import PhysviewError
from physview.sources.procfs import parse_stat
from physview.text import proctext
from physview.tracing.tracefs import Tracefs, refused

_count = itertools.count()


class InstanceOwner(NamedTuple):
    """The process that made an instance and its group of probes.

    Args:
        namespace: The inode of the process's pid namespace.
        pid: The process's pid in this namespace.
        start_time: The process's start time, in clock ticks after boot.
        number: The number of the instance within the process.
    """

    namespace: int
    pid: int
    start_time: int
    number: int

    @classmethod
    def parse(cls, name: str) -> InstanceOwner | None:
        """Return the owner from the name of an instance or group; None if it is not physview's.

        >>> tuple(InstanceOwner.parse("physview-1-2-3-0") or ())
        (1, 2, 3, 0)
        >>> tuple(InstanceOwner.parse("physview_1_2_3_0") or ())
        (1, 2, 3, 0)
        >>> InstanceOwner.parse("someone's"), InstanceOwner.parse("physview-1")
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
        """The name of the group of probes. It must be an identifier in C."""
        return self.instance.replace("-", "_")

    @property
    def has_ended(self) -> bool:
        """Whether the owner has certainly ended. Owners in other pid namespaces count as alive."""
        return self.namespace == _namespace() and start_time(self.pid) != self.start_time


def new_owner() -> InstanceOwner:
    """Return this process as the owner of a new instance, with an unused number."""
    pid = os.getpid()
    return InstanceOwner(_namespace(), pid, start_time(pid) or 0, next(_count))


def start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks after boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = parse_stat(file.read())
    except OSError:
        return None
    return None if stat.state in "ZX" else stat.start_time


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


class Instance:
    """An ftrace instance, which exists until it is closed.

    Args:
        tracefs: The tracefs. It is closed with the instance.

    Raises:
        AccessDenied: The kernel refuses this user.
        PhysviewError: The kernel failed to make the instance, for example for lack of memory.
    """

    def __init__(self, tracefs: Tracefs) -> None:
        self.tracefs = tracefs
        self.owner = new_owner()
        self.folder = f"instances/{self.owner.instance}"
        """The instance's folder in tracefs."""
        self._open = False
        try:
            remove_stale(tracefs)
            tracefs.make_folder(self.folder)
        except OSError as error:
            tracefs.close()
            path = f"{tracefs.path}/{self.folder}"
            raise refused("cannot make a trace buffer", error, path) from None
        self._open = True

    def set(self, name: str, value: str) -> None:
        """Write a value to one of the instance's files.

        Raises:
            PhysviewError: The kernel refuses the value.
        """
        path = f"{self.folder}/{name}"
        try:
            self.tracefs.write(path, value)
        except OSError as error:
            what = f"cannot set {name} to '{value}'"
            raise refused(what, error, f"{self.tracefs.path}/{path}") from None

    def has(self, name: str) -> bool:
        """Whether the instance has a file or folder with this name."""
        return self.tracefs.has(f"{self.folder}/{name}")

    def add_probe(self, name: str, definition: str) -> None:
        """Define a probe in this instance's group.

        Args:
            name: The name of the probe's event.
            definition: The probe's location, and the values to fetch there.

        Raises:
            OSError: The kernel refuses the probe.
        """
        self.tracefs.write("kprobe_events", f"p:{self.owner.group}/{name} {definition}\n")

    def close(self) -> None:
        """Remove the instance and its probes. Closing twice is harmless."""
        if self._open:
            self._open = False
            remove(self.tracefs, self.owner)
            self.tracefs.close()


def remove_stale(tracefs: Tracefs) -> None:
    """Remove the stale instances and probes of tracers that were killed."""
    names = tracefs.names("instances")
    owners = {owner for name in names if (owner := InstanceOwner.parse(name))}
    owners |= {owner for group, _ in _probes(tracefs) if (owner := InstanceOwner.parse(group))}
    for owner in owners:
        if owner.has_ended:
            remove(tracefs, owner)


def remove(tracefs: Tracefs, owner: InstanceOwner) -> None:
    """Remove an instance and its probes. Another process may do so at the same time."""
    for wait in (0.01, 0.05, 0.2, 1.0, None):
        try:
            tracefs.remove_folder(f"instances/{owner.instance}")
        except FileNotFoundError:
            break
        except OSError as error:
            # EBUSY: another process has one of the instance's files open.
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


def _remove_probes(tracefs: Tracefs, names: Iterable[str], owner: InstanceOwner) -> bool:
    done = True
    for name in list(names):
        try:
            tracefs.write("kprobe_events", f"-:{owner.group}/{name}\n")
        except OSError as error:
            done = done and error.errno == errno.ENOENT
    return done


def _probes(tracefs: Tracefs) -> list[tuple[str, str]]:
    """Return the group and the name of every defined probe."""
    try:
        lines = proctext.lines(tracefs.read("kprobe_events"))
    except PhysviewError:  # this kernel has no kprobes
        return []
    found = (re.match(rb"[a-z][0-9]*:([^/ ]+)/([^ ]+)", line) for line in lines)
    return [(match[1].decode(), match[2].decode()) for match in found if match]
