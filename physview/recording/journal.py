# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the rows of a file of Parquet that is not complete yet, on the disk.

A file of Parquet can only be written as a whole. So each sample is first appended to a journal, in
Arrow's format of streams: a message with the schema, and a message for each sample. If the recorder
is killed, the next one finds all samples but one that was being written.

Source: https://arrow.apache.org/docs/format/Columnar.html, IPC Streaming Format
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from typing import Any

from physview.errors import PhysviewError
from physview.files.descriptor import Descriptor
from physview.recording.folder import Folder
from physview.recording.parts import CONSTANT, About, check_path
from physview.recording.schema import METADATA, TABLES, VERSION, Columns, arrow_schema

SUFFIX = ".arrows"
_PATH = "path"
_BROKEN = "the journal is damaged"


def _schema(table: str, arrow: Any, metadata: dict[str, str]) -> Any:
    """The schema of a journal: that of the table, without constants and dictionaries."""
    whole = arrow_schema(table, arrow)
    fields = [
        arrow.field(field.name, getattr(field.type, "value_type", field.type))
        if arrow.types.is_dictionary(field.type)
        else field
        for field in whole
        if field.name not in CONSTANT
    ]
    return arrow.schema(fields, metadata=metadata)


class Journal(Descriptor):
    """The rows of a file that is not complete yet. A context manager.

    Args:
        folder: The folder of the journal.
        table: The table of the rows.
        about: What all rows have in common.
        path: The path that the file will have in the dataset.

    Attributes:
        nr_rows: The number of rows.
        nr_bytes: The size of the journal.
        nr_flushed: The number of rows that are in the dataset.

    Raises:
        OSError: The journal cannot be made.
    """

    def __init__(self, folder: Folder, table: str, about: About, path: str) -> None:
        import pyarrow

        self._folder = folder
        self.table, self.about, self.path = table, about, path
        metadata = {**about.metadata(), _PATH: path}
        self._schema = _schema(table, pyarrow, metadata)
        self.nr_rows = self.nr_flushed = 0
        self._fd = folder.open_file(self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self.nr_bytes = 0
            self._append(self._schema.serialize())
        except BaseException:
            folder.remove(self.name)
            self.close()
            raise

    @property
    def name(self) -> str:
        """The name of the file in its folder."""
        return self.table + SUFFIX

    @classmethod
    def recover(cls, folder: Folder, table: str) -> Journal | None:
        """Open a journal that was left behind; None if there is none.

        A sample that was written in part only is cut off.

        Raises:
            PhysviewError: The journal is of a later version of physview, or damaged.
            OSError: It cannot be read.
        """
        import pyarrow

        name = table + SUFFIX
        what = f"cannot read {folder.path}/{name}"
        try:
            fd = folder.open_file(name, os.O_RDWR)
        except FileNotFoundError:
            return None
        found = cls.__new__(cls)
        found._folder, found.table, found._fd = folder, table, fd
        try:
            with found._mapped() as data:
                if data is None:
                    raise PhysviewError(what, "it is empty", "remove it")
                found._read_head(data, pyarrow, what)
        except BaseException:
            found.close()
            raise
        os.ftruncate(fd, found.nr_bytes)
        return found

    def _read_head(self, data: Any, arrow: Any, what: str) -> None:
        with contextlib.closing(arrow.BufferReader(data)) as source:
            try:
                reader = arrow.ipc.open_stream(source)
                metadata = {
                    key.decode(): value.decode()
                    for key, value in (reader.schema.metadata or {}).items()
                }
                version = int(metadata[METADATA[0]])
                self.about = About(*(metadata[name] for name in METADATA[2:]))
                self.path = metadata[_PATH]
            except (arrow.ArrowInvalid, OSError, ValueError, KeyError):
                raise PhysviewError(what, _BROKEN, "remove it") from None
            expected = _schema(self.table, arrow, {})
            if version > VERSION or not check_path(self.path):
                why = f"it is of a later version of physview (schema {version})"
                raise PhysviewError(what, why, "use that version, or remove the file")
            self._schema = reader.schema
            self.is_current = reader.schema.equals(expected)
            self.nr_flushed = -1  # unknown
            self.nr_rows, self.nr_bytes = 0, len(reader.schema.serialize())
            for batch, end in _batches(reader, source):
                self.nr_rows += batch.num_rows
                self.nr_bytes = end

    is_current = True
    """Whether the journal has the columns of this version, so that it can be continued."""

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[Any]:
        import pyarrow

        size = os.fstat(self.fd).st_size
        if not size:
            yield None
            return
        # Not a context manager: it cannot be closed while Arrow refers to it, which is freed later.
        yield pyarrow.py_buffer(mmap.mmap(self.fd, size, prot=mmap.PROT_READ))

    def append(self, columns: Columns, moment: dict[str, Any]) -> None:
        """Append the rows of a sample.

        Args:
            columns: The values by column, without those of the moment.
            moment: The values of the moment.

        Raises:
            OSError: The rows were not written, for example because the disk is full. The journal
                has then all rows of before.
        """
        import pyarrow

        nr = len(next(iter(columns.values())))
        arrays = [
            pyarrow.array(columns[field.name], field.type)
            if field.name in columns
            else pyarrow.array([moment[field.name]] * nr, field.type)
            for field in self._schema
        ]
        batch = pyarrow.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._append(batch.serialize())
        self.nr_rows += nr

    def _append(self, data: Any) -> None:
        rest = memoryview(data)
        at = self.nr_bytes
        try:
            while rest:
                nr = os.pwrite(self.fd, rest, at)
                at, rest = at + nr, rest[nr:]
        except OSError:
            os.ftruncate(self.fd, self.nr_bytes)
            raise
        self.nr_bytes = at

    def rows(self) -> Any:
        """Read all rows: a pyarrow.Table, which maps the file."""
        import pyarrow

        with self._mapped() as data:
            source = pyarrow.BufferReader(data)
            reader = pyarrow.ipc.open_stream(source)
            batches = [batch for batch, _ in _batches(reader, source)]
        return pyarrow.Table.from_batches(batches, schema=self._schema)

    def shorten(self, rows: Any) -> None:
        """Join the messages of the journal in one, which takes less room.

        Args:
            rows: What `rows()` returned, and nothing was appended since.

        Raises:
            OSError: The shorter journal cannot be written. The journal is as it was.
        """
        joined = rows.combine_chunks().to_batches()
        name = f".{self.name}.part"
        self._folder.remove(name)
        old_fd, old_bytes = self.fd, self.nr_bytes
        self._fd = self._folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.nr_bytes = 0
        try:
            for message in (self._schema, *joined):
                self._append(message.serialize())
            os.rename(name, self.name, src_dir_fd=self._folder.fd, dst_dir_fd=self._folder.fd)
        except BaseException:
            os.close(self.fd)
            self._fd, self.nr_bytes = old_fd, old_bytes
            self._folder.remove(name)
            raise
        os.close(old_fd)

    def remove(self) -> None:
        """Remove the journal, once its file is written."""
        self.close()
        self._folder.remove(self.name)


def _batches(reader: Any, source: Any) -> Iterator[tuple[Any, int]]:
    """Yield the whole messages of a stream, and where each ends."""
    import pyarrow

    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
        except (StopIteration, pyarrow.ArrowInvalid, OSError):
            return  # the end, or a message that was not written to its end
        yield batch, source.tell()


def recoverable(folder: Folder) -> list[str]:
    """The tables of which a journal was left behind."""
    return [table for table in TABLES if table + SUFFIX in folder.names()]


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk, or what a user may use of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
