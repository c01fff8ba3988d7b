# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes and reads snapshot files: the memory of a process as a Parquet file, one row per extent.

docs/parquet.md describes the columns. pandas, polars and DuckDB can open the file directly. Its
metadata say on which machine, of which process and when it was made.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.entry_rules import swap_slot
from physview.errors import PhysviewError
from physview.files.atomic_file import whole_file
from physview.files.descriptor import Closable
from physview.memory.rows import BASE_DTYPE, COLUMNS
from physview.model import NO_ENTRY, PAGE_SIZE, Vma, printable
from physview.parquet.column_reader import ParquetInput
from physview.parquet.snapshot_check import (
    MAX_ABOUT_BYTES,
    MAX_MAPPINGS,
    About,
    RowCheck,
    check_about,
    check_resources,
    load_json,
)
from physview.parquet.snapshot_tables import SnapshotTables
from physview.parquet.thrift import Damage
from physview.runtime import invocation, resource_limits
from physview.runtime.extras import need
from physview.sources import soft_dirty
from physview.sources.page_flags import FLAG_NAMES
from physview.sources.ram import RAM, Resource, boot_id, read_resources

if TYPE_CHECKING:
    from physview.memory.rows import Rows
    from physview.memory.snapshot import Snapshot

KEY = b"physview"
FORMAT = 1
# Rows in a row group. One group is written or read at a time, so this limits the memory needed.
ROWS_IN_GROUP = 1 << 14

# The columns that are read back. The other columns can be derived from them.
_READ = ("vaddr", "nr_pages", "entry", "mapping", "pfn", "swap_type", "swap_offset")

# Name, Arrow type, unit, meaning. docs/parquet.md has the same list.
FIELDS = (
    ("vaddr", "uint64", "bytes", "virtual address of the first page"),
    ("nr_pages", "uint64", "pages", "number of contiguous base pages"),
    (
        "pfn",
        "uint64",
        "frames",
        "the first page's frame; the other pages have the frames after it, but all zero pages share"
        " one frame",
    ),
    ("cause", "dictionary", "", "why there is no frame"),
    ("swap_type", "uint8", "", "for a swap entry: the swap area, or the kind of special entry"),
    (
        "swap_offset",
        "uint64",
        "pages",
        "the offset in the first page's swap entry; the other pages have the offsets after it",
    ),
    ("entry", "uint64", "", "the first page's entry in /proc/PID/pagemap"),
    ("mapping", "uint32", "", "index in the metadata's mappings"),
    ("perms", "dictionary", "", "the permissions of the mapping"),
    ("path", "dictionary", "", "the path of the mapping"),
)
MORE_FIELDS = {
    "flags": (
        ("flags", "uint64", "", "the flags in /proc/kpageflags, equal for all frames of the row"),
        ("flag_names", "dictionary", "", "the names of these flags, separated by a bar"),
    ),
    "mapcount": (("mapcount", "uint64", "", "how often each of the frames is mapped"),),
    "cgroup": (("cgroup", "dictionary", "", "the memory cgroup that the frames are charged to"),),
    "node": (("node", "int32", "", "NUMA node"),),
}


class WrittenSnapshot(NamedTuple):
    """A snapshot file that was written.

    Args:
        path: Path of the file.
        nr_extents: Number of rows.
        nr_pages: Number of base pages and swap entries in the rows.
        size_bytes: Size of the file.
    """

    path: str
    nr_extents: int
    nr_pages: int
    size_bytes: int


def write_snapshot(
    snapshot: Snapshot,
    path: str,
    *,
    columns: Sequence[str] = ("flags", "node"),
    overwrite: bool = False,
    track_writes: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> WrittenSnapshot:
    """Write the memory of a process to a snapshot file.

    The file is written completely or not at all. Only its owner can read it.

    Args:
        snapshot: The process.
        path: The file.
        columns: Names of COLUMNS. Each costs one more read for every frame. If frame numbers are
            hidden, no optional column is written.
        overwrite: Whether to replace an existing file of this name.
        track_writes: Whether to clear the soft-dirty bits of the process when it has been read. A
            later snapshot then tells which pages were written since.
        progress: Called with the number of pages that are written, and the approximate number of
            all pages.
        on_progress: The earlier name of `progress`.

    Raises:
        PhysviewError: The file exists, or cannot be written.
        ProcessGone: The process ended, or ran another program, while it was read.
        Unsupported: pyarrow is not installed, or the kernel cannot track writes.
    """
    columns = list(dict.fromkeys(columns)) if snapshot.knows_frames else []
    if track_writes:
        soft_dirty.check_supported()
    batches = snapshot.iter_extents(columns=columns)
    return write_rows(
        snapshot,
        _then_clear(batches, snapshot) if track_writes else batches,
        path,
        columns=columns,
        overwrite=overwrite,
        complete=True,
        track_writes=track_writes,
        progress=progress or on_progress,
    )


def _then_clear(batches: Iterable[Rows], snapshot: Snapshot) -> Iterator[Rows]:
    """Yield all rows, then clear the soft-dirty bits of the process."""
    yield from batches
    soft_dirty.clear(snapshot.proc)


def write_rows(
    snapshot: Snapshot,
    batches: Iterable[Rows],
    path: str,
    *,
    columns: Sequence[str],
    overwrite: bool = False,
    complete: bool = False,
    track_writes: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> WrittenSnapshot:
    """Write given rows to a snapshot file, as `write_snapshot()` does.

    Args:
        snapshot: The process that the rows belong to.
        batches: The arrays that `snapshot.iter_extents()` yields; rows may be filtered or expanded.
        path: The file.
        columns: The optional columns of the rows.
        overwrite: Whether to replace an existing file of this name.
        complete: Whether the rows are all rows of the process. Only complete files can be compared.
        track_writes: Whether `batches` clears the soft-dirty bits at its end.
        progress: As in `write_snapshot()`.

    Raises:
        PhysviewError: The file exists, or cannot be written.
        ProcessGone: The process ended, or ran another program, while it was read.
        Unsupported: pyarrow is not installed.
    """
    what = f"cannot write {path}"
    arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
    fields = [*FIELDS, *(field for name in columns for field in MORE_FIELDS[name])]
    about = _about(snapshot, columns, complete=complete, track_writes=track_writes)
    schema = arrow.schema([_field(arrow, *field) for field in fields], {KEY: about})
    nr_extents, nr_pages, nr_resident = 0, 0, snapshot.nr_resident
    with whole_file(path, overwrite=overwrite) as file:
        tables = SnapshotTables(arrow, schema, snapshot.vmas)
        words = [name for name, kind, *_ in fields if kind == "dictionary"]
        with parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=words, write_page_checksum=True
        ) as writer:
            for rows in _regroup(batches):
                writer.write_table(tables.table(rows))
                nr_extents += len(rows)
                nr_pages += int(rows["nr_pages"].sum())
                if progress:
                    progress(nr_pages, nr_resident)
        file.flush()
        size = os.fstat(file.fileno()).st_size
    return WrittenSnapshot(path, nr_extents, nr_pages, size)


def _field(arrow: Any, name: str, kind: str, unit: str, meaning: str) -> Any:
    if kind == "dictionary":
        of_type = arrow.dictionary(arrow.int32(), arrow.string())
    else:
        of_type = getattr(arrow, kind)()
    never_null = ("vaddr", "nr_pages", "entry", "mapping", "perms", "path")
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return arrow.field(name, of_type, nullable=name not in never_null, metadata=metadata)


def _about(
    snapshot: Snapshot, columns: Sequence[str], *, complete: bool, track_writes: bool
) -> bytes:
    """The metadata of the rows, as JSON.

    Raises:
        PhysviewError: The metadata exceed the limits that the reader has.
    """
    members = _members(snapshot, columns) | {
        "complete": complete,
        "clears_soft_dirty": track_writes,
    }
    about = json.dumps(members, separators=(",", ":"))
    nr, most = len(snapshot.vmas), MAX_MAPPINGS
    if nr > most or len(about) > MAX_ABOUT_BYTES:
        why = f"its {nr} mappings, with their names, are more than a snapshot holds ({most})"
        raise PhysviewError(f"cannot keep process {snapshot.pid}", why, pid=snapshot.pid)
    return about.encode()


def _members(snapshot: Snapshot, columns: Sequence[str]) -> dict[str, Any]:
    from physview.runtime.version import __version__

    system = os.uname()
    stat = snapshot.proc.stat()
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "format": FORMAT,
        "physview": __version__,
        "host": system.nodename,
        "kernel": system.release,
        "machine": system.machine,
        "boot_id": boot_id(),
        "time": now.isoformat(timespec="milliseconds"),
        "pid": snapshot.pid,
        "start_time_ticks": stat.start_time if stat else None,
        "comm": snapshot.proc.comm(),
        "page_size_bytes": PAGE_SIZE,
        "zero_pfn": snapshot.reader.zero_pfn,
        "shows_frames": snapshot.knows_frames,
        "resources": _resources() if snapshot.knows_frames else None,
        "columns": list(columns),
        "flag_bits": {str(bit): name for bit, name in FLAG_NAMES.items()},
        "mapping_members": list(Vma._fields),
        "mappings": [list(vma) for vma in snapshot.vmas],
    }


def _resources() -> list[Resource] | None:
    """Read the ranges of RAM and what is between them; None if the kernel hides them.

    Pictures of frames need them.
    """
    try:
        found = read_resources()
        kept = [each for each in found if each.depth == 0 or each.name.startswith(RAM)]
        return check_resources([list(each) for each in kept])
    except (OSError, Damage):  # in a container /proc/iomem may be missing or without RAM
        return None


def _regroup(batches: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the same rows in arrays of ROWS_IN_GROUP; only the last array may be shorter."""
    import numpy as np

    held: list[Rows] = []
    nr = 0
    for batch in batches:
        rows = batch
        while nr + len(rows) >= ROWS_IN_GROUP:
            room = ROWS_IN_GROUP - nr
            yield np.concatenate([*held, rows[:room]])
            held, nr, rows = [], 0, rows[room:]
        held.append(rows)
        nr += len(rows)
    if nr:
        yield np.concatenate(held)


class SnapshotFile(Closable):
    """A snapshot file, open for reading. A context manager.

    Anybody can make such a file. So all data in it are checked by `snapshot_check` first.

    Args:
        path: The file.

    Attributes:
        about: The metadata: host, boot_id, kernel, time, pid, start_time_ticks, comm and more.
        vmas: The mappings, in address order.
        resources: What was at which physical address, as from `ram.read_resources()`, but only the
            outermost resources and RAM. None if it was hidden, or if an earlier version of physview
            wrote the file.
        columns: The optional columns of the rows, out of "flags", "mapcount" and "node".
        time: When the snapshot was taken, with its time zone.

    Raises:
        PhysviewError: The file cannot be opened, is not a snapshot, is damaged, has a later format,
            or is from a machine with another page size.
        Unsupported: pyarrow is not installed.
    """

    def __init__(self, path: str) -> None:
        what = f"cannot read {path}"
        need("pyarrow", what)
        need("pyarrow.parquet", what)
        self.path = path
        with self._explain_errors("it is not a Parquet file, or it is damaged"):
            self._file = ParquetInput(path, KEY)
        try:
            about = self._read_about(what)
            with self._explain_errors("its columns are not those of a snapshot"):
                self._check_columns()
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = about.members
        self.vmas, self.resources, self.time = about.vmas, about.resources, about.time
        stored = self._file.columns
        self.columns = [name for name in COLUMNS if name in stored and name != "cgroup"]

    def __repr__(self) -> str:
        pid, path = self.about["pid"], printable(self.path)
        return f"<SnapshotFile of process {pid}, from {path}: {self.nr_extents} extents>"

    @contextlib.contextmanager
    def _explain_errors(self, why: str) -> Iterator[None]:
        """Translate errors inside a `with` block into a PhysviewError about the file."""
        what = f"cannot read {self.path}"
        try:
            yield
        except Damage as error:
            raise PhysviewError(what, f"{why} ({error})", path=self.path) from None
        except ValueError:  # a NUL, or text that the file system encoding lacks
            raise PhysviewError(what, "this is not a valid file name", path=self.path) from None
        except (OSError, ImportError, MemoryError) as error:
            limit = resource_limits.reached(error)
            if limit:
                raise PhysviewError(what, *limit, path=self.path) from None
            if not isinstance(error, OSError):
                raise
            raise PhysviewError(what, error.strerror or str(error), path=self.path) from None

    def _read_about(self, what: str) -> About:
        if KEY not in self._file.metadata:
            why = "it is a Parquet file, but not a snapshot of physview's"
            remedy = f"{invocation.physview('snapshot PID -o FILE')} makes one"
            raise PhysviewError(what, why, remedy)
        with self._explain_errors("its metadata are damaged"):
            document = load_json(self._file.metadata.pop(KEY))
            found, size = document.get("format"), document.get("page_size_bytes")
            if type(found) is int and found > FORMAT:
                why = f"its format is {found}, and this physview knows {FORMAT}"
                version = str(document.get("physview"))[:64]
                raise PhysviewError(what, why, f"use physview {version} or later")
            if type(size) is int and 0 < size < 1 << 32 and size != PAGE_SIZE:
                why = f"its pages have {size} bytes, and this machine's {PAGE_SIZE}"
                raise PhysviewError(what, why, "read it on a machine with that page size")
            return check_about(document)

    def _check_columns(self) -> None:
        kinds = {name: kind for name, kind, *_ in (*FIELDS, *sum(MORE_FIELDS.values(), ()))}
        for name in (*_READ, *COLUMNS):
            column = self._file.columns.get(name)
            if column is None and name in _READ:
                raise Damage(f"column {name} is missing")
            if column is not None and column.kind != kinds[name].replace("dictionary", ""):
                raise Damage(f"column {name} is not of type {kinds[name]}")

    @property
    def knows_frames(self) -> bool:
        """Whether frame numbers were visible when the snapshot was taken."""
        return bool(self.about["shows_frames"])

    @property
    def zero_pfn(self) -> int:
        """Frame number of the zero page when the snapshot was taken; 0 if it was hidden."""
        return int(self.about["zero_pfn"])

    @property
    def clears_soft_dirty(self) -> bool:
        """Whether the soft-dirty bits of the process were cleared when it had been read."""
        return bool(self.about.get("clears_soft_dirty"))

    @property
    def process(self) -> tuple[int, int | None]:
        """The identity of the process: its pid, and its start time in clock ticks after boot.

        A pid alone is not enough, because the kernel reuses pids. The start time is None if the
        process was already gone.
        """
        return self.about["pid"], self.about["start_time_ticks"]

    @property
    def nr_extents(self) -> int:
        """The number of rows."""
        return self._file.nr_rows

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()

    def iter_extents(self) -> Iterator[Rows]:
        """Read all rows of the file. The rows are those that `Snapshot.iter_extents()` yielded.

        Yields:
            Structured arrays of BASE_DTYPE and `columns`, in address order.

        Raises:
            PhysviewError: The file is damaged, or cannot be read.
        """
        check = RowCheck(self.vmas, knows_frames=self.knows_frames, zero_pfn=self.zero_pfn)
        for at in range(self._file.nr_groups):
            with self._explain_errors("it is damaged"):
                rows = self._read_rows(at)
                check.check(rows)
            # Files of other writers may have larger groups.
            for first in range(0, len(rows), ROWS_IN_GROUP):
                yield rows[first : first + ROWS_IN_GROUP]

    def _read_rows(self, at: int) -> Rows:
        """Read one row group."""
        import numpy as np

        found = self._file.read_group(at, [*_READ, *self.columns])
        dtype = [*BASE_DTYPE, *((name, COLUMNS[name]) for name in self.columns)]
        rows = np.empty(len(found["vaddr"].data), dtype=dtype)
        for name in ("vaddr", "nr_pages", "entry", "mapping"):
            if not found[name].is_known.all():
                raise Damage(f"a row has no {name}")
            rows[name.replace("mapping", "vma")] = found[name].data
        for name in ("pfn", *self.columns):
            none = -1 if name == "node" else NO_ENTRY
            rows[name] = np.where(
                found[name].is_known, found[name].data, rows.dtype[name].type(none)
            )
        offset, swap_type = found["swap_offset"], found["swap_type"]
        if (offset.is_known != swap_type.is_known).any():
            raise Damage("a row has half a swap slot")
        slot = swap_slot(swap_type.data, offset.data)
        rows["swap"] = np.where(offset.is_known, slot, np.uint64(NO_ENTRY))
        return rows
