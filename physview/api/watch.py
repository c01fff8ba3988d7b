# SPDX-License-Identifier: GPL-2.0-or-later
"""What changes in the memory of processes, as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, SupportsIndex

from physview.api.memory import VMA_FIELDS, vma_row
from physview.errors import UsageError
from physview.memory.columns import Column, Field, Table, columns_of_rows, numbers

if TYPE_CHECKING:
    from physview.analysis.watch import Reading
    from physview.analysis.watch_processes import ProcessesReading


def watch(
    pid: int | str = "self",
    *,
    interval: float = 1.0,
    nr_readings: int | None = None,
    track_writes: bool = False,
) -> Iterator[Table[Reading]]:
    """Read a process again and again, and count what changed since the reading before.

    The process is opened when the first reading is asked for.

    Args:
        pid: Process id, or "self".
        interval: Seconds from one reading to the next; a reading that takes longer delays the next.
        nr_readings: How many readings; None goes on until the caller stops.
        track_writes: Whether to find pages that were written in place, by soft-dirty bits. Each
            reading clears them, and the next write to each page costs a page fault.

    Yields:
        A table for each reading, with a row for each mapping. The columns of changes are null in
        the first. `answer` has the time, the page faults, and places in RAM.

    Raises:
        ProcessGone: The process ended or ran another program.
        Unsupported: The kernel cannot track writes.
        The errors of `Snapshot`.

    Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/PID/maps

    >>> for table in watch("self", interval=0, nr_readings=2):
    ...     resident = int(table["resident_pages"].sum())
    >>> resident > 100, bool(table.valid("new_pages").all())
    (True, True)
    """
    from physview.analysis.watch import Watcher

    with Watcher(pid, track_writes=track_writes) as watcher:
        for _ in _every(interval, nr_readings):
            yield _reading_table(watcher.read())


_CHANGE_MEANINGS = {
    "new": "pages that were touched since the reading before",
    "gone": "pages that were given back or evicted",
    "moved": "pages that are in another frame",
    "written": "pages that were written in their frame; null unless writes are tracked",
    "out": "pages that were swapped out",
    "in": "pages that were swapped in",
}
_PAGE_MEANINGS = {
    "resident": "resident pages",
    "swapped": "swapped pages",
    "exclusive": "resident pages that are certainly mapped only here",
    "file": "resident pages of files and of shared memory",
}


def _reading_table(reading: Reading) -> Table[Reading]:
    import numpy as np

    from physview.analysis.watch import GROUPS

    nr = len(reading.vmas)
    columns = columns_of_rows(VMA_FIELDS, map(vma_row, reading.vmas))
    for name, pages in reading.pages.items():
        columns.append(numbers(f"{name}_pages", pages, "pages", _PAGE_MEANINGS.get(name, "")))
    for name in GROUPS:
        found = (reading.changes or {}).get(name)
        meaning = _CHANGE_MEANINGS.get(name, "")
        if found is None:
            none = np.zeros(nr, dtype=np.bool_)
            column = Column(f"{name}_pages", np.full(nr, -1), "pages", meaning, none)
        else:
            column = numbers(f"{name}_pages", found, "pages", meaning)
        columns.append(column)
    return Table("reading", columns, reading, pid=reading.pid, source="pagemap")


_PROCESS_FIELDS = (
    Field("pid", "i4", "", "process id"),
    Field("name", "text", "", "name of the process in the kernel"),
    *(Field(f"{name}_pages", "i8", "pages", meaning) for name, meaning in _PAGE_MEANINGS.items()),
    *(Field(f"{name}_pages", "i8", "pages", meaning) for name, meaning in _CHANGE_MEANINGS.items()),
    Field("minor_faults", "i8", "", "page faults without reading from a disk since then"),
    Field("major_faults", "i8", "", "page faults that read from a disk since then"),
)


def watch_processes(
    pids: Iterable[int] | Callable[[], Iterable[int]] | None = None,
    *,
    interval: float = 1.0,
    nr_readings: int | None = None,
    track_writes: bool = False,
) -> Iterator[Table[ProcessesReading]]:
    """Read several processes again and again, and count what changed since the reading before.

    Kernel threads, processes that ended, and those that this user may not examine are left out.

    Args:
        pids: The processes; a function that is called before each reading, for processes that come
            and go; None means all.
        interval: Seconds from one reading to the next; a reading that takes longer delays the next.
        nr_readings: How many readings; None goes on until the caller stops.
        track_writes: As for `watch()`.

    Yields:
        A table for each reading, with a row for each process. The columns of changes are null in a
        process's first reading. `answer` says how many processes are new, gone, and refused.

    Raises:
        UsageError: `pids` is no list.
        Unsupported: The kernel cannot track writes.
        PhysviewError: A file cannot be read, for example because too many are open.

    Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/PID/maps, /proc/PID/stat

    >>> import os
    >>> first, last = watch_processes([os.getpid()], interval=0, nr_readings=2)
    >>> bool(first.valid("new_pages").any()), bool(last.valid("new_pages").all())
    (False, True)
    """
    from physview.analysis.watch_processes import ProcessesWatcher
    from physview.sources.procfs import list_pids

    if pids is None:
        list_wanted: Callable[[], Iterable[int]] = list_pids
    elif callable(pids):
        list_wanted = pids
    elif isinstance(pids, (str, SupportsIndex)):
        raise UsageError(
            f"{pids!r} is no list of processes", "", "give pids, such as [os.getpid()]"
        )
    else:
        kept = [*pids]
        list_wanted = lambda: kept  # noqa: E731
    with ProcessesWatcher(list_wanted, track_writes=track_writes) as watcher:
        for _ in _every(interval, nr_readings):
            found = watcher.read()
            columns = columns_of_rows(_PROCESS_FIELDS, map(_process_row, found.readings))
            yield Table("reading of processes", columns, found, source="pagemap")


def _process_row(reading: Reading) -> tuple[int | str | None, ...]:
    known = reading.changes or {}
    changes = reading.nr_changed or {}
    return (
        reading.pid,
        reading.name,
        *(int(reading.pages[name].sum()) for name in _PAGE_MEANINGS),
        *(changes[name] if name in known else None for name in _CHANGE_MEANINGS),
        *(reading.new_faults or (None, None)),
    )


def _every(seconds: float, nr: int | None) -> Iterator[None]:
    """Yield `nr` times, at most once in `seconds`; None is without end."""
    done = 0
    while nr is None or done < nr:
        began = time.monotonic()
        yield
        done += 1
        if done != nr:
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
