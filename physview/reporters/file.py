# SPDX-License-Identifier: GPL-2.0-or-later
"""Cached pages of files: a line of text per file, and a JSON document (docs/json.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from physview.model import NO_ENTRY, PAGE_SHIFT, printable
from physview.reporters.documents import errors_member
from physview.sources.page_cache import CachedFile
from physview.sources.page_flags import flag_names, well_known
from physview.units import pages_size, pfn_text, share

COLUMNS = ("cached", "of", "share", "dirty", "mapped", "active", "holes", "runs")
WIDTHS = (6, 6, 6, 6, 6, 6, 6, 6)

# The counts of `CachedFile` that can be added up over several files.
COUNTS = (
    "size_bytes",
    "nr_pages",
    "nr_holes",
    "nr_cached",
    "nr_dirty",
    "nr_writeback",
    "nr_mapped",
    "nr_active",
    "nr_large",
    "nr_runs",
    "nr_read",
)


def header() -> str:
    """Make the line with the names of the columns."""
    cells = [name.rjust(width) for name, width in zip(COLUMNS, WIDTHS, strict=True)]
    return " ".join([*cells, " path"])


def line(file: CachedFile, what: str = "") -> str:
    """Make the line of a file, or of the total of several files.

    Args:
        file: The counts.
        what: Text to show instead of the path.
    """
    cells = [
        _short(file.nr_cached),
        _short(file.nr_pages),
        share(file.nr_cached, file.nr_pages),
        *(
            "?" if nr is None else _short(nr)
            for nr in (file.nr_dirty, file.nr_mapped, file.nr_active, file.nr_holes)
        ),
        "?" if file.nr_runs is None else str(file.nr_runs),
    ]
    padded = [cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)]
    return " ".join([*padded, f" {what or printable(file.path)}"])


def _short(nr_pages: int) -> str:
    """Format a size in few characters, so that the line has room for the path.

    >>> _short(0), _short(3 << 20)
    ('0', '12.0G')
    """
    return pages_size(nr_pages).replace(" ", "").removesuffix("iB")


class Total:
    """Sums of the counts of several files. A sum is unknown if it is unknown for one of them.

    Args:
        path: The path under which the files are shown.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._sums: dict[str, int | None] = dict.fromkeys(COUNTS, 0)
        self.nr_files = 0

    def add(self, file: CachedFile) -> None:
        """Add the counts of one file."""
        self.nr_files += 1
        for name in COUNTS:
            sum_, nr = self._sums[name], getattr(file, name)
            self._sums[name] = None if sum_ is None or nr is None else sum_ + nr

    @property
    def file(self) -> CachedFile:
        """The sums, in the form of one file."""
        return CachedFile(self._path, **self._sums)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The path, and the number of files if there are several."""
        path = printable(self._path)
        return path if self.nr_files == 1 else f"{path} ({self.nr_files} files)"


def iter_run_lines(found: Any) -> Iterator[str]:
    """Yield a line of text for each run of frames.

    Args:
        found: Structured array of page_cache.CACHED_DTYPE.
    """
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


def write_runs(found: Any) -> None:
    """Print a line for each run of frames. `found`: structured array of page_cache.CACHED_DTYPE."""
    for run_line in iter_run_lines(found):
        sys.stdout.write(run_line + "\n")


class Document:
    """Prints the JSON document of file, piece by piece: there can be millions of frames.

    Args:
        with_runs: Whether to list the frames of each file.
    """

    def __init__(self, *, with_runs: bool) -> None:
        self._with_runs = with_runs
        self._nr_files = self._nr_runs = 0
        self._is_open = False
        sys.stdout.write('{"files": [')

    def begin(self) -> None:
        """Begin the next file."""
        self._nr_runs = 0
        self._is_open = False

    def _open(self) -> None:
        if not self._is_open:
            sys.stdout.write((",\n" if self._nr_files else "\n") + '{"extents": [')
            self._nr_files += 1
            self._is_open = True

    def visit(self, found: Any) -> None:
        """Print runs of the file's frames. `found`: structured array of page_cache.CACHED_DTYPE."""
        if not self._with_runs:
            return
        self._open()
        for page, pfn, nr, flags in found.tolist():
            run = {
                "page": page,
                "nr_pages": nr,
                "pfn": pfn or None,
                "paddr": hex(pfn << PAGE_SHIFT) if pfn else None,
                "flags": flag_names(flags) if pfn else None,
            }
            sys.stdout.write((",\n" if self._nr_runs else "\n") + json.dumps(run))
            self._nr_runs += 1

    def end(self, file: CachedFile | None) -> None:
        """Print the counts of the file. `file` is None if examining it failed."""
        if file is None and not self._is_open:
            return
        counts = json.dumps(file._asdict() if file else {"path": None})
        if self._with_runs:
            self._open()
            sys.stdout.write("], " + counts[1:])
        else:
            sys.stdout.write((",\n" if self._nr_files else "\n") + counts)
            self._nr_files += 1

    def close(self) -> None:
        """Print the end of the document."""
        sys.stdout.write(f"\n], {errors_member()}}}\n")
