# SPDX-License-Identifier: GPL-2.0-or-later
"""The working set of a process as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from physview.api.memory import VMA_FIELDS, vma_row
from physview.memory.columns import Field, Table, columns_of_rows
from physview.sources.procfs import ProcDir

if TYPE_CHECKING:
    from collections.abc import Iterable

    from physview.analysis.touched import Touched

_SUMS = (
    Field("resident_bytes", "u8", "bytes", "pages in the page tables at the end"),
    Field("touched_bytes", "u8", "bytes", "of these: certainly used"),
    Field("written_bytes", "u8", "bytes", "of the touched ones: certainly written"),
    Field("untouched_bytes", "u8", "bytes", "of the resident ones: their bit was clear at the end"),
    Field("unknown_bytes", "u8", "bytes", "of the resident ones: their use is not known"),
    Field("new_bytes", "u8", "bytes", "of the resident ones: not there at the beginning"),
    Field("huge_bytes", "u8", "bytes", "of the touched ones: in huge pages, with one bit each"),
)
_PAGES = (
    Field("start", "u8", "address", "address of the first page"),
    Field("end", "u8", "address", "first address after the last page"),
    Field("page_bytes", "u8", "bytes", "what one bit is for"),
    Field("state", "text", "", "untouched, unknown, touched or written"),
    Field("times", "u4", "", "in how many intervals they were certainly used"),
)


def touched(
    pid: int | str = "self",
    seconds: float = 1.0,
    *,
    times: int = 1,
    by: str = "auto",
    clear: bool = False,
    track_writes: bool = False,
    source: str = "auto",
    each_page: bool = False,
) -> Table[Touched]:
    """See which pages a process uses in an interval.

    Args:
        pid: Process id, or "self".
        seconds: The length of an interval.
        times: The number of intervals, one after the other.
        by: What is looked at: "accessed" (bits of the page tables; needs root), "referenced" (sums
            of smaps), "idle" (the idle bitmap), "soft-dirty", "wp-async", or "auto": accessed, or
            else referenced.
        clear: Whether to clear the bits first. Then all pages are told. Reclaim then takes the
            memory of the process for unused.
        track_writes: Whether to clear the soft-dirty bits, too, which tells all writes.
        source: Who walks the page tables: "kmod", "bpf" or "auto".
        each_page: Whether a row is pages that are alike, and not a mapping.

    Returns:
        A row for each mapping with resident memory. `answer` has the sums, what was changed
        (`influence`) and what could not be seen (`limits`).

    Raises:
        ProcessGone: The process ended in the first interval.
        AccessDenied: This user may not.
        Unsupported: This machine has no such way.
        UsageError: The arguments do not fit together, or single pages are not known.

    Source: page tables, /proc/PID/smaps, /proc/PID/clear_refs, /sys/kernel/mm/page_idle/bitmap

    >>> table = touched("self", 0)
    >>> bool((table["touched_bytes"] <= table["resident_bytes"]).all())
    True
    """
    from physview.analysis.touched import observe, open_way

    options = {"clear": clear, "track_writes": track_writes}
    with ProcDir(pid) as proc, open_way(proc, by, source=source, **options) as way:
        found = observe(proc, way, seconds, times=times, counts=times > 1)
    if each_page:
        columns = columns_of_rows(_PAGES, found.iter_runs())
    else:
        columns = columns_of_rows((*VMA_FIELDS, *_SUMS), _rows(found))
    return Table("touched memory", columns, found, pid=found.pid, source=found.source)


def _rows(found: Touched) -> Iterable[tuple[object, ...]]:
    for vma, sums in found.mappings:
        told = found.told(sums)
        yield (*vma_row(vma), *(told[field.name.removesuffix("_bytes")] for field in _SUMS))
