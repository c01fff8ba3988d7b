# SPDX-License-Identifier: GPL-2.0-or-later
"""Show how much of each file is in the page cache, in what state, and in which frames.

For a folder, all files below it are examined. Examining a file reads nothing into the cache. Root
sees everything. Other users see only counts, and only for files that they own or may write to.
By default only counts are shown that the kernel gives without touching a page. --state adds those
that need the frames: mapped pages are in the page tables of some process, active pages are those
that the kernel considers often used, and runs are runs of contiguous frames.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.model import PAGE_SHIFT, PAGE_SIZE
from physview.reporters.failures import of_this_run

if TYPE_CHECKING:
    from physview.analysis.cached_files import FileExaminer
    from physview.reporters.file import Report
    from physview.sources.page_cache import OpenFile, PageCache, Row

NAME = "file"
HELP = "which pages of files are in the page cache, and in which frames"

# The longest name in a list: PATH_MAX of the kernel.
MAX_NAME = 4096
MOST_BYTES = 1 << 63


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a file or a folder")
    parser.add_argument(
        "--files-from",
        metavar="FILE",
        help="read more paths from FILE, one a line; - reads standard input",
    )
    parser.add_argument(
        "--null", action="store_true", help="with --files-from: a NUL byte ends each path"
    )
    parser.add_argument(
        "--pid",
        metavar="PID",
        action="append",
        default=[],
        help="the files that a process maps, found through its own root folder; can be repeated",
    )
    _common.add_cgroup_option(parser)
    _common.add_all_option(parser)
    parser.add_argument(
        "--each",
        action="store_true",
        help="print a line for each file below a folder, not one line for all",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=_common.count(),
        help="print the N files with the most cached pages, the largest first",
    )
    parser.add_argument(
        "--cached", action="store_true", help="print only files with cached pages, a line for each"
    )
    for name, what in (("include", "only files that match"), ("exclude", "no file or folder like")):
        parser.add_argument(
            f"--{name}",
            metavar="PATTERN",
            action="append",
            default=[],
            help=f"{what} this shell pattern; one with a / is for the whole path; can be repeated",
        )
    parser.add_argument(
        "-p",
        "--range",
        metavar="RANGE",
        default="",
        help="only this part of each file: START-END, START- or END in bytes, or as 4K, 2M, 1G;"
        " pages that are partly in it count",
    )
    parser.add_argument(
        "--histogram", action="store_true", help="draw for each file which parts of it are cached"
    )
    parser.add_argument(
        "--state",
        action="store_true",
        help="count also mapped and active pages, and runs of frames; needs root",
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="list the frames of each file, run by run, with --state; needs root",
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is cached."""
    from physview.reporters import file as reporter
    from physview.sources.page_cache import PageCache

    _check(args)
    pages = parse_range(args.range)
    with_state = args.state or args.frames
    with PageCache(with_frames=with_state, pages=pages) as cache:
        options = reporter.Options(
            with_state=with_state,
            with_runs=args.frames,
            with_histogram=args.histogram,
            only_cached=args.cached,
            top=args.top,
            is_each=bool(
                args.each or args.top or args.cached or args.frames or args.histogram or args.json
            ),
        )
        report = reporter.Document(options) if args.json else reporter.Table(options)
        examination = _Examination(cache, args, report)
        examination.run()
        report.close()
        examination.say_notes()
    return 0


def _check(args: argparse.Namespace) -> None:
    of_processes = sum([bool(args.pid), args.cgroup is not None, args.all])
    of_paths = bool(args.paths) or args.files_from is not None
    if of_processes + of_paths != 1:
        why = "give PATH… or --files-from, or one of --pid PID, --cgroup PATH and --all"
        raise UsageError("which files?", why)
    if args.null and args.files_from is None:
        raise UsageError("--null is for a list of paths", "", "give --files-from FILE, too")
    if args.top and args.frames:
        raise UsageError("--top and --frames do not go together", "", "give one of the two")


def parse_range(text: str) -> tuple[int, int | None]:
    """Read --range.

    Returns:
        The index of the first page, and of the first page after the range; None for the second
        means up to the end of the file.

    Raises:
        UsageError: The text is no range.

    >>> parse_range(""), parse_range("0-1")
    ((0, None), (0, 1))
    """
    if not text:
        return 0, None
    first, dash, last = text.partition("-")
    start = _parse_size(first, text) if dash and first else 0
    end = _parse_size(last if dash else first, text) if last or not dash else None
    if end is not None and end <= start:
        raise UsageError(f"'{text}' is no range", "it ends before it starts, or is empty")
    return start >> PAGE_SHIFT, None if end is None else -(-end // PAGE_SIZE)


def _parse_size(text: str, whole: str) -> int:
    from physview.text.digits import bounded_int

    match = re.fullmatch("([0-9]+)([kKmMgGtTpPeE]?)", text)
    if not match:
        raise UsageError(f"'{whole}' is no range", "", "write START-END, as 4096-64K")
    shift = 10 * ("kmgtpe".index(match[2].lower()) + 1) if match[2] else 0
    return min(bounded_int(match[1], MOST_BYTES) << shift, MOST_BYTES)


class _Examination:
    """Examines what the arguments name, and hands it to a report."""

    def __init__(self, cache: PageCache, args: argparse.Namespace, report: Report) -> None:
        from physview.analysis.cached_files import FileExaminer, Patterns

        self._cache = cache
        self._args = args
        self._report = report
        self._patterns = Patterns(args.include, args.exclude)
        several = len(args.paths) > 1 or args.files_from is not None
        self._examiner: FileExaminer = FileExaminer(
            cache,
            self._fail,
            self._patterns,
            keeps_all=several,
            on_virtual=self._say_virtual,
        )
        self._progress: Callable[[int, int | None], None] | None = None
        self.nr_failed = 0
        self._nr_denied = 0

    def run(self) -> None:
        """Examine everything."""
        from physview.commands._progress import progress_bar

        args = self._args
        self._report.begin()
        # The lines of a report would be printed into the bar.
        shows = not self._report.is_printing or not sys.stdout.isatty()
        with progress_bar("files examined") if shows else nullcontext() as self._progress:
            if args.pid or args.cgroup is not None or args.all:
                self._examine_processes()
            else:
                for path in self._iter_paths():
                    self._examine(path)
        if not self._report.total.nr_files and (args.include or args.exclude):
            self._fail(PhysviewError("no file matches --include and --exclude"))

    def _fail(self, error: PhysviewError) -> None:
        """Say what is wrong with one file, and go on with the others."""
        _common.fail(error.path or "", error)
        self.nr_failed += 1

    def _say_virtual(self, path: str) -> None:
        _common.say(f"{path} is left out: its file system has no page cache")

    def _iter_paths(self) -> Iterator[str]:
        yield from self._args.paths
        if self._args.files_from is not None:
            yield from self._iter_listed()

    def _iter_listed(self) -> Iterator[str]:
        """Yield the paths of --files-from, while the list is read."""
        name = self._args.files_from
        try:
            source = open(0 if name == "-" else name, "rb", closefd=name != "-")  # noqa: SIM115
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise PhysviewError(f"cannot read {name}", why) from None
        with source:
            for path in iter_names(source, b"\0" if self._args.null else b"\n"):
                if len(path) > MAX_NAME:
                    why = f"it is longer than {MAX_NAME} bytes"
                    remedy = "" if self._args.null else "if NUL bytes end the paths, give --null"
                    shown = os.fsdecode(path[:40])
                    self._fail(PhysviewError(f"no path: '{shown}'...", why, remedy))
                    return
                if path:
                    yield os.fsdecode(path)

    def _examine(self, path: str) -> None:
        report = self._report
        report.begin_group(path)
        before = report.total.nr_files
        failed = self.nr_failed
        if self._args.frames or self._args.histogram:
            for file in self._examiner.iter_open(path):
                self._add_open(file)
        else:
            for batch in self._examiner.iter_batches(path):
                report.add_batch(batch)
                of_this_run.nr_done += len(batch.rows)
                self._show_progress()
        report.end_group()
        if report.total.nr_files == before and failed == self.nr_failed and os.path.isdir(path):
            _common.say(f"{path}: there is no file below it, or none that was not counted before")

    def _add_open(self, file: OpenFile, pids: list[int] | None = None) -> Row | None:
        """Examine one file that is open, and report it."""
        report = self._report
        report.begin_file(file.path)
        try:
            histogram = None
            if self._args.histogram:
                histogram = file.histogram(report.nr_buckets(file.nr_pages_in_range))
            row = file.count(report.visit if self._args.frames else None)
        except PhysviewError as error:
            self._fail(error)
            report.drop_file()
            return None
        report.end_file(file.path, row, histogram, pids)
        of_this_run.nr_done += 1
        self._show_progress()
        return row

    def _show_progress(self) -> None:
        if self._progress:
            self._progress(self._report.total.nr_files, None)

    def _examine_processes(self) -> None:
        from physview.analysis.process_files import ProcessFiles
        from physview.reporters.file import ProcessTotals

        processes = ProcessFiles(self._fail)
        for pid, word in _common.find_pids(self._args.pid).items():
            with _common.attempt(word):
                processes.add(pid, is_given=True)
        for pid in self._iter_other_pids():
            processes.add(pid, is_given=False)
        totals = ProcessTotals(processes.comms)
        for file, pids in processes.iter_open(self._cache, self._patterns):
            row = self._add_open(file, pids)
            if row:
                totals.add(row, pids)
        self._report.add_processes(totals)
        self._nr_denied = 0 if self._args.pid else processes.nr_denied

    def _iter_other_pids(self) -> list[int]:
        if self._args.all:
            from physview.sources.procfs import list_pids

            return list_pids()
        return [] if self._args.cgroup is None else _common.cgroup_pids(self._args.cgroup)

    def say_notes(self) -> None:
        """Say on stderr what a reader of the report has to know."""
        report = self._report
        _common.say_how_many_are_left_out(self._nr_denied)
        if report.nr_read:
            _common.say(
                f"{report.nr_read} pages were evicted while they were examined, and examining them"
                " read them back in"
            )
        if report.nr_skipped:
            _common.say(
                f"{report.nr_skipped} files have holes of more than 64 GiB, in which no cached"
                " pages were looked for: that takes cachestat(), of Linux 6.5"
            )
        if report.nr_unknown_dirty:
            _common.say(
                f"dirty and evicted pages of {report.nr_unknown_dirty} files are not known: their"
                " file system hands them through to another (overlay), of which cachestat() does"
                " not tell, or the kernel has no cachestat(); --state tells the dirty ones, as root"
            )


def iter_names(source: Any, end: bytes) -> Iterator[bytes]:
    """Yield the names of a list, each without its end. One longer than MAX_NAME is cut, and last.

    Args:
        source: The binary file.
        end: The byte after each name.
    """
    left = b""
    while piece := source.read1(1 << 16) if hasattr(source, "read1") else source.read(1 << 16):
        *names, left = (left + piece).split(end)
        yield from names
        if len(left) > MAX_NAME:
            break
    if left:
        yield left
