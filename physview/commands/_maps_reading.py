# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads for `maps` what its columns need, and no more."""

from __future__ import annotations

import argparse
import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from physview.analysis.smaps_chunk import SmapsChunk, read_rollup
from physview.analysis.usage import Usage
from physview.errors import AccessDenied, PhysviewError, UsageError
from physview.files.descriptor import Closable
from physview.model import PAGE_SIZE
from physview.reporters import maps_columns as columns_of
from physview.reporters.maps import MapsTable, default_columns
from physview.reporters.maps_columns import MapsColumn, is_needed
from physview.reporters.maps_rows import Selection
from physview.sources.mappings import MappingReader
from physview.sources.numa import has_hinted_huge_pages
from physview.sources.procfs import ProcDir
from physview.text import proctext

if TYPE_CHECKING:
    from physview.analysis.usage_chunk import UsageChunk
    from physview.analysis.usage_reader import UsageReader
    from physview.reporters.maps_records import MapsDocument, MapsRecords

# A smaller difference is one of counts a moment apart, and of counters for each CPU.
MIN_HINTED_BYTES = 4 << 20

ARROW_TYPES = {"size": "uint64", "count": "uint64", "share": "float64", "text": "string"}


class MapsReading(Closable):
    """Reads processes and reports them. A context manager.

    Args:
        args: The options of `maps`.

    Raises:
        UsageError: There is no such column.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._selection = Selection.parse(args.name, args.sort, args.top)
        self._columns, self._fixed = self._choose_columns()
        needed = [*self._columns, *filter(None, [self._selection.sort])]
        if args.rollup:
            _refuse_columns_of_mappings(needed)
        elif any(column.name == "tables" for column in needed):
            why = "page tables are counted per process"
            raise UsageError("the column tables needs --rollup", why, "add that")
        is_old_document = args.json and args.columns is None
        self._with_frames = is_old_document or args.frames or is_needed(needed, columns_of.FRAMES)
        self._with_smaps = is_needed(needed, columns_of.SMAPS)
        either = is_needed(needed, columns_of.EITHER)
        self._file = "smaps" if self._with_smaps or either else "maps"
        self._with_tables = any(column.name == "tables" for column in needed)
        self._stack = contextlib.ExitStack()
        self._reader: UsageReader | None = None
        if self._with_frames:
            from physview.analysis.usage_reader import UsageReader

            self._reader = self._stack.enter_context(UsageReader())
        self._write: Any = None
        self.hidden = False
        self.nr_shown = 0

    def _choose_columns(self) -> tuple[list[MapsColumn], bool]:
        """The columns, and whether they are shown on a narrow terminal, too."""
        args = self._args
        default = default_columns(rollup=args.rollup, frames=args.frames)
        if args.format and not args.rollup:
            names = ("pid", "command", "start", "end", "perm", "offset", "dev", "inode")
            first = [columns_of.BY_NAME[name] for name in names]
            default = [*first, *default[2:]]
        if args.columns is None:
            return default, False
        chosen, adds = columns_of.parse_columns(args.columns, default)
        if not adds:
            return chosen, True
        # What is asked for is shown, however narrow the terminal is.
        return [
            column if column in default else column._replace(rank=0) for column in chosen
        ], False

    @property
    def why_no_flags(self) -> AccessDenied | None:
        """Why large folios are not known."""
        return self._reader.why_no_flags if self._reader else None

    @property
    def nr_unsearched(self) -> int:
        """Mappings in which zero pages were not looked for."""
        return self._reader.nr_unsearched if self._reader else 0

    def close(self) -> None:
        """Close all files. Closing twice is harmless."""
        self._stack.close()

    def begin(self, *, several: bool) -> None:
        """Begin a report."""
        args = self._args
        self._about: dict[str, Any] = {}
        self._total = Usage()
        self.nr_shown = 0
        self.hinted_bytes = 0
        self._may_be_hinted = not self._with_frames and has_hinted_huge_pages()
        if args.every is not None:
            now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._about["time"] = now
        self._report = self._make_report(several=several)

    def _make_report(self, *, several: bool) -> MapsTable | MapsDocument | MapsRecords:
        args = self._args
        about: dict[str, Any] = {"rollup": args.rollup, "selection": self._selection}
        if not args.json and not args.format:
            if args.every is not None:
                print(self._about["time"], flush=True)
            unit = "bytes" if args.bytes else "si" if args.si else "short"
            return MapsTable(self._columns, fixed=self._fixed, several=several, unit=unit, **about)
        from physview.reporters import maps_records as records

        if args.json:
            return records.MapsDocument(self._columns if args.columns else None, **about)
        columns = self._columns
        if args.every is not None:
            columns = [columns_of.TIME, *columns]
        if self._write is None:
            self._write = self._make_writer(columns)
        return records.MapsRecords(columns, write=self._write, **about)

    def _make_writer(self, columns: Sequence[MapsColumn]) -> Any:
        from physview.reporters import maps_records as records

        names = [column.name for column in columns]
        if self._args.format == "csv":
            return records.csv_writer(names)
        if self._args.format == "jsonl":
            return records.json_lines_writer(names)
        from physview.commands import _common
        from physview.parquet.records_file import records_file

        _common.save_memory()
        fields = [(column.name, _arrow_type(column)) for column in columns]
        write = self._stack.enter_context(
            records_file(self._args.output, fields, overwrite=self._args.force)
        )
        return lambda rows: write(records.plain_rows(rows))

    def read(self, pid: int | str) -> None:
        """Read and report a process.

        Raises:
            PhysviewError: It cannot be read, or not to its end.
        """
        if self._with_frames:
            self._read_frames(pid)
            return
        with ProcDir(pid) as proc:
            stat = proc.living_stat(self._file)
            if self._args.rollup:
                if not self._selection.matches(stat.name):
                    return
                total = read_rollup(proc, stat.size_bytes)
                self._look_for_hinted(proc, total)
                self._report.begin_process(proc.pid, stat.name, **self._about)
                self._end_process(proc, total)
                self.nr_shown += 1
                return
            with MappingReader(proc, self._file) as reader:
                chunks = (SmapsChunk(mappings) for mappings in reader.iter_chunks())
                total = self._report_chunks(proc, stat.name, _complete(proc, chunks))
                if self._file == "smaps" and self._selection.name is None:
                    self._look_for_hinted(proc, total)

    def _read_frames(self, pid: int | str) -> None:
        from physview.memory.snapshot import Snapshot

        assert self._reader
        with Snapshot(pid, with_mappings=False) as snapshot:
            name = snapshot.proc.comm()
            if self._args.rollup and not self._selection.matches(name):
                return
            self.nr_shown += self._args.rollup
            chunks = self._reader.iter_chunks(snapshot, with_smaps=self._with_smaps)
            self._report_chunks(snapshot.proc, name, chunks)
            self.hidden |= not snapshot.knows_frames

    def _report_chunks(
        self, proc: ProcDir, name: str, chunks: Iterator[UsageChunk | SmapsChunk]
    ) -> Usage:
        own = Usage()
        by_name = self._selection if not self._args.rollup else Selection()
        first = next(chunks)  # a process that cannot be read has no heading
        self._report.begin_process(proc.pid, name, **self._about)
        try:
            chunk: UsageChunk | SmapsChunk | None = first
            while chunk is not None:
                indexes = by_name.indexes(chunk)
                if not self._args.rollup:
                    self.nr_shown += len(indexes)
                    self._report.add(chunk, indexes)
                own.add(by_name.total(chunk, indexes))
                chunk = next(chunks, None)
        except PhysviewError as error:
            self._report.end_process(None, error.why)
            raise
        self._end_process(proc, own)
        return own

    def _look_for_hinted(self, proc: ProcDir, total: Usage) -> None:
        """Find out whether smaps left huge pages out."""
        if not self._may_be_hinted:
            return
        missing = proc.nr_resident() * PAGE_SIZE - total.resident_bytes
        if missing > MIN_HINTED_BYTES:
            self.hinted_bytes += missing

    def _end_process(self, proc: ProcDir, own: Usage) -> None:
        about: dict[str, Any] = {"tables": _page_tables(proc)} if self._with_tables else {}
        self._report.end_process(own, **about)
        self._total.add(own)

    def end(self) -> None:
        """End a report."""
        self._report.end(self._total)


def _complete(proc: ProcDir, chunks: Iterator[SmapsChunk]) -> Iterator[SmapsChunk]:
    """Yield all mappings of a process. If it ends meanwhile, its file seems to end early."""
    yield from chunks
    if proc.has_ended():
        raise proc.gone()


def _arrow_type(column: MapsColumn) -> str:
    return "uint64" if column.name in ("pid", "offset", "inode") else ARROW_TYPES[column.kind]


def _refuse_columns_of_mappings(columns: Sequence[MapsColumn]) -> None:
    for column in columns:
        if column.is_text and column.needs in (columns_of.MAPS, columns_of.SMAPS):
            why = "it belongs to a mapping, and --rollup prints a line per process"
            raise UsageError(f"--rollup has no column {column.name}", why, "leave out one")


def _page_tables(proc: ProcDir) -> int | None:
    """The size of the page tables of a process in bytes. Source: VmPTE in /proc/PID/status"""
    return proctext.size_of(proctext.fields_by_name(proc.read("status")), b"VmPTE")
