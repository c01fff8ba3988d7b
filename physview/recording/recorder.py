# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes samples of the machine and keeps them in a dataset."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from physview.errors import AccessDenied, PhysviewError, Unsupported, UsageError
from physview.files.descriptor import Closable
from physview.recording.budget import Budget
from physview.recording.groups import GroupReader
from physview.recording.machine import machine, read_counters, read_moment
from physview.recording.parts import About, date_of, host_folder
from physview.recording.process_list import name_text
from physview.recording.schema import Columns
from physview.recording.spool import Spool
from physview.recording.zones import read_zones

MAX_NAME = 255
"""The bytes of a file name. Source: include/uapi/linux/limits.h"""


class Sample(NamedTuple):
    """What was recorded at one moment.

    Args:
        time: Microseconds since 1970, UTC.
        nr_groups: Rows of groups.
        nr_processes: Processes with user memory.
        nr_read: Processes whose memory was read.
        nr_stale: Processes that changed and keep their values, for the budget.
        nr_unread: Processes not read so far, for the budget.
        nr_denied: Processes that this user may not examine.
        has_frames: Whether all frames were read.
        cost: Processor time since the sample before, in seconds.
        interval: Seconds since the sample before; None for the first one.
        skipped: Samples left out since then, for the budget.
    """

    time: int
    nr_groups: int
    nr_processes: int
    nr_read: int
    nr_stale: int
    nr_unread: int
    nr_denied: int
    has_frames: bool
    cost: float
    interval: float | None
    skipped: int


class Settings(NamedTuple):
    """How to record.

    Args:
        by: What a group is, one of schema.GROUPINGS.
        max_groups: As for `GroupReader`.
        budget: Share of one core.
        frames_every: As for `Budget`.
        flush_seconds: Seconds between writes of the dataset's files.
        host: The name of this host.
        keep_days: Days for which files are kept; None for ever.
        limit_bytes: The size of all files of this host; None for no limit.
    """

    by: str = "program"
    max_groups: int = 1000
    budget: float = 0.01
    frames_every: float | None = None
    flush_seconds: float = 300.0
    host: str = ""
    keep_days: int | None = None
    limit_bytes: int | None = None


class Recorder(Closable):
    """Takes samples and keeps them. A context manager; `close()` writes what is not written yet.

    Args:
        spool: Keeps the samples, and is closed by the recorder.
        settings: How to record.
        say: Called with a message when something goes wrong, and when it is over.

    Raises:
        PhysviewError: The machine cannot be read.
    """

    def __init__(self, spool: Spool, settings: Settings, say: Callable[[str], None]) -> None:
        self._spool = spool
        self._settings = settings
        self._say = say
        self._reader = GroupReader(settings.by, max_groups=settings.max_groups)
        counters = read_counters()
        self._budget = Budget(
            settings.budget,
            frames_every=settings.frames_every,
            total_bytes=counters["total"][0] or 0,
        )
        self._before: float | None = None  # since_boot of the sample before
        self._paid_at = time.process_time()
        self._cost_at = 0.0  # the first cost has the start of the program, too
        self._clock = _boot_clock()
        self._skipped = 0
        self._told_of_budget = False
        self._flushed_at = self._clock
        self._troubles: dict[str, str] = {}
        self.nr_samples = self.nr_rows = self.nr_skipped = 0
        self.why_no_flags = self._reader.why_no_flags

    def close(self) -> None:
        """Write what is not written yet, and close all files. Closing twice is harmless."""
        try:
            self._spool.close()
        finally:
            self._reader.close()

    def sample(self) -> Sample | None:
        """Take a sample and keep it; None if it is left out, because of the budget."""
        now = _boot_clock()
        self._budget.pass_time(now - self._clock)
        self._clock = now
        self._pay(0.0)
        if not self._budget.allows_sample():
            self._skipped += 1
            self.nr_skipped += 1
            self._tell_of_budget()
            return None
        moment = read_moment()
        about = About(self._settings.host, moment["machine"], moment["boot"], moment["kernel"])
        began = time.thread_time()
        groups = self._reader.read(self._budget.seconds_for_memory())
        self._pay(time.thread_time() - began)
        zones, has_frames = self._read_zones()
        row = {**read_counters(), **self._own_row(moment, groups)}
        self._keep(about, moment, {"groups": groups, "zones": zones, "machine": row})
        self._before, self._skipped = moment["since_boot"], 0
        self._flush_if_due(moment)
        return Sample(
            time=moment["time"],
            nr_groups=len(groups["name"]),
            nr_processes=sum(groups["nr_processes"]),
            nr_read=sum(groups["nr_read"]),
            nr_stale=row["nr_stale"][0],
            nr_unread=row["nr_unread"][0],
            nr_denied=row["nr_denied"][0],
            has_frames=has_frames,
            cost=row["cost"][0],
            interval=row["interval"][0],
            skipped=row["skipped"][0],
        )

    def _tell_of_budget(self) -> None:
        """Say once that samples are left out, and for how long: it may be minutes."""
        if self._told_of_budget:
            return
        self._told_of_budget = True
        wait = math.ceil(self._budget.seconds_until_sample())
        self._say(
            f"a sample cost more than the budget of {100 * self._settings.budget:.4g}% of a core:"
            f" the next is in {wait} s or later; a larger --budget takes more samples"
        )

    def _pay(self, of_memory: float) -> None:
        now = time.process_time()
        self._budget.pay(now - self._paid_at, of_memory)
        self._paid_at = now

    def _read_zones(self) -> tuple[Columns, bool]:
        if not self._budget.allows_frames():
            return read_zones(), False
        began = time.process_time()
        try:
            zones = read_zones(with_frames=True)
        except (AccessDenied, Unsupported):
            self._budget.without_frames()
            return read_zones(), False
        self._pay(0.0)
        spent = time.process_time() - began
        self._budget.pay_frames(spent)
        self._budget.pay(-spent, 0.0)
        return zones, True

    def _own_row(self, moment: dict[str, Any], groups: Columns) -> Columns:
        now = time.process_time()
        cost, self._cost_at = now - self._cost_at, now
        interval = None if self._before is None else moment["since_boot"] - self._before
        row = {
            "nr_groups": self._reader.nr_groups,
            "cost": cost,
            "interval": interval,
            "skipped": self._skipped,
            "lost": self._spool.take_lost(),
        }
        for name in ("nr_processes", "nr_denied", "nr_unread", "nr_stale"):
            row[name] = sum(groups[name])
        return {name: [value] for name, value in row.items()}

    def _keep(self, about: About, moment: dict[str, Any], tables: dict[str, Columns]) -> None:
        self.nr_samples += 1
        self.nr_rows += sum(len(next(iter(table.values()))) for table in tables.values())
        with self._trouble("disk"):
            self._spool.append(about, moment, tables)

    def _flush_if_due(self, moment: dict[str, Any]) -> None:
        if self._clock - self._flushed_at >= self._settings.flush_seconds:
            self.flush(moment["time"])
        self._tell("store", self._spool.trouble())
        self._tell("outbox", self._spool.dropped())
        trouble, self._reader.trouble = self._reader.trouble, ""
        if trouble:
            self._tell("process", trouble)

    def flush(self, now: int) -> None:
        """Write the dataset's files, and remove old ones.

        Args:
            now: Microseconds since 1970.
        """
        self._flushed_at = self._clock
        with self._trouble("flush"):
            self._spool.flush()
        with self._trouble("retention"):
            self._spool.remove_old(
                date_of(now),
                self._settings.host,
                machine(),
                keep_days=self._settings.keep_days,
                limit_bytes=self._settings.limit_bytes,
            )

    @contextlib.contextmanager
    def _trouble(self, kind: str) -> Any:
        try:
            yield
        except (PhysviewError, OSError) as error:
            self._tell(kind, str(error))
        else:
            self._tell(kind, "")

    def _tell(self, kind: str, message: str) -> None:
        """Say that something went wrong, or that it is over. Nothing is said twice in a row."""
        before = self._troubles.get(kind, "")
        if message == before:
            return
        self._troubles[kind] = message
        if message and not before:
            self._say(f"{message}; recording goes on")
        elif not message:
            self._say(f"this is over: {before}")


def _boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def host_name(name: str | None) -> str:
    """The name of this host in a dataset.

    Args:
        name: A name that was chosen; None takes that of the machine.

    Raises:
        UsageError: It is too long for the name of a folder.

    Source: uname()
    """
    found = name_text(os.fsencode(os.uname().nodename if name is None else name))
    if len(host_folder(found)) > MAX_NAME:
        raise UsageError("cannot use this name of a host", "it is too long", "choose another one")
    return found
