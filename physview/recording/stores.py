# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the files of a dataset go: a local folder, or an object store."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from physview.errors import PhysviewError
from physview.files.atomic_file import whole_file
from physview.files.descriptor import Closable
from physview.recording.folder import Folder, open_folder
from physview.recording.parts import Part, check_path, host_folder, is_part
from physview.recording.schema import TABLES

Write = Callable[[BinaryIO], None]

OUTBOX_BYTES = 256 << 20
"""The bytes that are kept for an object store that cannot be reached."""
FIRST_RETRY, LAST_RETRY = 5.0, 300.0
"""Seconds until a file is sent again after a failure: at first, and at most."""


class Store(Closable):
    """A dataset to which whole files are written."""

    @abstractmethod
    def put(self, path: str, write: Write) -> None:
        """Write a file, completely or not at all. It replaces the file of this path.

        Raises:
            PhysviewError: It cannot be written.
        """

    @abstractmethod
    def parts(self, host: str, machine: str) -> list[Part]:
        """List the files that a machine has recorded under a host name, oldest first.

        Raises:
            PhysviewError: They cannot be listed.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file. Raises PhysviewError if that fails."""

    def run(self, job: Callable[[], None]) -> None:
        """Do something that may take long: now, or in the thread that sends."""
        job()


class LocalStore(Store):
    """A dataset in a local folder.

    Args:
        folder: The folder, which the store closes.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def close(self) -> None:
        """Close the folder. Closing twice is harmless."""
        self._folder.close()

    def put(self, path: str, write: Write) -> None:
        """Write a file, as `Store.put()`."""
        *folders, _ = path.split("/")
        with contextlib.ExitStack() as stack:
            at = self._folder
            for name in folders:
                at = stack.enter_context(at.enter(name))
        with whole_file(f"{self._folder.path}/{path}", overwrite=True) as file:
            write(file)

    def parts(self, host: str, machine: str) -> list[Part]:
        """List files, as `Store.parts()`."""
        own = host_folder(host)
        found = [part for part in self.iter_parts(own) if is_part(part.name, machine)]
        return sorted(found, key=lambda part: (part.date, part.path))

    def iter_parts(self, host: str | None = None) -> Iterator[Part]:
        """Yield all files, or those in the folders of a host."""
        for table in TABLES:
            for of_table in self._folder.iter_folders(table):
                for of_host in of_table.iter_folders("host="):
                    if host is not None and not of_host.path.endswith(f"/{host}"):
                        continue
                    for of_date in of_host.iter_folders("date="):
                        for name in sorted(of_date.names()):
                            path = of_date.path.removeprefix(f"{self._folder.path}/") + f"/{name}"
                            size = of_date.size_of(name)
                            if check_path(path) and size is not None:
                                yield Part(path, size)

    def remove(self, path: str) -> None:
        """Remove a file, and its folder of a date if that is empty."""
        table, host, date, name = path.split("/")
        try:
            with (
                self._folder.enter(table, make=False) as of_table,
                of_table.enter(host, make=False) as of_host,
            ):
                with of_host.enter(date, make=False) as of_date:
                    of_date.remove(name)
                of_host.remove_folder(date)
        except FileNotFoundError:
            return
        except PhysviewError:
            raise
        except OSError as error:
            raise PhysviewError(f"cannot remove {path}", error.strerror or "") from None

    def read(self, path: str) -> tuple[bytes, tuple[int, int]]:
        """Read a file, and what tells whether it was replaced since."""
        table, host, date, name = path.split("/")
        with (
            self._folder.enter(table, make=False) as of_table,
            of_table.enter(host, make=False) as of_host,
            of_host.enter(date, make=False) as of_date,
            open(of_date.open_file(name, os.O_RDONLY), "rb") as file,
        ):
            info = os.fstat(file.fileno())
            return file.read(), (info.st_ino, info.st_mtime_ns)

    def mark_of(self, path: str) -> tuple[int, int] | None:
        """What tells whether a file was replaced; None if it is gone."""
        try:
            info = os.stat(f"{self._folder.path}/{path}", follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_ino, info.st_mtime_ns


class RemoteStore(Store):
    """A dataset in an object store. Files are kept in an outbox until they are sent.

    A thread sends them, so that a store which does not answer delays no sample.

    Args:
        remote: The object store.
        outbox: The outbox, which the store closes.

    Attributes:
        trouble: Why the last file could not be sent; empty if it was.
        nr_dropped: The number of files that were dropped, because the outbox was full.
    """

    def __init__(self, remote: Any, outbox: LocalStore) -> None:
        self._remote = remote
        self._outbox = outbox
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closing = False
        self._job: Callable[[], None] | None = None
        self.trouble = ""
        self.nr_dropped = 0
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="sender")
        self._thread.start()

    def put(self, path: str, write: Write) -> None:
        """Keep a file in the outbox, from which it is sent."""
        with self._changed:
            self._outbox.put(path, write)
            self._drop_oldest()
            self._changed.notify()

    def _drop_oldest(self) -> None:
        waiting = sorted(self._outbox.iter_parts(), key=lambda part: (part.date, part.name))
        total = sum(part.size for part in waiting)
        for part in waiting[:-1]:
            if total <= OUTBOX_BYTES:
                break
            self._outbox.remove(part.path)
            total -= part.size
            self.nr_dropped += 1

    def parts(self, host: str, machine: str) -> list[Part]:
        """List files, as `Store.parts()`."""
        own = host_folder(host)
        paths = self._remote.parts([f"{table}/{own}" for table in TABLES])
        found = [part for part in paths if check_path(part.path) and is_part(part.name, machine)]
        return sorted(found, key=lambda part: (part.date, part.path))

    def remove(self, path: str) -> None:
        """Remove a file of the object store."""
        self._remote.remove(path)

    def run(self, job: Callable[[], None]) -> None:
        """Do something in the thread that sends, after the files of before."""
        with self._changed:
            self._job = job
            self._changed.notify()

    def nr_waiting(self) -> int:
        """The number of files that are not sent yet."""
        with self._lock:
            return sum(1 for _ in self._outbox.iter_parts())

    def finish(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Wait until all files are sent, or the time is up.

        Args:
            seconds: The time.
            is_over: Whether to stop waiting at once.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end and not is_over():
            self._thread.join(0.1)

    def close(self) -> None:
        """Close the outbox. What is in it stays, for the next recorder."""
        self.finish(0)
        if not self._thread.is_alive():
            self._outbox.close()

    def _send_all(self) -> None:
        delay = FIRST_RETRY
        while True:
            with self._changed:
                waiting = list(self._outbox.iter_parts())
                job, self._job = self._job, None
                if not waiting and job is None:
                    if self._closing:
                        return
                    self._changed.wait()
                    continue
            if all(map(self._send, waiting)):
                delay = FIRST_RETRY
                if job:
                    self._do(job)
                continue
            with self._changed:
                if self._closing:  # a last attempt was made
                    return
                self._job = self._job or job
                self._changed.wait(delay)
            delay = min(2 * delay, LAST_RETRY)

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except PhysviewError as error:
            self.trouble = str(error)

    def _send(self, part: Part) -> bool:
        try:
            data, mark = self._outbox.read(part.path)
            self._remote.put(part.path, data)
        except FileNotFoundError:
            return True  # it was dropped
        except Exception as error:  # every library has errors of its own
            self.trouble = f"{type(error).__name__}: {error}".partition("\n")[0]
            return False
        self.trouble = ""
        with self._lock:
            if self._outbox.mark_of(part.path) == mark:
                self._outbox.remove(part.path)
        return True


def open_local(path: str) -> LocalStore:
    """Open a local dataset, and make its folder if it is missing."""
    return LocalStore(open_folder(path))
