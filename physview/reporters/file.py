# SPDX-License-Identifier: GPL-2.0-or-later
"""What file is about: a line a file as it comes, and the same as a document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from physview.model import NO_ENTRY, PAGE_SHIFT, printable
from physview.sources.page_cache import CachedFile
from physview.sources.page_flags import flag_names, well_known
from physview.units import share, size

COLUMNS = ("cached", "of", "share", "dirty", "mapped", "active", "holes", "runs")
WIDTHS = (6, 6, 6, 6, 6, 6, 6, 6)

# Of what is counted, what adds up.
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
    """The names of the columns."""
    cells = [name.rjust(width) for name, width in zip(COLUMNS, WIDTHS, strict=True)]
    return " ".join([*cells, " path"])


def line(file: CachedFile, what: str = "") -> str:
    """What of a file, or of several together, is cached.

    Args:
        file: The counts.
        what: What stands for its path.
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
    """A size that leaves room for paths.

    >>> _short(0), _short(3 << 20)
    ('0', '12.0G')
    """
    return size(nr_pages).replace(" ", "").removesuffix("iB")


class Total:
    """Counts of several files together; what is not known of one is not known of all.

    Args:
        path: What stands for them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._sums: dict[str, int | None] = dict.fromkeys(COUNTS, 0)
        self.nr_files = 0

    def add(self, file: CachedFile) -> None:
        """Add one."""
        self.nr_files += 1
        for name in COUNTS:
            sum_, nr = self._sums[name], getattr(file, name)
            self._sums[name] = None if sum_ is None or nr is None else sum_ + nr

    @property
    def file(self) -> CachedFile:
        """All as one."""
        return CachedFile(self._path, **self._sums)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The path, and how many files that is."""
        path = printable(self._path)
        return path if self.nr_files == 1 else f"{path} ({self.nr_files} files)"


def iter_run_lines(found: Any) -> Iterator[str]:
    """Lines of frames.

    Args:
        found: Structured array of filecache.CACHED_DTYPE.
    """
    for page, pfn, nr, flags in _joined(found.tolist()):
        where = f"  page {page}" if nr == 1 else f"  page {page}-{page + nr}"
        if not pfn:
            yield f"{where:<24}  frame not known"
            continue
        frames = f"pfn {pfn}" if nr == 1 else f"pfn {pfn}-{pfn + nr}"
        names = ",".join(flag_names(flags))
        yield f"{where:<24}  {pfn << PAGE_SHIFT:#018x}  {frames:<20}  {names}"


def _joined(runs: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Runs with the flags that are shown; what then differs no more is one."""
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
    """Print them."""
    for run_line in iter_run_lines(found):
        sys.stdout.write(run_line + "\n")


class Document:
    """The document of file, written as it comes, for frames can be millions.

    Args:
        with_runs: Whether each file has its frames.
    """

    def __init__(self, *, with_runs: bool) -> None:
        self._with_runs = with_runs
        self._nr_files = self._nr_runs = 0
        self._is_open = False
        sys.stdout.write('{"files": [')

    def begin(self) -> None:
        """Another file comes."""
        self._nr_runs = 0
        self._is_open = False

    def _open(self) -> None:
        if not self._is_open:
            sys.stdout.write((",\n" if self._nr_files else "\n") + '{"extents": [')
            self._nr_files += 1
            self._is_open = True

    def visit(self, found: Any) -> None:
        """Write runs of the file. `found`: structured array of filecache.CACHED_DTYPE."""
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
        """Write the rest of the file; None where looking at it failed."""
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
        """That was all."""
        sys.stdout.write("\n]}\n")
