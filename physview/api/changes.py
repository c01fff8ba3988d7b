# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process's memory changes: snapshots, what differs between two, and readings in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from physview.analysis.changes import Diff
from physview.api.memory import VMA_FIELDS, vma_row
from physview.errors import UsageError
from physview.memory.columns import Column, Field, Table, columns_of_rows, numbers, words
from physview.model import NO_ENTRY, Vma

if TYPE_CHECKING:
    from physview.analysis.changes import Change
    from physview.parquet.snapshot_file import SnapshotFile, WrittenSnapshot

    Changes = Any  # structured array of CHANGE_DTYPE

ProgressOfAll = Callable[[int, "int | None"], None]


def snapshot(
    pid: int | str,
    path: str,
    *,
    columns: Sequence[str] = ("flags", "node"),
    overwrite: bool = False,
    track_writes: bool = False,
    progress: ProgressOfAll | None = None,
) -> WrittenSnapshot:
    """Write the memory of a process to a snapshot file, in Parquet. It needs pyarrow.

    Args:
        pid: Process id, or "self".
        path: The file. It is written completely or not at all.
        columns: The optional columns; none is written if frame numbers are hidden.
        overwrite: Whether to replace an existing file of this name.
        track_writes: Whether to clear the soft-dirty bits of the process when it has been read. A
            later snapshot then tells which pages were written since.
        progress: Called with the number of pages that are written, and about how many there are.

    Raises:
        PhysviewError: The file exists, or cannot be written.
        ProcessGone: The process ended, or ran another program, while it was read.
        Unsupported: pyarrow is not installed, or the kernel cannot track writes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = snapshot("self", f"{folder}/a.parquet")
    >>> written.nr_pages > 100
    True
    """
    from physview.memory.snapshot import Snapshot
    from physview.parquet.snapshot_file import write_snapshot

    with Snapshot(pid) as of_process:
        return write_snapshot(
            of_process,
            path,
            columns=columns,
            overwrite=overwrite,
            track_writes=track_writes,
            progress=progress,
        )


class DiffTable(Table[Diff]):
    """The difference between two snapshots: a row for each mapping and kind of change."""

    @property
    def counts(self) -> dict[Change, int]:
        """Pages per change, of the whole process."""
        return self.answer.counts

    @property
    def by_vma(self) -> list[tuple[Vma, bool, dict[Change, int]]]:
        """The changes of each mapping, as in `analysis.changes.Diff`."""
        return self.answer.by_vma

    @property
    def nr_vmas_new(self) -> int:
        """Number of mappings at whose addresses nothing was mapped before."""
        return self.answer.nr_vmas_new

    @property
    def nr_vmas_gone(self) -> int:
        """Number of mappings at whose addresses nothing is mapped any more."""
        return self.answer.nr_vmas_gone

    @property
    def nr_changed(self) -> int:
        """Number of pages that changed."""
        return self.answer.nr_changed


_DIFF_FIELDS = (
    *VMA_FIELDS,
    Field("is_gone", "b1", "", "whether the mapping no longer exists"),
    Field("change", "text", "", "what happened to the pages"),
    Field("nr_pages", "u8", "pages", "number of pages"),
)


def diff(
    before: str | SnapshotFile,
    after: str | SnapshotFile,
    *,
    progress: ProgressOfAll | None = None,
    on_progress: ProgressOfAll | None = None,
) -> DiffTable:
    """Count the pages by what happened to them between two snapshots.

    Args:
        before: The earlier snapshot: a path, or an open `SnapshotFile`.
        after: The later one.
        progress: Called with the number of extents of the earlier snapshot that are done, and the
            number of all its extents.
        on_progress: The earlier name of `progress`.

    Returns:
        A row for each mapping and change, of mappings in which anything changed. `counts` are the
        pages of the whole process. `changes()` has each extent.

    Raises:
        PhysviewError: The snapshots cannot be compared, or a file is damaged.
        Unsupported: pyarrow is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = snapshot("self", f"{folder}/a.parquet"), snapshot("self", f"{folder}/b.parquet")
    ...     table = diff(f"{folder}/a.parquet", f"{folder}/b.parquet")
    >>> table.column_names[-2:], sum(table.counts.values()) > 100
    (['change', 'nr_pages'], True)
    """
    from physview.analysis.changes import diff as count_changes

    with ExitStack() as stack:
        earlier, later = (_open(stack, each) for each in (before, after))
        found = count_changes(earlier, later, progress=progress or on_progress)
        pid, title = _pid(earlier, later), _title("changes", earlier, later)
    rows = [
        (*vma_row(vma), is_gone, change.value, nr)
        for vma, is_gone, counts in found.by_vma
        for change, nr in counts.items()
    ]
    columns = columns_of_rows(_DIFF_FIELDS, rows)
    return DiffTable(title, columns, found, pid=pid, source="snapshot files")


def changes(
    before: str | SnapshotFile, after: str | SnapshotFile, *, only: Iterable[str] = ()
) -> Table[None]:
    """Find what happened to each page between two snapshots.

    Args:
        before: The earlier snapshot: a path, or an open `SnapshotFile`.
        after: The later one.
        only: Only these changes, such as "moved"; by default all.

    Returns:
        A row for contiguous pages with the same change, in address order. "frame_before" and
        "frame_after" are the first page's frames; null if it had or has none, or it is hidden.

    Raises:
        UsageError: There is no such change.
        PhysviewError: The snapshots cannot be compared, or a file is damaged.
        Unsupported: pyarrow is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = snapshot("self", f"{folder}/a.parquet"), snapshot("self", f"{folder}/b.parquet")
    ...     table = changes(f"{folder}/a.parquet", f"{folder}/b.parquet")
    >>> table.column_names[:3], len(table) > 10
    (['vaddr', 'nr_pages', 'change'], True)
    """
    import numpy as np

    from physview.analysis.changes import CHANGE_DTYPE, CHANGES, iter_changes

    chosen = list(only)
    names = [change.value for change in CHANGES]
    for name in chosen:
        if name not in names:
            raise UsageError(f"no change '{name}'", "", f"choose one of {', '.join(names)}")
    numbers_of = [names.index(name) for name in chosen]
    batches: list[Changes] = []
    with ExitStack() as stack:
        earlier, later = (_open(stack, each) for each in (before, after))
        for batch in iter_changes(earlier, later):
            batches.append(batch[np.isin(batch["change"], numbers_of)] if chosen else batch)
        rows = np.concatenate(batches) if batches else np.empty(0, dtype=CHANGE_DTYPE)
        columns = _change_columns(rows, earlier.vmas, later.vmas)
        pid, title = _pid(earlier, later), _title("changes", earlier, later)
    return Table(title, columns, None, pid=pid, source="snapshot files")


def _change_columns(rows: Changes, before: Sequence[Vma], after: Sequence[Vma]) -> list[Column]:
    import numpy as np

    from physview.analysis.changes import CHANGES, IS_FRAME, WAS_FRAME

    none = np.uint64(NO_ENTRY)
    # The mapping after, or before if it is gone.
    vma = np.where(rows["vma_after"] < 0, len(after) + rows["vma_before"], rows["vma_after"])
    paths = [each.path for each in (*after, *before)]
    columns = [
        numbers("vaddr", rows["vaddr"], "address", "virtual address of the first page"),
        numbers("nr_pages", rows["nr_pages"], "pages", "number of contiguous pages"),
        words(
            "change", rows["change"], [each.value for each in CHANGES], "what happened to the pages"
        ),
    ]
    for name, bit in (("before", WAS_FRAME), ("after", IS_FRAME)):
        is_frame = (rows["frames"] & bit != 0) & (rows[name] != none)
        frames = np.where(is_frame, rows[name], none)
        meaning = f"frame of the first page {name}"
        columns.append(Column(f"frame_{name}", frames, "frame", meaning, is_frame))
    return [*columns, words("path", vma, paths, "path of the mapping")]


def _open(stack: ExitStack, given: str | SnapshotFile) -> SnapshotFile:
    from physview.parquet.snapshot_file import SnapshotFile

    return stack.enter_context(SnapshotFile(given)) if isinstance(given, str) else given


def _pid(before: SnapshotFile, after: SnapshotFile) -> int | None:
    """The process, if both snapshots are of one."""
    pid: int = after.about["pid"]
    return pid if before.process == after.process else None


def _title(what: str, before: SnapshotFile, after: SnapshotFile) -> str:
    return f"{what} from {before.path} to {after.path}"
