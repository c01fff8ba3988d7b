# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory kept in a Parquet file: a row an extent. docs/parquet.md has the columns.

pandas, polars and DuckDB open it as it is; who took it, of what and when is in its metadata.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import invocation, resource_limits
from physview.errors import PhysviewError
from physview.extras import need
from physview.kpage import FLAG_NAMES, flag_names
from physview.machine import RAM, Resource, boot_id, read_resources
from physview.model import (
    MIN_SPECIAL_SWAP_TYPE,
    NO_ENTRY,
    PAGE_SIZE,
    PM_PFRAME_MASK,
    SWAP_TYPE_BITS,
    PagemapEntry,
    Vma,
)
from physview.quoting import escaped
from physview.rows import BASE_DTYPE, COLUMNS
from physview.wholefile import whole_file

if TYPE_CHECKING:
    from physview.rows import Rows
    from physview.snapshot import Snapshot

KEY = b"physview"
FORMAT = 1
# Rows in a group of the file: what is written or read at a time, and so what it takes of memory.
ROWS_IN_GROUP = 1 << 14

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
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Written:
    """Keep a process's memory in a file, written whole or not at all, readable to its owner only.

    Args:
        snapshot: The process.
        path: The file.
        columns: Names of COLUMNS; each costs a reading of every frame. None is read where frame
            numbers are hidden.
        overwrite: Whether to replace a file of this name.
        on_progress: Told how many pages are written, and how many there are about.

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
        on_progress=on_progress,
    )


def write_rows(
    snapshot: Snapshot,
    batches: Iterable[Rows],
    path: str,
    *,
    columns: Sequence[str],
    overwrite: bool = False,
    complete: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Written:
    """As `write_snapshot()`, of rows that were read before.

    Args:
        snapshot: The process they are of.
        batches: What its `iter_extents()` yields, also filtered or expanded.
        path: The file.
        columns: What the rows have besides the base.
        overwrite: Whether to replace a file of this name.
        complete: Whether the rows are all there are: only then can the file be compared.
        on_progress: As there.
    """
    what = f"cannot write {path}"
    arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
    fields = [*FIELDS, *(field for name in columns for field in MORE_FIELDS[name])]
    about = json.dumps(_about(snapshot, columns, complete=complete)).encode()
    schema = arrow.schema([_field(arrow, *field) for field in fields], {KEY: about})
    nr_extents, nr_pages, nr_resident = 0, 0, snapshot.nr_resident
    with whole_file(path, overwrite=overwrite) as file:
        tables = _Tables(arrow, schema, snapshot.vmas)
        words = [name for name, kind, *_ in fields if kind == "dictionary"]
        with parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=words, write_page_checksum=True
        ) as writer:
            for rows in _grouped(batches):
                writer.write_table(tables.table(rows))
                nr_extents += len(rows)
                nr_pages += int(rows["nr_pages"].sum())
                if on_progress:
                    on_progress(nr_pages, nr_resident)
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


def _about(snapshot: Snapshot, columns: Sequence[str], *, complete: bool) -> dict[str, Any]:
    """The metadata: what these rows are of."""
    from physview import __version__

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
    except OSError:  # a container may have no iomem
        return None
    return [each for each in found if each.depth == 0 or each.name.startswith(RAM)]


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


class _Tables:
    """Makes tables of Arrow of rows."""

    def __init__(self, arrow: Any, schema: Any, vmas: Sequence[Vma]) -> None:
        self._arrow = arrow
        self._schema = schema
        self._perms = _Words(arrow, [vma.perms for vma in vmas])
        self._paths = _Words(arrow, [escaped(vma.path) for vma in vmas])
        self._cgroups: dict[int, str] | None = None

    def table(self, rows: Rows) -> Any:
        """All columns of the schema."""
        import numpy as np

        arrow, none = self._arrow, np.uint64(NO_ENTRY)
        no_swap = rows["swap"] == none
        slots = np.where(no_swap, 0, rows["swap"])
        columns = {
            "vaddr": rows["vaddr"],
            "nr_pages": rows["nr_pages"],
            "pfn": _or_null(arrow, rows["pfn"]),
            "cause": self._causes(rows),
            "swap_type": arrow.array(
                (slots & np.uint64((1 << SWAP_TYPE_BITS) - 1)).astype(np.uint8), mask=no_swap
            ),
            "swap_offset": arrow.array(slots >> np.uint64(SWAP_TYPE_BITS), mask=no_swap),
            "entry": rows["entry"],
            "mapping": rows["vma"],
            "perms": self._perms.of(rows["vma"]),
            "path": self._paths.of(rows["vma"]),
        }
        names = rows.dtype.names or ()
        if "flags" in names:
            columns["flags"] = _or_null(arrow, rows["flags"])
            columns["flag_names"] = self._words_of(rows["flags"], _flag_words)
        if "mapcount" in names:
            columns["mapcount"] = _or_null(arrow, rows["mapcount"])
        if "cgroup" in names:
            columns["cgroup"] = self._words_of(rows["cgroup"], self._cgroup)
        if "node" in names:
            columns["node"] = arrow.array(rows["node"], mask=rows["node"] < 0)
        return arrow.table(columns, schema=self._schema)

    def _words_of(self, values: Any, word: Any) -> Any:
        """A column of words: `word` of each different value."""
        import numpy as np

        different, codes = np.unique(values, return_inverse=True)
        words = [word(int(value)) for value in different]
        return _Words(self._arrow, words).of(codes)

    def _causes(self, rows: Rows) -> Any:
        """What is hidden or nowhere, by the bits of the entry that say so."""
        import numpy as np

        entries = rows["entry"].copy()
        # Of a swap entry the slot tells nothing, but for the special types'.
        swap_type = entries & np.uint64((1 << SWAP_TYPE_BITS) - 1)
        in_area = (rows["swap"] != np.uint64(NO_ENTRY)) & (swap_type < MIN_SPECIAL_SWAP_TYPE)
        keep = np.uint64(NO_ENTRY ^ PM_PFRAME_MASK)
        entries[in_area] &= keep
        entries[in_area] |= np.uint64(1 << SWAP_TYPE_BITS)
        known = rows["pfn"] != np.uint64(NO_ENTRY)
        entries[known] &= keep
        entries[known] |= np.uint64(1)
        return self._words_of(entries, _cause_word)

    def _cgroup(self, inode: int) -> str | None:
        from physview.topology import cgroup_paths

        if inode in (NO_ENTRY, 0):  # 0: charged to none
            return None
        if self._cgroups is None:
            self._cgroups = cgroup_paths()
        return escaped(self._cgroups.get(inode, f"@{inode}"))


class _Words:
    """Words of which many rows have one, by an index; None is null."""

    def __init__(self, arrow: Any, words: Sequence[str | None]) -> None:
        import numpy as np

        different = {word: at for at, word in enumerate(dict.fromkeys(words))}
        self._arrow = arrow
        self._codes = np.array([different[word] for word in words], dtype=np.int32)
        self._null = different.get(None, -1)
        self._values = arrow.array([word or "" for word in different], arrow.string())

    def of(self, rows: Any) -> Any:
        """The column of rows that name these words by their index."""
        codes = self._codes[rows]
        return self._arrow.DictionaryArray.from_arrays(
            self._arrow.array(codes, mask=codes == self._null), self._values
        )


def _or_null(arrow: Any, values: Any) -> Any:
    return arrow.array(values, mask=values == NO_ENTRY)


def _flag_words(value: int) -> str | None:
    return None if value == NO_ENTRY else "|".join(flag_names(value))


def _cause_word(entry: int) -> str | None:
    cause = PagemapEntry(entry).cause
    return cause.value if cause else None


class SnapshotFile:
    """A snapshot that was kept. A context manager.

    Args:
        path: The file.

    Attributes:
        about: The metadata: host, boot_id, kernel, time, pid, start_time_ticks, comm and more.
        vmas: The mappings, in address order.
        resources: What lay at which physical address, as `machine.read_resources()`, outermost and
            RAM only; None if that was hidden, or if an earlier physview wrote the file.
        columns: What rows have besides the base: of "flags", "mapcount" and "node".

    Raises:
        PhysviewError: It is no snapshot, damaged, or of a later format.
        Unsupported: pyarrow is not installed.
    """

    def __init__(self, path: str) -> None:
        what = f"cannot read {path}"
        arrow, parquet = need("pyarrow", what), need("pyarrow.parquet", what)
        self.path = path
        try:
            # Opened here: pyarrow takes names for UTF-8, whatever the locale says.
            self._opened = open(path, "rb")  # noqa: SIM115 - close() closes it
        except OSError as error:
            told = resource_limits.reached(error) or (os.strerror(error.errno or 0), "")
            raise PhysviewError(what, *told, path=path) from None
        try:
            self._file = parquet.ParquetFile(self._opened, page_checksum_verification=True)
        except (arrow.ArrowException, OSError, ImportError, MemoryError) as error:
            self._opened.close()
            limit = resource_limits.reached(error)
            if limit:
                raise PhysviewError(what, *limit, path=path) from None
            if isinstance(error, ImportError | MemoryError):
                raise
            # Of a file's contents pyarrow complains by OSError, too, then without errno.
            if isinstance(error, OSError) and error.errno:
                raise PhysviewError(what, os.strerror(error.errno), path=path) from None
            why = _first_line(error)
            raise PhysviewError(what, f"it is no Parquet file, or damaged ({why})") from None
        try:
            self.about: dict[str, Any] = self._read_metadata(what)
            self.vmas = [Vma(*members) for members in self.about["mappings"]]
            resources = self.about.get("resources")
            self.resources: list[Resource] | None = resources and [
                Resource(*members) for members in resources
            ]
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise PhysviewError(what, f"its metadata are damaged ({_first_line(error)})") from None
        except PhysviewError:
            self.close()
            raise
        stored = set(self._file.schema_arrow.names)
        self.columns = [name for name in COLUMNS if name in stored and name != "cgroup"]

    def _read_metadata(self, what: str) -> dict[str, Any]:
        metadata = (self._file.schema_arrow.metadata or {}).get(KEY)
        if metadata is None:
            why = "it is a Parquet file, but no snapshot of physview's"
            remedy = f"{invocation.physview('snapshot PID -o FILE')} makes one"
            raise PhysviewError(what, why, remedy)
        about: dict[str, Any] = json.loads(metadata)
        if about["format"] > FORMAT:
            why = f"its format is {about['format']}, and this physview knows {FORMAT}"
            raise PhysviewError(what, why, f"take physview {about['physview']} or later")
        return about

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
        return int(self._file.metadata.num_rows)

    @functools.cached_property
    def time(self) -> datetime.datetime:
        """When it was taken, with its time zone."""
        return datetime.datetime.fromisoformat(self.about["time"])

    def close(self) -> None:
        """Close the file. Closing twice is harmless."""
        self._file.close()
        self._opened.close()

    def __enter__(self) -> SnapshotFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def iter_extents(self) -> Iterator[Rows]:
        """As `Snapshot.iter_extents()`, of all that was kept.

        Yields:
            Structured arrays of BASE_DTYPE and the columns that there are, in address order.

        Raises:
            PhysviewError: The file is damaged.
        """
        import numpy as np

        dtype = [*BASE_DTYPE, *((name, COLUMNS[name]) for name in self.columns)]
        stored = [*(name for name, _ in BASE_DTYPE if name not in ("swap", "vma"))]
        names = [*stored, "mapping", "swap_type", "swap_offset", *self.columns]
        arrow = need("pyarrow", f"cannot read {self.path}")
        try:
            # Group by group: iter_batches() would keep what it has read of all of them.
            for at in range(self._file.num_row_groups):
                batch = self._file.read_row_group(at, columns=names, use_threads=False)
                rows = np.empty(len(batch), dtype=dtype)
                for name in [*stored, *self.columns]:
                    none = -1 if name == "node" else NO_ENTRY
                    rows[name] = batch[name].fill_null(none).to_numpy()
                rows["vma"] = batch["mapping"].to_numpy()
                slot = batch["swap_offset"].fill_null(0).to_numpy() << np.uint64(SWAP_TYPE_BITS)
                slot |= batch["swap_type"].fill_null(0).to_numpy()
                is_swap = batch["swap_offset"].is_valid().to_numpy()
                rows["swap"] = np.where(is_swap, slot, np.uint64(NO_ENTRY))
                yield rows
        except (arrow.ArrowException, OSError, ImportError, MemoryError) as error:
            limit = resource_limits.reached(error)
            if limit:
                raise PhysviewError(f"cannot read {self.path}", *limit) from None
            if isinstance(error, ImportError | MemoryError):
                raise
            why = _first_line(error)
            raise PhysviewError(f"cannot read {self.path}", f"it is damaged ({why})") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
