# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps samples until they are in the dataset: whatever fails meanwhile, few of them are lost.

Each sample is appended to the journals. Every few minutes, and at the end, each journal is written
to the dataset as a whole file, which replaces the file of before. So a day has few files. Another
file is begun for another day, and when the journal is large.
"""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

from physview.errors import PhysviewError
from physview.files.descriptor import Closable
from physview.recording import parts, retention
from physview.recording.folder import Folder, open_folder
from physview.recording.journal import Journal, is_full, recoverable
from physview.recording.parts import About
from physview.recording.schema import Columns
from physview.recording.stores import OUTBOX_BYTES, RemoteStore, Store

MAX_ROWS = 100_000
"""The rows of a file."""
MAX_BYTES = 64 << 20
"""The size of a journal at which its file is complete."""
MOST_BYTES = 4 * MAX_BYTES
"""The size of a journal whose file cannot be written. Further samples are kept in memory."""
MAX_PENDING_ROWS = 20_000
"""The rows that are kept in memory while the disk is full."""
SEND_SECONDS = 30.0
"""How long the end of a recording waits for the object store."""


class _Pending:
    """A sample that is not in the journals yet."""

    def __init__(self, about: About, moment: dict[str, Any], tables: dict[str, Columns]) -> None:
        self.about, self.moment, self.tables = about, moment, tables
        self.lost = tables["machine"]["lost"][0]
        self.nr_rows = sum(len(next(iter(table.values()))) for table in tables.values())


class Spool(Closable):
    """Keeps samples until they are in a dataset. A context manager.

    Args:
        folder: The folder of the journals, which the spool closes.
        store: The dataset, which the spool closes.
        what: The dataset, for messages.

    Attributes:
        give_up: Whether the end is not to wait for the object store.
        notes: What was found at the start and is worth a message.

    Raises:
        PhysviewError: Another recorder of this machine uses the dataset, or the folder cannot be
            used.
    """

    def __init__(self, folder: Folder, store: Store, what: str) -> None:
        self._folder, self._store, self._what = folder, store, what
        self._journals: dict[str, Journal] = {}
        self._pending: deque[_Pending] = deque()
        self._lost = 0
        self.give_up: Callable[[], bool] = lambda: False
        self.notes: list[str] = []
        self._lock = -1
        try:
            self._lock = self._take_lock()
            self._recover()
        except BaseException:
            self._close_files()
            raise

    def _take_lock(self) -> int:
        fd = self._folder.open_file("lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(fd, 20).decode("ascii", "replace")
            os.close(fd)
            raise PhysviewError(
                f"cannot record to {self._what}",
                f"another recorder of this machine records there (process {pid})",
                "end it, or choose another dataset",
            ) from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except OSError as error:
            os.close(fd)
            why = _why(error)
            remedy = "free some space, or choose another dataset"
            raise PhysviewError(f"cannot record to {self._what}", why, remedy) from None
        return fd

    def _recover(self) -> None:
        """Take over the journals that a killed recorder left behind."""
        for table in recoverable(self._folder):
            try:
                journal = Journal.recover(self._folder, table)
            except (PhysviewError, OSError) as error:
                aside = f"{table}.{secrets.token_hex(4)}.aside"
                fd = self._folder.fd
                os.rename(f"{table}.arrows", aside, src_dir_fd=fd, dst_dir_fd=fd)
                self.notes.append(f"{error}; it was set aside as {self._folder.path}/{aside}")
                continue
            if journal:
                self._journals[table] = journal

    def append(self, about: About, moment: dict[str, Any], tables: dict[str, Columns]) -> None:
        """Keep a sample.

        Args:
            about: What identifies the machine.
            moment: The columns of schema.MOMENT.
            tables: The other columns, by table.

        Raises:
            OSError: It cannot be written now. It is kept in memory, and written later.
            PhysviewError: Likewise.
        """
        self._pending.append(_Pending(about, moment, tables))
        try:
            while self._pending:
                self._write(self._pending[0])
                self._pending.popleft()
        except (OSError, PhysviewError) as error:
            nr_rows = sum(sample.nr_rows for sample in self._pending)
            while nr_rows > MAX_PENDING_ROWS and len(self._pending) > 1:
                dropped = self._pending.popleft()
                nr_rows -= dropped.nr_rows
                self._lost += 1 + dropped.lost
            if isinstance(error, OSError) and is_full(error):
                where = self._folder.path
                raise PhysviewError(
                    f"cannot write to {where}", "the disk is full",
                    "free some space, or record with --limit",
                ) from None  # fmt: skip
            raise

    def _write(self, sample: _Pending) -> None:
        date = parts.date_of(sample.moment["time"])
        for table in list(sample.tables):
            columns = sample.tables[table]
            if next(iter(columns.values())):
                journal = self._journal(table, sample.about, date, sample.moment["time"])
                journal.append(columns, sample.moment)
            del sample.tables[table]  # not again, if another table fails

    def _journal(self, table: str, about: About, date: str, time: int) -> Journal:
        journal = self._journals.get(table)
        if journal is not None and not _fits(journal, about, date):
            self._flush(journal)
            journal.remove()
            del self._journals[table]
            journal = None
        if journal is None:
            path = parts.new_path(table, about, time)
            journal = self._journals[table] = Journal(self._folder, table, about, path)
        if journal.nr_bytes > MOST_BYTES:
            raise PhysviewError(f"cannot write {journal.path}", "its journal is full")
        return journal

    def flush(self) -> None:
        """Write the dataset's files.

        Raises:
            PhysviewError: A file cannot be written. Its rows are kept.
        """
        for journal in self._journals.values():
            self._flush(journal)

    def _flush(self, journal: Journal) -> None:
        if journal.nr_flushed == journal.nr_rows:
            return
        rows = journal.rows()
        self._store.put(
            journal.path,
            functools.partial(parts.write, table=journal.table, rows=rows, about=journal.about),
        )
        journal.nr_flushed = journal.nr_rows
        journal.shorten(rows)

    def remove_old(self, today: str, host: str, machine: str, **limits: int | None) -> None:
        """Remove old files of this machine from the dataset.

        Args:
            today: The present date in UTC.
            host: The name of the host.
            machine: The machine's hash.
            limits: As for `retention.expired()`.

        Raises:
            PhysviewError: They cannot be listed or removed.
        """
        if any(limit is not None for limit in limits.values()):
            in_use = [journal.path for journal in self._journals.values()]

            def remove() -> None:
                found = self._store.parts(host, machine)
                for part in retention.expired(found, today, in_use=in_use, **limits):
                    self._store.remove(part.path)

            self._store.run(remove)

    def take_lost(self) -> int:
        """The number of samples that were lost since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def trouble(self) -> str:
        """Why the object store does not get its files; empty if it does."""
        if not isinstance(self._store, RemoteStore):
            return ""
        message = f"cannot send to {self._what}: {self._store.trouble}"
        return message if self._store.trouble else ""

    def dropped(self) -> str:
        """Whether files were dropped because too many wait for the object store; empty if not."""
        if not isinstance(self._store, RemoteStore) or not self._store.nr_dropped:
            return ""
        return f"the oldest files for {self._what} were dropped: {OUTBOX_BYTES >> 20} MiB wait"

    def close(self) -> None:
        """Write the dataset's files, and send them. Closing twice is harmless.

        The journals of this day stay: the next recorder continues their files.

        Raises:
            PhysviewError: Not all could be written or sent. It is kept for the next recorder.
        """
        if self._lock < 0:
            return
        try:
            while self._pending:
                self._write(self._pending[0])
                self._pending.popleft()
            self.flush()
            if isinstance(self._store, RemoteStore):
                self._send()
        except PhysviewError:
            raise
        except OSError as error:
            why = _why(error)
            nr = sum(1 + sample.lost for sample in self._pending)
            lost = f"samples lost: {nr}; " if nr else ""
            remedy = f"{lost}free some space: the next recorder completes the dataset's files"
            raise PhysviewError(f"cannot write to {self._folder.path}", why, remedy) from None
        finally:
            self._close_files()

    def _send(self) -> None:
        assert isinstance(self._store, RemoteStore)
        self._store.finish(SEND_SECONDS, self.give_up)
        nr = self._store.nr_waiting()
        if nr:
            raise PhysviewError(
                f"cannot send {nr} files to {self._what}",
                self._store.trouble or "the store is slow",
                f"they are in {self._folder.path}/outbox, and the next recorder sends them",
            )

    def _close_files(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._store.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._folder.close()


def _why(error: OSError) -> str:
    return "the disk is full" if is_full(error) else error.strerror or str(error)


def _fits(journal: Journal, about: About, date: str) -> bool:
    return (
        journal.is_current
        and journal.about == about
        and f"/date={date}/" in journal.path
        and journal.nr_rows < MAX_ROWS
        and journal.nr_bytes < MAX_BYTES
    )


def open_spool(dataset: str, machine: str, *, spool: str | None = None) -> Spool:
    """Open a dataset to record to.

    Args:
        dataset: A local folder, or the URL of an object store.
        machine: The machine's hash.
        spool: The folder where samples are kept until they are in an object store; None for a
            folder of this user.

    Raises:
        PhysviewError: It cannot be used.
    """
    from physview.recording import remote
    from physview.recording.stores import LocalStore

    if not remote.is_url(dataset):
        folder = open_folder(dataset)
        try:
            with folder.enter(".recording") as hidden:
                own = hidden.enter(machine[:16])
        except BaseException:
            folder.close()
            raise
        return Spool(own, LocalStore(folder), dataset)
    store = remote.open_remote(dataset)
    own = _remote_folder(dataset, spool)
    try:
        outbox = LocalStore(own.enter("outbox"))
    except BaseException:
        own.close()
        raise
    return Spool(own, RemoteStore(store, outbox), remote.without_secrets(dataset))


def _remote_folder(url: str, spool: str | None) -> Folder:
    """Open the folder of an object store's samples; one for each store."""
    import hashlib

    from physview.recording import remote

    name = hashlib.sha256(remote.without_secrets(url).encode("utf-8", "replace")).hexdigest()[:16]
    if spool is None:
        spool = state_folder()
        os.makedirs(os.path.dirname(spool), mode=0o700, exist_ok=True)
    with open_folder(spool) as folder:
        return folder.enter(name)


def state_folder() -> str:
    """The folder of this user for what is not sent yet.

    Source: file-hierarchy(7), XDG Base Directory Specification
    """
    if os.geteuid() == 0:
        return "/var/lib/physview/record"
    home = os.environ.get("XDG_STATE_HOME", "")
    if not home.startswith("/"):
        home = os.path.expanduser("~/.local/state")
    return f"{home}/physview/record"
