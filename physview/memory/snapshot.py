# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a process's memory as columns of NumPy, in batches of bounded size.

Source: /proc/PID/pagemap, PAGEMAP_SCAN, /proc/kpageflags, /proc/kpagecount, /proc/kpagecgroup
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from physview.errors import UsageError
from physview.files.descriptor import Closable
from physview.memory.extents import ExtentReader
from physview.memory.rows import BASE_DTYPE, COLUMNS, from_extents, iter_chunks, join
from physview.model import NO_ENTRY, PAGE_SIZE, Vma
from physview.sources.kpage import FILES, FRAMES_DTYPE, KpageFile
from physview.sources.numa import NO_NODE, node_map
from physview.sources.page_flags import IDLE, FlagFilter, expanded, well_known_array
from physview.sources.procfs import ProcDir
from physview.text.nearest import offer

if TYPE_CHECKING:
    from physview.memory.rows import Rows


class Snapshot(Closable):
    """A process whose memory can be read as columns. A context manager.

    The process runs while it is read. So the result is not atomic: two pages may have been read at
    different moments.

    Args:
        pid: Process id, or "self" for this process.
        use_scan: Whether to use PAGEMAP_SCAN (Linux 6.7); None uses it if the kernel has it.
        source: Who tells the pages: "pagemap", "bpf" (a BPF program walks the page tables), or
            "auto": BPF if it is available and faster. All give the same rows if `frames_only` is
            set.
        frames_only: Whether the column entry has only the bits that all sources know: present,
            swap, guard, and the frame number or swap slot. Rows are then not split where only other
            bits differ. It is always so unless `source` is "pagemap".

    Raises:
        UsageError: There is no such source.
        ProcessGone: There is no such process.
        AccessDenied: The process belongs to another user.
        NoUserMemory: The process is a kernel thread or a zombie.
        Unsupported: The kernel has no pagemap.
        CoreUnavailable: The core is not built.
        PhysviewError: `source` is "bpf", which is not available, with the cause and a remedy.

    >>> with Snapshot("self") as snapshot:
    ...     nr_pages = sum(int(rows["nr_pages"].sum()) for rows in snapshot.iter_extents())
    >>> nr_pages > 100
    True
    """

    def __init__(
        self,
        pid: int | str = "self",
        *,
        use_scan: bool | None = None,
        source: str = "pagemap",
        frames_only: bool = False,
        with_mappings: bool = True,
    ) -> None:
        self.proc = ProcDir(pid)
        try:
            self.reader = ExtentReader(
                self.proc,
                use_scan=use_scan,
                source=source,
                frames_only=frames_only,
                with_mappings=with_mappings,
            )
        except BaseException:
            self.proc.close()
            raise

    def __repr__(self) -> str:
        return f"<Snapshot of process {self.pid}, from {self.source}: {len(self.vmas)} mappings>"

    @property
    def pid(self) -> int:
        """Process id."""
        return self.proc.pid

    @property
    def source(self) -> str:
        """Who tells the pages: "pagemap" or "bpf"."""
        return self.reader.source

    @property
    def vmas(self) -> Sequence[Vma]:
        """The mappings in address order, as they were when the Snapshot was made."""
        return self.reader.memory.vmas

    @property
    def knows_frames(self) -> bool:
        """Whether the kernel shows frame numbers to this user, which requires CAP_SYS_ADMIN."""
        return self.reader.zero_pfn != 0

    @property
    def nr_resident(self) -> int:
        """The approximate number of resident pages: the kernel's own count at this moment."""
        return self.proc.nr_resident()

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self.reader.close()
        self.proc.close()

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
        """Read the pages and swap entries of a range as extents.

        The frames in an extent are contiguous, and so are the swap slots; only zero pages all have
        the same frame. No extent crosses the border of a mapping. All pages of an extent have the
        same values in the requested columns.

        Args:
            start: First address, page-aligned.
            end: First address after the range, page-aligned; None is the end of user space.
            columns: Names of COLUMNS. Each costs one more read for every frame.
            where: Yield only pages with these flags. If the filter names a flag of pagemap, such as
                soft_dirty or swap, these can be pages without a frame, too.
            raw: Keep all flags of kpageflags. Without it, idle and the flags that page-types hides
                are cleared. They are also kept if `where` names one of them.
            nr_threads: The number of threads that read pagemap; None chooses it by the number of
                resident pages.

        Yields:
            Structured arrays, shape (n,), of BASE_DTYPE and the columns, in address order.

        Raises:
            UsageError: There is no such column; or `where` names a flag of pagemap, and this
                Snapshot has `frames_only`.
            AccessDenied: Only root may read flags, mapcount and cgroup.
            Unsupported: The kernel lacks the file that a column needs.
            ProcessGone: The process ended, or ran another program, while it was read.
        """
        wanted = list(dict.fromkeys(columns))
        for name in wanted:
            if name not in COLUMNS:
                raise UsageError(f"no column '{name}'", "", offer(name, COLUMNS))
        if where is not None:
            raw |= where.names_hidden
            self._check_filter(where)
            if where.needs_frames and "flags" not in wanted:
                wanted.append("flags")
        columns_of_frames = _FrameColumns(wanted, self.reader.zero_pfn, raw=raw)
        extents = self.reader.iter_extents(start, end, nr_threads=nr_threads)
        return self._iter_rows(extents, columns_of_frames, where)

    def _check_filter(self, where: FlagFilter) -> None:
        if where.names_pagemap and self.reader.frames_only:
            raise UsageError(
                "cannot choose pages by flags of pagemap",
                "the entries were read without these flags",
                "use the source pagemap, and not frames_only",
            )

    def _iter_rows(
        self, extents: Iterator[Any], columns: _FrameColumns, where: FlagFilter | None
    ) -> Iterator[Rows]:
        import numpy as np

        spans = np.array([vma[:2] for vma in self.vmas], dtype=np.uint64)
        held = None
        try:
            for chunk in iter_chunks(extents, self.reader.zero_pfn):
                rows = columns.fill(from_extents(chunk, spans, columns.dtype))
                if where is not None:
                    rows = rows[_chosen(rows, where)]
                if held is not None:
                    rows = np.concatenate([held, rows])
                rows = join(rows, self.reader.zero_pfn)
                held = rows[-1:]
                if len(rows) > 1:
                    yield rows[:-1]
            if held is not None and len(held):
                yield held
        finally:
            columns.close()


def _chosen(rows: Rows, where: FlagFilter) -> Any:
    """Which rows a filter chooses: bool array, shape of `rows`."""
    import numpy as np

    has_flags = "flags" in (rows.dtype.names or ())
    flags = rows["flags"] if has_flags else np.zeros(len(rows), dtype=np.uint64)
    if where.names_hidden:
        chosen = where.matches(expanded(flags, rows["entry"]))
    else:
        chosen = where.matches(flags)
    return chosen if where.names_pagemap else chosen & (flags != np.uint64(NO_ENTRY))


class _FrameColumns(Closable):
    """Fills the optional columns of rows, and splits rows where a value changes."""

    def __init__(self, columns: list[str], zero_pfn: int, *, raw: bool) -> None:
        self.dtype = [*BASE_DTYPE, *((name, COLUMNS[name]) for name in columns)]
        self._zero_pfn = zero_pfn
        self._raw = raw
        self._nodes = node_map() if "node" in columns else None
        self._files: dict[str, KpageFile] = {}
        try:
            for name in columns:
                if name in FILES:
                    self._files[name] = KpageFile(FILES[name])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def fill(self, rows: Rows) -> Rows:
        for name, file in self._files.items():
            rows = self._split_by_value(rows, name, file)
            if name == "flags" and not self._raw:
                self._hide_internal(rows)
            rows = join(rows, self._zero_pfn)
        if self._nodes:
            rows = self._split_by_node(rows)
        return rows

    def _hide_internal(self, rows: Rows) -> None:
        import numpy as np

        known = rows["flags"] != np.uint64(NO_ENTRY)
        # idle is stale unless page_idle/bitmap was read just before. It would only split extents.
        rows["flags"][known] = well_known_array(rows["flags"][known]) & ~np.uint64(IDLE)

    def _split_by_value(self, rows: Rows, name: str, file: KpageFile) -> Rows:
        """Fill a column from one of the kpage files, and split rows where its value changes."""
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
        # The number of each piece within its row.
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
        return join(split, self._zero_pfn)
