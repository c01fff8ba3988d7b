# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory kept in a Parquet file: a row an extent. docs/parquet.md has the columns.

pandas, polars and DuckDB open it as it is; who took it, of what and when is in its metadata.
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
from physview.model import NO_ENTRY, PAGE_SIZE, Vma
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
from physview.parquet.snapshot_tables import Tables
from physview.parquet.thrift import Damage
from physview.runtime import invocation, resource_limits
from physview.runtime.extras import need
from physview.sources.page_flags import FLAG_NAMES
from physview.sources.ram import RAM, Resource, boot_id, read_resources

if TYPE_CHECKING:
    from physview.memory.rows import Rows
    from physview.memory.snapshot import Snapshot

KEY = b"physview"
FORMAT = 1
# Rows in a group of the file: what is written or read at a time, and so what it takes of memory.
ROWS_IN_GROUP = 1 << 14

# What is read back of a row.
_READ = ("vaddr", "nr_pages", "entry", "mapping", "pfn", "swap_type", "swap_offset")

# Name, type of Arrow, unit, meaning. docs/parquet.md says the same.
FIELDS = (
    ("vaddr", "uint64", "bytes", "virtual address of the first page"),
    ("nr_pages", "uint64", "pages", "base pages in a row"),
    ("pfn", "uint64", "frames", "the first page's frame; the others follow, but zero pages"),
    ("cause", "dictionary", "", "why there is no frame"),
    ("swap_type", "uint8", "", "of a swap entry: the swap area, or what is special"),
    ("swap_offset", "uint64", "pages", "of a swap entry, of the first page; the others follow"),
    ("entry", "uint64", "", "the first page's entry in /proc/PID/pagemap"),
    ("mapping", "uint32", "", "index in the metadata's mappings"),
    ("perms", "dictionary", "", "of the mapping"),
    ("path", "dictionary", "", "of the mapping"),
)
MORE_FIELDS = {
    "flags": (
        ("flags", "uint64", "", "of /proc/kpageflags, alike for all frames of the row"),
        ("flag_names", "dictionary", "", "the same by name, with | between them"),
    ),
    "mapcount": (("mapcount", "uint64", "", "how often each frame is mapped"),),
    "cgroup": (("cgroup", "dictionary", "", "the memory cgroup that the frames are charged to"),),
    "node": (("node", "int32", "", "NUMA node"),),
}


class Written(NamedTuple):
    """What was written.

    Args:
        path: Where.
        nr_extents: Rows.
        nr_pages: Base pages and swap entries in them.
        size_bytes: Of the file.
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
    progress: Callable[[int, int | None], None] | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Written:
    """Keep a process's memory in a file, written whole or not at all, readable to its owner only.

    Args:
        snapshot: The process.
        path: The file.
        columns: Names of COLUMNS; each costs a reading of every frame. None is read where frame
            numbers are hidden.
        overwrite: Whether to replace a file of this name.
        progress: Called with how many pages are written, and about how many there are.
        on_progress: The earlier name of `progress`.

    Raises:
        PhysviewError: The file is there already, or cannot be written.
        ProcessGone: The process ended or ran another program meanwhile.
        Unsupported: pyarrow is not installed.
    """
    columns = list(dict.fromkeys(columns)) if snapshot.knows_frames else []
    batches = snapshot.iter_extents(columns=columns)
    return write_rows(
        snapshot,
        batches,
        path,
        columns=columns,
        overwrite=overwrite,
        complete=True,
        progress=progress or on_progress,
    )


def write_rows(
    snapshot: Snapshot,
    batches: Iterable[Rows],
    path: str,
    *,
    columns: Sequence[str],
    overwrite: bool = False,
    complete: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Written:
    """As `write_snapshot()`, of rows that were read before.

    Args:
        snapshot: The process they are of.
        batches: What its `iter_extents()` yields, also filtered or expanded.
        path: The file.
        columns: What the rows have besides the base.
        overwrite: Whether to replace a file of this name.
        complete: Whether the rows are all there are: only then can the file be compared.
        progress: As there.
    """
    what = f"cannot write {path}"
    arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
    fields = [*FIELDS, *(field for name in columns for field in MORE_FIELDS[name])]
    about = _about(snapshot, columns, complete=complete)
    schema = arrow.schema([_field(arrow, *field) for field in fields], {KEY: about})
    nr_extents, nr_pages, nr_resident = 0, 0, snapshot.nr_resident
    with whole_file(path, overwrite=overwrite) as file:
        tables = Tables(arrow, schema, snapshot.vmas)
        words = [name for name, kind, *_ in fields if kind == "dictionary"]
        with parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=words, write_page_checksum=True
        ) as writer:
            for rows in _grouped(batches):
                writer.write_table(tables.table(rows))
                nr_extents += len(rows)
                nr_pages += int(rows["nr_pages"].sum())
                if progress:
                    progress(nr_pages, nr_resident)
        file.flush()
        size = os.fstat(file.fileno()).st_size
    return Written(path, nr_extents, nr_pages, size)


def _field(arrow: Any, name: str, kind: str, unit: str, meaning: str) -> Any:
    if kind == "dictionary":
        of_type = arrow.dictionary(arrow.int32(), arrow.string())
    else:
        of_type = getattr(arrow, kind)()
    never_null = ("vaddr", "nr_pages", "entry", "mapping", "perms", "path")
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return arrow.field(name, of_type, nullable=name not in never_null, metadata=metadata)


def _about(snapshot: Snapshot, columns: Sequence[str], *, complete: bool) -> bytes:
    """The metadata of the rows, as JSON.

    Raises:
        PhysviewError: The metadata exceed the limits for reading them back.
    """
    about = json.dumps(_members(snapshot, columns, complete=complete), separators=(",", ":"))
    nr, most = len(snapshot.vmas), MAX_MAPPINGS
    if nr > most or len(about) > MAX_ABOUT_BYTES:
        why = f"its {nr} mappings, with their names, are more than a snapshot holds ({most})"
        raise PhysviewError(f"cannot keep process {snapshot.pid}", why, pid=snapshot.pid)
    return about.encode()


def _members(snapshot: Snapshot, columns: Sequence[str], *, complete: bool) -> dict[str, Any]:
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
        "complete": complete,
        "resources": _resources() if snapshot.knows_frames else None,
        "columns": list(columns),
        "flag_bits": {str(bit): name for bit, name in FLAG_NAMES.items()},
        "mapping_members": list(Vma._fields),
        "mappings": [list(vma) for vma in snapshot.vmas],
    }


def _resources() -> list[Resource] | None:
    """Where RAM is, and what lies between, to draw frames by; None where that is not told."""
    try:
        found = read_resources()
        kept = [each for each in found if each.depth == 0 or each.name.startswith(RAM)]
        return check_resources([list(each) for each in kept])
    except (OSError, Damage):  # a container may have no iomem, or one without RAM
        return None


def _grouped(batches: Iterable[Rows]) -> Iterator[Rows]:
    """Rows in arrays of ROWS_IN_GROUP, but for the last."""
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
    """A snapshot that was kept. A context manager.

    Anybody can make such a file: what is read has passed `snapshot_check`.

    Args:
        path: The file.

    Attributes:
        about: The metadata: host, boot_id, kernel, time, pid, start_time_ticks, comm and more.
        vmas: The mappings, in address order.
        resources: What lay at which physical address, as `ram.read_resources()`, outermost and
            RAM only; None if that was hidden, or if an earlier physview wrote the file.
        columns: What rows have besides the base: of "flags", "mapcount" and "node".
        time: When it was taken, with its time zone.

    Raises:
        PhysviewError: It cannot be opened, is not a snapshot, is damaged, has a later format, or is
            from a machine with another page size.
        Unsupported: pyarrow is not installed.
    """

    def __init__(self, path: str) -> None:
        what = f"cannot read {path}"
        need("pyarrow", what)
        need("pyarrow.parquet", what)
        self.path = path
        with self._told("it is not a Parquet file, or it is damaged"):
            self._file = ParquetInput(path, KEY)
        try:
            about = self._read_about(what)
            with self._told("its columns are not those of a snapshot"):
                self._check_columns()
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = about.members
        self.vmas, self.resources, self.time = about.vmas, about.resources, about.time
        stored = self._file.columns
        self.columns = [name for name in COLUMNS if name in stored and name != "cgroup"]

    @contextlib.contextmanager
    def _told(self, why: str) -> Iterator[None]:
        """Say why the file cannot be read."""
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
        with self._told("its metadata are damaged"):
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
        """Whether frame numbers were shown to who took it."""
        return bool(self.about["shows_frames"])

    @property
    def zero_pfn(self) -> int:
        """The zero page's frame when it was taken; 0 where it was hidden."""
        return int(self.about["zero_pfn"])

    @property
    def process(self) -> tuple[int, int | None]:
        """Which process: pids are used again, but not with the same start time, in clock ticks."""
        return self.about["pid"], self.about["start_time_ticks"]

    @property
    def nr_extents(self) -> int:
        """How many rows there are."""
        return self._file.nr_rows

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()

    def iter_extents(self) -> Iterator[Rows]:
        """As `Snapshot.iter_extents()`, of all that was kept.

        Yields:
            Structured arrays of BASE_DTYPE and the columns that there are, in address order.

        Raises:
            PhysviewError: The file is damaged, or cannot be read.
        """
        check = RowCheck(self.vmas, knows_frames=self.knows_frames, zero_pfn=self.zero_pfn)
        for at in range(self._file.nr_groups):
            with self._told("it is damaged"):
                rows = self._read_rows(at)
                check.check(rows)
            for first in range(0, len(rows), ROWS_IN_GROUP):  # other writers make larger groups
                yield rows[first : first + ROWS_IN_GROUP]

    def _read_rows(self, at: int) -> Rows:
        """A group of rows, as the file has them."""
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
