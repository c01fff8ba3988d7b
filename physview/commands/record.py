# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the machine every few seconds: processes, free memory, compaction and huge pages.

DATASET is a folder or the URL of an object store (s3://, gs://). It gets Parquet files in folders
host=NAME/date=DAY, which pandas, DuckDB and Spark read as one table. physview bounds its own
processor time: processes that have not changed are not read again.
"""

from __future__ import annotations

import argparse
import re
import select
import signal
import time
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.runtime import privileges
from physview.runtime.caught_signals import CaughtSignals

if TYPE_CHECKING:
    from physview.recording.recorder import Recorder
    from physview.reporters.record import Report

NAME = "record"
HELP = "the machine over time, in Parquet files: processes, free memory, compaction, huge pages"

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_duration = _common.duration(0.1, 36_500 * 86400)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("dataset", metavar="DATASET", help="a folder, or s3://… or gs://…")
    parser.add_argument(
        "--every",
        type=_duration,
        metavar="S",
        default=10.0,
        help="seconds between samples (10); each time may also be written as 5m, 2h or 1d",
    )
    parser.add_argument(
        "--by",
        choices=("program", "cgroup", "pid"),
        default="program",
        help="add processes up by program (comm), by cgroup, or not at all (program)",
    )
    parser.add_argument(
        "--max-groups",
        type=_common.count(100_000),
        metavar="N",
        default=1000,
        help="tell N groups apart; the smaller ones are one row without a name (1000)",
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--for", dest="period", type=_duration, metavar="S", help="end after S seconds"
    )
    end.add_argument("--samples", type=_common.count(), metavar="N", help="end after N samples")
    parser.add_argument(
        "--budget",
        type=_share,
        metavar="SHARE",
        default=0.01,
        help="the most processor time that physview itself may use, of one core (1%%)",
    )
    parser.add_argument(
        "--frames-every",
        type=_duration_or_never,
        metavar="S",
        help="seconds between readings of all frames, or never (default: as the budget allows)",
    )
    parser.add_argument(
        "--flush",
        type=_duration,
        metavar="S",
        default=300.0,
        help="seconds between writes of the dataset's files (300)",
    )
    parser.add_argument(
        "--keep",
        type=_common.whole_units("days", 86400, most=36_500),
        metavar="DAYS",
        help="remove this machine's files that are older than DAYS",
    )
    parser.add_argument(
        "--limit",
        type=_size,
        metavar="SIZE",
        help="remove this machine's oldest files beyond SIZE, such as 500M or 2G",
    )
    parser.add_argument("--host", metavar="NAME", help="the name of this host in the dataset")
    parser.add_argument(
        "--spool",
        metavar="DIR",
        help="where files are kept until an object store has them (default: a folder of yours)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON document per sample, each on one line"
    )


def _duration_or_never(text: str) -> float:
    return 0.0 if text == "never" else _duration(text)


def _share(text: str) -> float:
    """Read a share of a core, such as "1%" or "0.01".

    >>> _share("1%"), _share("0.5")
    (0.01, 0.5)
    """
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)(%?)", text, re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0.0001 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share such as 1%, up to 100%")
    return value


def _size(text: str) -> int:
    """Read a size such as "500M", in bytes.

    >>> _size("2G") == 2 << 30
    True
    """
    match = re.fullmatch(r"([0-9]{1,12})([KMGT]?)(?:i?B)?", text, re.ASCII)
    value = int(match[1]) * _SIZES[match[2]] if match else 0
    if value < 1 << 20:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500M, at least 1M")
    return value


def run(args: argparse.Namespace) -> int:
    """Record until the end that was asked for, or until a signal."""
    _common.save_memory()
    from physview.recording.machine import machine
    from physview.recording.recorder import Recorder, Settings, host_name
    from physview.recording.remote import is_url, without_secrets
    from physview.recording.spool import open_spool
    from physview.reporters import record as reporter
    from physview.runtime.extras import need

    settings = Settings(
        by=args.by,
        max_groups=args.max_groups,
        budget=args.budget,
        frames_every=args.frames_every,
        flush_seconds=args.flush,
        host=host_name(args.host),
        keep_days=args.keep,
        limit_bytes=args.limit,
    )
    shown = without_secrets(args.dataset) if is_url(args.dataset) else args.dataset
    need("pyarrow.parquet", f"cannot write {shown}")
    spool = open_spool(args.dataset, machine(), spool=args.spool)
    for note in spool.notes:
        _common.say(note)
    loop = _Loop(args)
    try:
        spool.give_up = lambda: loop.nr_signals > 1
        with Recorder(spool, settings, _common.say) as recorder:
            _say_what_is_missing(recorder)
            report = reporter.Report(shown, as_json=args.json)
            loop.record(recorder, report)
    finally:
        loop.close()
    report.end(recorder.nr_rows, recorder.nr_skipped)
    return 0


def _say_what_is_missing(recorder: Recorder) -> None:
    """Say what root would add."""
    if recorder.why_no_flags:
        _common.say(
            "only processes that you may examine are recorded, without extents, large folios and"
            f" frames; {privileges.root_remedy('SYS_ADMIN')}"
        )


class _Loop:
    """Takes a sample at each tick, until the end or a signal."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._every: float = args.every
        self._period: float | None = args.period
        self._nr_samples: int | None = args.samples
        self.nr_signals = 0
        self._signals = CaughtSignals()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets SIGHUP
                self._signals.catch(number, self._note)

    def _note(self, *_: object) -> None:
        self.nr_signals += 1

    def close(self) -> None:
        """Restore the handlers of signals."""
        self._signals.close()

    def record(self, recorder: Recorder, report: Report) -> None:
        """Take samples.

        Args:
            recorder: Takes a sample.
            report: Is told of each sample that was taken.
        """
        began = due = time.monotonic()
        end = None if self._period is None else began + self._period
        while not self.nr_signals:
            sample = recorder.sample()
            if sample:
                report.add(sample)
            if self._nr_samples is not None and recorder.nr_samples >= self._nr_samples:
                return
            # After a pause, as of a suspended machine, the ticks that passed are left out.
            now = time.monotonic()
            due += self._every * max(1, -(-(now - due) // self._every))
            if end is not None and due > end:
                self._wait(end)
                return
            self._wait(due)

    def _wait(self, until: float) -> None:
        while not self.nr_signals:
            left = until - time.monotonic()
            if left <= 0:
                return
            if select.select([self._signals], [], [], min(left, 3600))[0]:
                self._signals.drain()
