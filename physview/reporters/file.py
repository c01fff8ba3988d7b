# SPDX-License-Identifier: GPL-2.0-or-later
"""Cached pages of files: a line of text per file, and a JSON document (docs/json.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.model import NO_ENTRY, PAGE_SHIFT, printable
from physview.reporters.documents import errors_member
from physview.sources import page_cache
from physview.sources.page_cache import CachedFile, Row, to_cached_file
from physview.units import pages_size, pfn_text, share

if TYPE_CHECKING:
    from physview.analysis.cached_files import Batch

COLUMNS = ("cached", "of", "share", "dirty", "evicted", "recent", "holes")
STATE_COLUMNS = ("mapped", "active", "runs")
WIDTH = 6

# Parts of a file in a histogram. A file of fewer pages has a part per page.
NR_BUCKETS = 32
_LEVELS = "▁▂▃▄▅▆▇█"
_NOTHING = "·"


class Options(NamedTuple):
    """What a report shows.

    Args:
        with_state: Show the counts that need frames.
        with_runs: List the frames of each file.
        with_histogram: Show which parts of each file are cached.
        only_cached: Leave out files without cached pages.
        top: List so many files, those with the most cached pages; None for all.
        is_each: Show each file, not a line for each path.
    """

    with_state: bool
    with_runs: bool
    with_histogram: bool
    only_cached: bool
    top: int | None
    is_each: bool


class Total:
    """Sums of the counts of several files. A sum is unknown if it is unknown for one of them.

    Args:
        path: The path under which the files are shown.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._sums = [0] * (page_cache.COUNTS.stop - page_cache.COUNTS.start)
        self._known = page_cache.KNOWS_CACHESTAT | page_cache.KNOWS_FRAMES
        self.nr_files = 0

    def add(self, rows: list[Row]) -> None:
        """Add the counts of files."""
        if not rows:
            return
        self.nr_files += len(rows)
        columns = list(zip(*rows, strict=True))
        for known in set(columns[page_cache.KNOWN]):
            self._known &= known
        sums = map(sum, columns[page_cache.COUNTS])
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]

    @property
    def file(self) -> CachedFile:
        """The sums, in the form of one file."""
        head = [0] * page_cache.COUNTS.start
        head[page_cache.KNOWN] = self._known
        return to_cached_file(self._path, (*head, *self._sums))

    @property
    def name(self) -> str:
        """The path, and the number of files if there are several."""
        path = printable(self._path)
        return path if self.nr_files == 1 else f"{path} ({self.nr_files} files)"


class ProcessTotals:
    """Sums of the counts of the files that each process maps.

    Args:
        comms: The names of the processes, by pid.
    """

    def __init__(self, comms: dict[int, str]) -> None:
        self._totals = {pid: Total(f"{pid} {comm}") for pid, comm in comms.items()}

    def add(self, row: Row, pids: list[int]) -> None:
        """Add the counts of a file that these processes map."""
        for pid in pids:
            self._totals[pid].add([row])

    def __iter__(self) -> Iterator[Total]:
        return (total for total in self._totals.values() if total.nr_files)


class Report:
    """What the reports share: sums, and the choice of files.

    Args:
        options: What to show.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.total = Total("")
        """The sums over all files."""
        self._group = Total("")
        self._nr_groups = self._nr_shown = 0
        self._top: list[tuple[int, int, _Shown]] = []
        self.nr_read = 0
        """Pages that the examination has read back into the cache."""
        self.nr_skipped = 0
        """Files in whose holes no pages were looked for."""
        self.nr_unknown_dirty = 0
        """Files of which cachestat() does not tell."""

    @property
    def is_printing(self) -> bool:
        """Whether lines are printed during the examination."""
        return self._options.is_each and not self._options.top

    def nr_buckets(self, nr_pages: int) -> int:
        """The number of parts in a file's histogram. `nr_pages`: its pages in the range."""
        return min(NR_BUCKETS, nr_pages)

    def begin(self) -> None:
        """Print what comes before the first file."""

    def begin_group(self, path: str) -> None:
        """Begin the files at or below a path."""
        self._group = Total(path)

    def add_batch(self, batch: Batch) -> None:
        """Add files that were counted together."""
        self._add(batch.rows)
        if self._options.is_each:
            for file in batch.iter_files():
                self._choose(_Shown(file))

    def begin_file(self, path: str) -> None:
        """Begin a file that is examined by itself."""

    def visit(self, found: Any) -> None:
        """Print runs of the file's frames. `found`: structured array of page_cache.CACHED_DTYPE."""

    def drop_file(self) -> None:
        """End a file whose examination failed."""

    def end_file(
        self, path: str, row: Row, histogram: list[int] | None, pids: list[int] | None
    ) -> None:
        """End a file that was examined by itself.

        Args:
            path: The path to show.
            row: What is known of it.
            histogram: Cached pages in parts of the file.
            pids: The processes that map it.
        """
        self._add([row])
        if self._options.is_each:
            self._choose(_Shown(to_cached_file(path, row), histogram, pids))

    def end_group(self) -> None:
        """End the files of a path."""
        self._nr_groups += self._group.nr_files > 0

    def add_processes(self, totals: ProcessTotals) -> None:
        """Add what is known of whole processes."""

    def close(self) -> None:
        """Print what is left."""
        for _, _, shown in sorted(self._top, key=lambda each: each[:2], reverse=True):
            self._show(shown)

    def _add(self, rows: list[Row]) -> None:
        if not rows:
            return
        self._group.add(rows)
        self.total.add(rows)
        nr_read = page_cache.COUNTS.start + CachedFile._fields.index("nr_read") - 1
        for row in rows:
            known = row[page_cache.KNOWN]
            self.nr_read += row[nr_read]
            self.nr_skipped += known & page_cache.SKIPPED_HOLES != 0
            self.nr_unknown_dirty += known in (0, page_cache.SKIPPED_HOLES)

    def _choose(self, shown: _Shown) -> None:
        nr_cached = shown.file.nr_cached
        if self._options.only_cached and not nr_cached:
            return
        if not self._options.top:
            self._show(shown)
            return
        import heapq

        self._nr_shown += 1
        place = (nr_cached, -self._nr_shown, shown)
        if len(self._top) < self._options.top:
            heapq.heappush(self._top, place)
        elif place[:2] > self._top[0][:2]:
            heapq.heapreplace(self._top, place)

    def _show(self, shown: _Shown) -> None:
        raise NotImplementedError


class _Shown(NamedTuple):
    """A file to show, with what is shown beside its counts."""

    file: CachedFile
    histogram: list[int] | None = None
    pids: list[int] | None = None


class Table(Report):
    """Prints a line for each file, or for each path, as soon as it is known."""

    _is_named = False

    def begin(self) -> None:
        names = [*COLUMNS, *(STATE_COLUMNS if self._options.with_state else ())]
        bar = ["histogram".ljust(NR_BUCKETS)] if self._options.with_histogram else []
        self._print(" ".join([*(name.rjust(WIDTH) for name in names), *bar, " path"]))

    def begin_file(self, path: str) -> None:
        self._is_named = False
        self._path = path
        if self._options.with_runs and not self._options.only_cached:
            self._name_file()

    def _name_file(self) -> None:
        if not self._is_named:
            self._print(printable(self._path))
            self._is_named = True

    def visit(self, found: Any) -> None:
        self._name_file()
        for run_line in iter_run_lines(found):
            self._print(run_line)

    def end_group(self) -> None:
        super().end_group()
        if self._group.nr_files and not self._options.is_each:
            self._print(self.line(self._group.file, self._group.name))

    def add_processes(self, totals: ProcessTotals) -> None:
        for total in totals:
            self._nr_groups += 1
            if not self._options.is_each:
                self._print(self.line(total.file, total.name))

    def close(self) -> None:
        super().close()
        nr_files = self.total.nr_files
        if nr_files > 1 and (self._options.is_each or self._nr_groups > 1):
            self._print(self.line(self.total.file, f"({nr_files} files)"))

    def _show(self, shown: _Shown) -> None:
        self._print(self.line(shown.file, histogram=shown.histogram))

    def line(self, file: CachedFile, what: str = "", histogram: list[int] | None = None) -> str:
        """Make the line of a file, or of the total of several files.

        Args:
            file: The counts.
            what: Text to show instead of the path.
            histogram: Cached pages in parts of the file.
        """
        counts: list[int | None] = [
            file.nr_dirty, file.nr_evicted, file.nr_recently_evicted, file.nr_holes,
        ]  # fmt: skip
        if self._options.with_state:
            counts += [file.nr_mapped, file.nr_active]
        cells = [
            _short(file.nr_cached),
            _short(file.nr_pages),
            share(file.nr_cached, file.nr_pages),
            *("?" if nr is None else _short(nr) for nr in counts),
        ]
        if self._options.with_state:
            cells.append("?" if file.nr_runs is None else str(file.nr_runs))
        padded = [cell.rjust(WIDTH) for cell in cells]
        if self._options.with_histogram:
            padded.append(bar(histogram or [], file.nr_pages).ljust(NR_BUCKETS))
        return " ".join([*padded, f" {what or printable(file.path)}"])

    @staticmethod
    def _print(line: str) -> None:
        sys.stdout.write(line + "\n")


def bar(histogram: list[int], nr_pages: int) -> str:
    """Draw a histogram: a character for each part of the file.

    >>> bar([0, 1, 4, 8], 32)
    '·▁▄█'
    """
    nr = len(histogram)
    text = ""
    for at, nr_cached in enumerate(histogram):
        size = nr_pages * (at + 1) // nr - nr_pages * at // nr
        level = -(-len(_LEVELS) * nr_cached // max(1, size))
        text += _LEVELS[min(level, len(_LEVELS)) - 1] if nr_cached else _NOTHING
    return text


def _short(nr_pages: int) -> str:
    """Format a size in few characters, so that the line has room for the path.

    >>> _short(0), _short(3 << 20)
    ('0', '12.0G')
    """
    return pages_size(nr_pages).replace(" ", "").removesuffix("iB")


def iter_run_lines(found: Any) -> Iterator[str]:
    """Yield a line of text for each run of frames.

    Args:
        found: Structured array of page_cache.CACHED_DTYPE.
    """
    from physview.sources.page_flags import flag_names

    for page, pfn, nr, flags in _joined(found.tolist()):
        where = f"  page {page}" if nr == 1 else f"  page {page}-{page + nr}"
        if not pfn:
            yield f"{where:<24}  frame not known"
            continue
        names = ",".join(flag_names(flags))
        yield f"{where:<24}  {pfn << PAGE_SHIFT:#018x}  {pfn_text(pfn, nr):<21}  {names}"


def _joined(runs: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (page, pfn, number of pages, flags) for runs, with only the flags that are shown.

    Contiguous runs that differ only in other flags are merged.
    """
    from physview.sources.page_flags import well_known

    held: tuple[int, int, int, int] | None = None
    for page, pfn, nr, raw in runs:
        flags = raw if raw == NO_ENTRY else well_known(raw)
        if held:
            first, first_pfn, nr_held, held_flags = held
            next_pfn = first_pfn + nr_held if first_pfn else 0
            if (page, pfn, flags) == (first + nr_held, next_pfn, held_flags):
                held = (first, first_pfn, nr_held + nr, flags)
                continue
            yield held
        held = (page, pfn, nr, flags)
    if held:
        yield held


class Document(Report):
    """Prints the JSON document of file, piece by piece: there can be millions of frames."""

    def __init__(self, options: Options) -> None:
        import json

        super().__init__(options)
        self._dumps = json.dumps
        self._nr_files = self._nr_runs = 0
        self._is_open = False

    def begin(self) -> None:
        sys.stdout.write('{"files": [')

    def begin_file(self, path: str) -> None:
        self._nr_runs = 0
        self._is_open = False

    def _open(self) -> None:
        if not self._is_open:
            sys.stdout.write((",\n" if self._nr_files else "\n") + '{"extents": [')
            self._nr_files += 1
            self._is_open = True

    def visit(self, found: Any) -> None:
        from physview.sources.page_flags import flag_names

        self._open()
        for page, pfn, nr, flags in found.tolist():
            run = {
                "page": page,
                "nr_pages": nr,
                "pfn": pfn or None,
                "paddr": hex(pfn << PAGE_SHIFT) if pfn else None,
                "flags": flag_names(flags) if pfn else None,
            }
            sys.stdout.write((",\n" if self._nr_runs else "\n") + self._dumps(run))
            self._nr_runs += 1

    def drop_file(self) -> None:
        if self._is_open:
            sys.stdout.write("], " + self._dumps({"path": None})[1:])

    def _show(self, shown: _Shown) -> None:
        entry: dict[str, Any] = shown.file._asdict()
        if shown.histogram is not None:
            entry["histogram"] = shown.histogram
        if shown.pids is not None:
            entry["pids"] = shown.pids
        counts = self._dumps(entry)
        if self._options.with_runs:
            self._open()
            sys.stdout.write("], " + counts[1:])
        else:
            sys.stdout.write((",\n" if self._nr_files else "\n") + counts)
            self._nr_files += 1

    def close(self) -> None:
        super().close()
        total = self.total.file._asdict() | {"path": None, "nr_files": self.total.nr_files}
        sys.stdout.write(f'\n], "total": {self._dumps(total)}, {errors_member()}}}\n')
