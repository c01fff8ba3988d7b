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

from physview.errors import PhysviewError
from physview.sources.procfs import parse_stat
from physview.text import proctext
from physview.tracing.tracefs import Tracefs, refused

_count = itertools.count()


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


class Instance:
    """An instance in tracefs, for as long as it is used.

    Args:
        tracefs: Closed with the instance.

    Raises:
        AccessDenied: The kernel refuses.
        PhysviewError: The kernel has no memory for it.
    """

    def __init__(self, tracefs: Tracefs) -> None:
        self.tracefs = tracefs
        self.owner = me()
        self.folder = f"instances/{self.owner.instance}"
        """Its folder in tracefs."""
        self._open = False
        try:
            remove_dead(tracefs)
            tracefs.make_folder(self.folder)
        except OSError as error:
            tracefs.close()
            path = f"{tracefs.path}/{self.folder}"
            raise refused("cannot make a trace buffer", error, path) from None
        self._open = True

    def set(self, name: str, value: str) -> None:
        """Write one of its files.

        Raises:
            PhysviewError: The kernel refuses.
        """
        path = f"{self.folder}/{name}"
        try:
            self.tracefs.write(path, value)
        except OSError as error:
            what = f"cannot set {name} to '{value}'"
            raise refused(what, error, f"{self.tracefs.path}/{path}") from None

    def has(self, name: str) -> bool:
        """Whether it has a file."""
        return self.tracefs.has(f"{self.folder}/{name}")

    def add_probe(self, name: str, definition: str) -> None:
        """Define a probe in a group of this instance.

        Args:
            name: What its event is called.
            definition: The place, and what to fetch there.

        Raises:
            OSError: The kernel refuses it.
        """
        self.tracefs.write("kprobe_events", f"p:{self.owner.group}/{name} {definition}\n")

    def close(self) -> None:
        """Remove it, and its probes. Closing twice is harmless."""
        if self._open:
            self._open = False
            remove(self.tracefs, self.owner)
            self.tracefs.close()


def remove_dead(tracefs: Tracefs) -> None:
    """Remove what tracers left that were killed."""
    names = tracefs.names("instances")
    owners = {owner for name in names if (owner := Owner.parse(name))}
    owners |= {owner for group, _ in _probes(tracefs) if (owner := Owner.parse(group))}
    for owner in owners:
        if owner.is_dead:
            remove(tracefs, owner)


def remove(tracefs: Tracefs, owner: Owner) -> None:
    """Remove an instance and its probes; that another does so at the same time is no harm."""
    for wait in (0.01, 0.05, 0.2, 1.0, None):
        try:
            tracefs.remove_folder(f"instances/{owner.instance}")
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


def _remove_probes(tracefs: Tracefs, names: Iterable[str], owner: Owner) -> bool:
    done = True
    for name in list(names):
        try:
            tracefs.write("kprobe_events", f"-:{owner.group}/{name}\n")
        except OSError as error:
            done = done and error.errno == errno.ENOENT
    return done


def _probes(tracefs: Tracefs) -> list[tuple[str, str]]:
    """Group and name of every probe that is defined."""
    try:
        lines = proctext.lines(tracefs.read("kprobe_events"))
    except PhysviewError:  # there are none in this kernel
        return []
    found = (re.match(rb"[a-z][0-9]*:([^/ ]+)/([^ ]+)", line) for line in lines)
    return [(match[1].decode(), match[2].decode()) for match in found if match]
