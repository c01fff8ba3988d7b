# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory as columns of NumPy, in batches of constant size, however large it is.

Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags, /proc/kpagecount, /proc/kpagecgroup
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from physview.errors import UsageError
from physview.extents import ExtentReader
from physview.flags import FlagFilter, well_known_array
from physview.kpage import FLAG_BITS, FRAMES_DTYPE, KpageFile
from physview.model import (
    NO_ENTRY,
    PAGE_SIZE,
    PM_GUARD_REGION,
    PM_PFRAME_MASK,
    PM_PRESENT,
    PM_SWAP,
    PTE_MARKER_SWAP_TYPE,
    SWAP_TYPE_BITS,
    Vma,
)
from physview.procfs import ProcDir
from physview.topology import NO_NODE, node_map

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.void]

BASE_DTYPE = [
    ("vaddr", "u8"),
    ("nr_pages", "u8"),
    ("entry", "u8"),
    ("pfn", "u8"),
    ("swap", "u8"),
    ("vma", "u4"),
]
"""What every row has.

vaddr: of the first page. nr_pages: base pages in the row. entry: pagemap's of the first page.
pfn: the first page's frame; NO_ENTRY where there is none or it is hidden. swap: type in bits 0 to
4, offset above; NO_ENTRY where it is no swap entry. vma: index in `Snapshot.vmas`.
"""

COLUMNS = {"flags": "u8", "mapcount": "u8", "cgroup": "u8", "node": "i4"}
"""What can be asked for besides, the same for all pages of a row; NO_ENTRY, and node -1, where
there is no frame. cgroup is an inode number, see `topology.cgroup_paths()`."""

KPAGE_FILES = {"flags": "kpageflags", "mapcount": "kpagecount", "cgroup": "kpagecgroup"}
# How many pages are looked up at once: what this takes of memory is the most that a batch takes.
CHUNK_PAGES = 1 << 16


class Snapshot:
    """A process whose memory is read as columns. A context manager.

    The process runs on: what is said of one page was true at one moment, of two at two.

    Args:
        pid: Process id, or "self".
        use_scan: Whether to use PAGEMAP_SCAN (Linux 6.7); None does where there is one.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: It is another user's.
        NoUserMemory: It is a kernel thread or a zombie.
        Unsupported: The kernel has no pagemap.
        CoreUnavailable: The core is not built.

    >>> with Snapshot("self") as snapshot:
    ...     nr_pages = sum(int(rows["nr_pages"].sum()) for rows in snapshot.iter_extents())
    >>> nr_pages > 100
    True
    """

    def __init__(self, pid: int | str = "self", *, use_scan: bool | None = None) -> None:
        if isinstance(pid, str) and pid != "self":
            raise UsageError(f"'{pid}' is no process", 'a pid or "self" is meant')
        self.proc = ProcDir(None if isinstance(pid, str) else pid)
        try:
            self.reader = ExtentReader(self.proc, use_scan=use_scan)
        except BaseException:
            self.proc.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self.proc.pid

    @property
    def vmas(self) -> Sequence[Vma]:
        """The mappings, in address order, as they were when this was made."""
        return self.reader.memory.vmas

    @property
    def knows_frames(self) -> bool:
        """Whether frame numbers are shown to us: that takes CAP_SYS_ADMIN."""
        return self.reader.zero_pfn != 0

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self.reader.close()
        self.proc.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def iter_extents(
        self,
        start: int = 0,
        end: int | None = None,
        *,
        columns: Iterable[str] = (),
        where: FlagFilter | None = None,
        raw: bool = False,
        nr_threads: int | None = None,
    ) -> Iterator[Rows]:
        """Read the pages and swap entries of a range as extents: pages alike, in a row.

        Frames follow each other in an extent, and so do swap slots, but for zero pages, of which
        each has the same frame. No extent lies in two mappings, and all its pages have the same in
        the columns that are asked for.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned; None is the end of user memory.
            columns: Names of COLUMNS; each costs a reading of every frame.
            where: Only frames with these flags.
            raw: Give all flags; without it those that page-types hides are 0, and idle.
            nr_threads: How many threads read pagemap; None chooses by how much is resident.

        Yields:
            Structured arrays, shape (n,), of BASE_DTYPE and the columns, in address order.

        Raises:
            UsageError: There is no such column.
            AccessDenied: flags, mapcount and cgroup are root's to see.
            Unsupported: The kernel has no such file.
            ProcessGone: The process ended or ran another program meanwhile.
        """
        wanted = list(dict.fromkeys(columns))
        for name in wanted:
            if name not in COLUMNS:
                raise UsageError(f"no column '{name}'", "", f"choose of {', '.join(COLUMNS)}")
        if where is not None and "flags" not in wanted:
            wanted.append("flags")
        looker = _Looker(wanted, self.reader.zero_pfn, raw=raw)
        extents = self.reader.iter_extents(start, end, nr_threads=nr_threads)
        return self._iter_rows(extents, looker, where)

    def _iter_rows(
        self, extents: Iterator[Any], looker: _Looker, where: FlagFilter | None
    ) -> Iterator[Rows]:
        import numpy as np

        spans = np.array([vma[:2] for vma in self.vmas], dtype=np.uint64)
        held = None
        try:
            for chunk in _iter_chunks(extents):
                rows = looker.look_up(self._base_rows(chunk, spans, looker.dtype))
                if where is not None:
                    chosen = where.matches(rows["flags"]) & (rows["flags"] != np.uint64(NO_ENTRY))
                    rows = rows[chosen]
                if held is not None:
                    rows = np.concatenate([held, rows])
                rows = _join(rows, self.reader.zero_pfn)
                held = rows[-1:]
                if len(rows) > 1:
                    yield rows[:-1]
            if held is not None and len(held):
                yield held
        finally:
            looker.close()

    def _base_rows(self, extents: Any, spans: Any, dtype: list[tuple[str, str]]) -> Rows:
        import numpy as np

        vma = np.searchsorted(spans[:, 0], extents["vaddr"], side="right") - 1
        inside = (vma >= 0) & (extents["vaddr"] < spans[vma, 1])
        if not inside.all():  # mapped since the mappings were read
            extents, vma = extents[inside], vma[inside]
        rows = np.empty(len(extents), dtype=dtype)
        for name in ("vaddr", "nr_pages", "entry"):
            rows[name] = extents[name]
        entries = extents["entry"]
        value = entries & np.uint64(PM_PFRAME_MASK)
        present = entries & np.uint64(PM_PRESENT) != 0
        none = np.uint64(NO_ENTRY)
        is_swap = ~present & (value != 0) & (entries & np.uint64(PM_GUARD_REGION) == 0)
        rows["pfn"] = np.where(present & (value != 0), value, none)
        rows["swap"] = np.where(is_swap & (entries & np.uint64(PM_SWAP) != 0), value, none)
        rows["vma"] = vma
        return rows


def _iter_chunks(batches: Iterable[Any]) -> Iterator[Any]:
    """Split batches of extents so that none has more pages than CHUNK_PAGES."""
    import numpy as np

    for batch in batches:
        if int(batch["nr_pages"].sum()) <= CHUNK_PAGES:
            yield batch
            continue
        pages = batch["nr_pages"].astype(np.int64)
        ends = np.cumsum(pages)
        at, first = 0, 0  # the extent, and its first page that is not yet given
        while at < len(batch):
            done = int(ends[at] - pages[at]) + first
            last = int(np.searchsorted(ends, done + CHUNK_PAGES))
            piece = batch[at : last + 1].copy()
            if last < len(batch):
                over = int(ends[last]) - done - CHUNK_PAGES
                piece["nr_pages"][-1] -= np.uint64(over)
            _skip(piece[:1], first)
            nr_last = int(piece["nr_pages"][-1])
            first, at = (nr_last + (first if last == at else 0), last)
            if at < len(batch) and first == pages[at]:
                at, first = at + 1, 0
            yield piece


def _skip(row: Any, nr_pages: int) -> None:
    """Take pages away from the front of the one extent in `row`."""
    import numpy as np

    from physview.extents import find_zero_pfn, step_of

    if nr_pages:
        step = np.uint64(nr_pages * step_of(int(row["entry"][0]), find_zero_pfn()))
        row["vaddr"] += np.uint64(nr_pages * PAGE_SIZE)
        row["entry"] += step
        for name in {"pfn", "swap"} & set(row.dtype.names):
            if row[name][0] != np.uint64(NO_ENTRY):
                row[name] += step
        row["nr_pages"] -= np.uint64(nr_pages)


def _steps(rows: Rows, zero_pfn: int) -> npt.NDArray[np.uint64]:
    """As `extents.step_of()`, of each row."""
    import numpy as np

    value = rows["entry"] & np.uint64(PM_PFRAME_MASK)
    present = rows["entry"] & np.uint64(PM_PRESENT) != 0
    guard = rows["entry"] & np.uint64(PM_GUARD_REGION) != 0
    marker = value & np.uint64((1 << SWAP_TYPE_BITS) - 1) == PTE_MARKER_SWAP_TYPE
    alike = (value == 0) | np.where(present, value == zero_pfn, guard | marker)
    return np.where(alike, 0, np.where(present, 1, 1 << SWAP_TYPE_BITS)).astype(np.uint64)


def _join(rows: Rows, zero_pfn: int) -> Rows:
    """Make one of rows that go on in each other."""
    import numpy as np

    if len(rows) < 2:
        return rows
    nr_pages = rows["nr_pages"]
    goes_on = rows["vaddr"][1:] == (rows["vaddr"] + nr_pages * np.uint64(PAGE_SIZE))[:-1]
    goes_on &= rows["entry"][1:] == (rows["entry"] + nr_pages * _steps(rows, zero_pfn))[:-1]
    for name in {"vma", *COLUMNS} & set(rows.dtype.names or ()):
        goes_on &= rows[name][1:] == rows[name][:-1]
    if not goes_on.any():
        return rows
    firsts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    joined = rows[firsts]
    joined["nr_pages"] = np.add.reduceat(nr_pages, firsts)
    return joined


class _Looker:
    """Adds columns to rows."""

    def __init__(self, columns: list[str], zero_pfn: int, *, raw: bool) -> None:
        self.dtype = [*BASE_DTYPE, *((name, COLUMNS[name]) for name in columns)]
        self._zero_pfn = zero_pfn
        self._raw = raw
        self._nodes = node_map() if "node" in columns else None
        self._files: dict[str, KpageFile] = {}
        try:
            for name in columns:
                if name in KPAGE_FILES:
                    self._files[name] = KpageFile(KPAGE_FILES[name])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def look_up(self, rows: Rows) -> Rows:
        for name, file in self._files.items():
            rows = self._split(rows, name, file)
            if name == "flags" and not self._raw:
                self._hide_internal(rows)
            rows = _join(rows, self._zero_pfn)
        if self._nodes:
            rows = self._split_by_node(rows)
        return rows

    def _hide_internal(self, rows: Rows) -> None:
        import numpy as np

        known = rows["flags"] != np.uint64(NO_ENTRY)
        # idle is old news unless page_idle/bitmap was read just before, and tears extents apart.
        idle = np.uint64(1 << FLAG_BITS["idle"])
        rows["flags"][known] = well_known_array(rows["flags"][known]) & ~idle

    def _split(self, rows: Rows, name: str, file: KpageFile) -> Rows:
        """Set a column of one of the kpage files, and split rows where its value changes."""
        import numpy as np

        rows[name] = np.uint64(NO_ENTRY)
        known = np.flatnonzero(rows["pfn"] != np.uint64(NO_ENTRY))
        if not len(known):
            return rows
        frames = np.empty(len(known), dtype=FRAMES_DTYPE)
        frames["pfn"] = rows["pfn"][known]
        is_zero = frames["pfn"] == self._zero_pfn
        frames["nr"] = np.where(is_zero, 1, rows["nr_pages"][known])
        pieces = file.split(frames)
        split = rows[known[pieces["run"].astype(np.intp)]]
        offset = pieces["pfn"] - split["pfn"]
        split["vaddr"] += offset * np.uint64(PAGE_SIZE)
        split["entry"] += offset
        split["pfn"] = pieces["pfn"]
        one_frame = split["pfn"] == self._zero_pfn
        split["nr_pages"] = np.where(one_frame, split["nr_pages"], pieces["nr"])
        split[name] = pieces["value"]
        if len(known) < len(rows):
            split = np.concatenate([split, rows[rows["pfn"] == np.uint64(NO_ENTRY)]])
        in_order: Rows = split[np.argsort(split["vaddr"])]
        return in_order

    def _split_by_node(self, rows: Rows) -> Rows:
        import numpy as np

        assert self._nodes
        table = np.frombuffer(self._nodes.node_of_block + bytes([NO_NODE]), dtype=np.uint8)
        shift = np.uint64(self._nodes.block_shift)
        known = rows["pfn"] != np.uint64(NO_ENTRY)
        known &= rows["pfn"] != self._zero_pfn
        last = rows["pfn"] + np.where(known, rows["nr_pages"] - np.uint64(1), 0).astype(np.uint64)
        nr_blocks = ((last >> shift) - (rows["pfn"] >> shift) + np.uint64(1)).astype(np.int64)
        split = np.repeat(rows, nr_blocks)
        # Of each piece, its number within its row.
        number = np.arange(len(split)) - np.repeat(np.cumsum(nr_blocks) - nr_blocks, nr_blocks)
        block = (split["pfn"] >> shift) + number.astype(np.uint64)
        begin = np.where(number > 0, (block << shift) - split["pfn"], 0).astype(np.uint64)
        end = np.minimum(split["nr_pages"], ((block + np.uint64(1)) << shift) - split["pfn"])
        whole = np.repeat(nr_blocks == 1, nr_blocks)
        split["nr_pages"] = np.where(whole, split["nr_pages"], end - begin)
        split["vaddr"] += begin * np.uint64(PAGE_SIZE)
        split["entry"] += begin
        has_frame = split["pfn"] != np.uint64(NO_ENTRY)
        node = table[np.minimum(block, np.uint64(len(table) - 1)).astype(np.intp)].astype(np.int32)
        split["node"] = np.where(has_frame & (node != NO_NODE), node, -1)
        split["pfn"] = np.where(has_frame, split["pfn"] + begin, split["pfn"])
        return _join(split, self._zero_pfn)


def iter_each(rows: Rows) -> Iterator[Rows]:
    """Expand extents to pages.

    Args:
        rows: What `Snapshot.iter_extents()` yields.

    Yields:
        Arrays of the same type with nr_pages 1, of up to CHUNK_PAGES.
    """
    import numpy as np

    from physview.extents import find_zero_pfn

    for chunk in _iter_chunks([rows]):
        nr_pages = chunk["nr_pages"].astype(np.int64)
        pages = np.repeat(chunk, nr_pages)
        ends = np.cumsum(nr_pages)
        number = (np.arange(len(pages)) - np.repeat(ends - nr_pages, nr_pages)).astype(np.uint64)
        steps = number * _steps(pages, find_zero_pfn())
        none = np.uint64(NO_ENTRY)
        pages["vaddr"] += number * np.uint64(PAGE_SIZE)
        pages["entry"] += steps
        for name in ("pfn", "swap"):
            pages[name] = np.where(pages[name] == none, none, pages[name] + steps)
        pages["nr_pages"] = 1
        yield pages
