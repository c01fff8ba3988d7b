# SPDX-License-Identifier: GPL-2.0-or-later
"""Show how much of each file is in the page cache, in what state, and in which frames.

For a folder, all files below it are examined. Examining a file reads nothing into the cache. Root
sees everything. Other users see only counts, and only for files that they own or may write to.
Mapped pages are in the page tables of some process. Active pages are those that the kernel
considers often used. Runs are runs of contiguous frames.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from physview.commands import _common
from physview.errors import PhysviewError
from physview.model import printable

if TYPE_CHECKING:
    from physview.sources.page_cache import CachedFile, OpenFile, PageCache

NAME = "file"
HELP = "which pages of files are in the page cache, and in which frames"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file or a folder")
    parser.add_argument(
        "--each",
        action="store_true",
        help="print a line for each file below a folder, not one line for all",
    )
    parser.add_argument(
        "--frames", action="store_true", help="list the frames of each file, run by run; needs root"
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print what is cached."""
    from physview.sources.page_cache import PageCache

    with PageCache(with_frames=True if args.frames else None) as cache:
        report = _Report(cache, args)
        if args.json:
            report.write_document()
        else:
            report.write_table()
        report.say_notes()
    return 0


class _Report:
    def __init__(self, cache: PageCache, args: argparse.Namespace) -> None:
        self._cache = cache
        self._args = args
        self._seen: set[tuple[int, int]] = set()
        self._nr_read = 0

    def _fail(self, error: PhysviewError) -> None:
        """Say what is wrong with one file, and go on with the others."""
        _common.fail(error.path or "", error)

    def _iter_open(self, path: str) -> Iterator[OpenFile]:
        """Yield the files at a path. A file with several names is yielded once."""
        from physview.sources.page_cache import iter_files

        for name in iter_files(path, self._fail):
            try:
                file = self._cache.open(name)
            except PhysviewError as error:
                self._fail(error)
                continue
            with file:
                if file.identity not in self._seen:
                    self._seen.add(file.identity)
                    yield file

    def _summarize(
        self, file: OpenFile, visit: Callable[[Any], None] | None = None
    ) -> CachedFile | None:
        try:
            found = file.summary(visit)
        except PhysviewError as error:
            self._fail(error)
            return None
        self._nr_read += found.nr_read
        return found

    def write_table(self) -> None:
        """Print a line for each path, or for each file, as soon as it is known."""
        from physview.commands._progress import progress_bar
        from physview.reporters import file as reporter

        write = sys.stdout.write
        write(reporter.header() + "\n")
        is_each = self._args.each or self._args.frames
        total = reporter.Total("")
        for path in self._args.paths:
            of_path = reporter.Total(path)
            with nullcontext() if is_each else progress_bar("files examined") as progress:
                for file in self._iter_open(path):
                    if self._args.frames:
                        write(f"{printable(file.path)}\n")
                    visit = reporter.write_runs if self._args.frames else None
                    found = self._summarize(file, visit)
                    if found:
                        of_path.add(found)
                        total.add(found)
                        if is_each:
                            write(reporter.line(found) + "\n")
                    if progress:
                        progress(of_path.nr_files, None)
            if of_path.nr_files and not is_each:
                write(reporter.line(of_path.file, of_path.name) + "\n")
            elif not of_path.nr_files and os.path.isdir(path):
                _common.say(f"{path}: there is no file below it, or none could be examined")
        if total.nr_files > 1 and (is_each or len(self._args.paths) > 1):
            write(reporter.line(total.file, f"({total.nr_files} files)") + "\n")

    def write_document(self) -> None:
        """Print the same as a JSON document, piece by piece: there can be millions of frames."""
        from physview.reporters import file as reporter

        document = reporter.Document(with_runs=self._args.frames)
        for path in self._args.paths:
            for file in self._iter_open(path):
                document.begin()
                found = self._summarize(file, document.visit)
                document.end(found)
        document.close()

    def say_notes(self) -> None:
        """Say on stderr what a reader of the report has to know."""
        if self._cache.why_no_frames:
            _common.say(f"counts only: {self._cache.why_no_frames}")
        if self._nr_read:
            _common.say(
                f"{self._nr_read} pages were evicted while they were examined, and examining them"
                " read them back in"
            )
