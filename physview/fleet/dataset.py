# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the files of a dataset (physview.recording.schema) that a question has to read.

The names of the folders tell the host and the day. So a question about some hosts or days never
opens the files of others. Files whose names begin with "." or "_" are being written, and are left
out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from physview.errors import PhysviewError, UsageError, first_line, of_path
from physview.fleet.engine import FilesChanged
from physview.recording.remote import is_url, without_secrets
from physview.recording.schema import TABLES
from physview.runtime.extras import need
from physview.text.nearest import offer

SUFFIX = ".parquet"
_MAGIC = b"PAR1"
_MIN_SIZE = 12
_PATTERN = frozenset("*?[")
_TAKEN_APART = _PATTERN | {"="}
_MARGIN = timedelta(days=1)
"""A file may go on after midnight: its date is that of its first row."""


class Selection(NamedTuple):
    """Which rows a question is about.

    Args:
        hosts: A pattern as of a shell for the names of hosts.
        since, until: The first moment, and the first one that is too late. Both in UTC.
    """

    hosts: str = "*"
    since: datetime | None = None
    until: datetime | None = None

    def has_day(self, day: date) -> bool:
        """Whether a file of this date can have rows of the selection."""
        if self.since is not None and day < self.since.date() - _MARGIN:
            return False
        return self.until is None or day <= self.until.date()


class Dataset:
    """A dataset in a folder, or in an object store.

    Args:
        where: The folder, or an address such as s3://bucket/prefix.
        selection: Which rows will be read.

    Attributes:
        where: The folder without the "/" at its end, as the names of the files begin.
        shown: The dataset for messages and reports.
        damaged: Why a file cannot be read, by its name.

    Raises:
        PhysviewError: There is no dataset.
    """

    def __init__(self, where: str, selection: Selection) -> None:
        self.selection = selection
        self.shown = without_secrets(where) if is_url(where) else where
        self._folders: _LocalFolders | _RemoteFolders
        if is_url(where):
            self._folders = _RemoteFolders(where)
        else:
            self._folders = _LocalFolders(where)
        self.where = self._folders.root
        self.damaged: dict[str, str] = {}
        self._found: dict[str, list[str]] = {}
        there = self._folders.names("")
        if not any(table in there for table in TABLES):
            what, why = (
                f"cannot read {self.shown}",
                f"it has none of the folders {', '.join(TABLES)}",
            )
            raise UsageError(what, why, "give a folder that record has written")

    @property
    def remote(self) -> Any:
        """The file system as pyarrow's, or None if an engine can open the names of files itself.

        DuckDB would take a folder with one of _TAKEN_APART for a pattern, or for a partition.
        """
        if isinstance(self._folders, _RemoteFolders):
            return self._folders.filesystem
        if not _TAKEN_APART.isdisjoint(self.where):
            return need("pyarrow.fs", f"cannot read {self.shown}").LocalFileSystem()
        return None

    @property
    def address(self) -> str:
        """The dataset as Hadoop names it."""
        return f"{self._folders.scheme}://{self.where}"

    def pattern_of(self, path: str) -> str:
        """The pattern by which Spark finds a file and no other one."""
        scheme = self._folders.scheme
        escaped = "".join(f"\\{letter}" if letter in "*?[]{}\\" else letter for letter in path)
        return f"{scheme}://{escaped}"

    def files(self, table: str) -> list[str]:
        """The whole files of a table that may have rows of the selection, sorted.

        Raises:
            UsageError: No host matches.
        """
        if table not in self._found:
            self._found[table] = sorted(self._iter_files(table))
        return self._found[table]

    def check_files(self) -> None:
        """Check after a failure whether all files are still there.

        Raises:
            FilesChanged: One was removed.
        """
        for path in chain.from_iterable(self._found.values()):
            if isinstance(self._folders, _LocalFolders) and not os.path.exists(path):
                raise FilesChanged(f"cannot read {path}", "it was removed meanwhile", "ask again")

    def _iter_files(self, table: str) -> Iterator[str]:
        folders = {
            unquote(name.removeprefix("host=")): f"{table}/{name}"
            for name in self._folders.names(table)
            if name.startswith("host=")
        }
        chosen = [host for host in folders if fnmatchcase(host, self.selection.hosts)]
        if folders and not chosen:
            what = f"no host is like '{self.selection.hosts}'"
            raise UsageError(what, "", offer(self.selection.hosts, sorted(folders)[:20]))
        for host in chosen:
            for name in self._folders.names(folders[host]):
                day = _day(name)
                if day is None or not self.selection.has_day(day):
                    continue
                folder = f"{folders[host]}/{name}"
                for file in self._folders.names(folder):
                    if file.endswith(SUFFIX) and not file.startswith((".", "_")):
                        path = f"{self.where}/{folder}/{file}"
                        why = self._folders.why_damaged(path)
                        if not _PATTERN.isdisjoint(f"{folder}/{file}"):
                            why = "its name has one of *, ? and ["
                        if why:
                            self.damaged[path] = why
                        else:
                            yield path


def _day(name: str) -> date | None:
    try:
        return date.fromisoformat(name.removeprefix("date="))
    except ValueError:
        return None


class _LocalFolders:
    """Lists folders of this machine."""

    scheme = "file"

    def __init__(self, where: str) -> None:
        self.root = os.path.abspath(where)
        try:
            self.root.encode()
        except UnicodeEncodeError:
            why = "its path is not valid UTF-8"
            raise UsageError(f"cannot read {where}", why, "rename it") from None
        if not os.path.isdir(self.root):
            why = "it is no folder" if os.path.exists(self.root) else "it does not exist"
            remedy = "give a folder that record has written"
            raise UsageError(f"cannot read {where}", why, remedy)

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(f"{self.root}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            path = f"{self.root}/{folder}"
            raise of_path(f"cannot read {path}", error, path) from None

    def why_damaged(self, path: str) -> str | None:
        """Say why a file is not a whole Parquet file; None if it is one."""
        try:
            path.encode()
            # A pipe would wait for a writer.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return error.strerror or str(error)
        except UnicodeEncodeError:
            return "its name is not valid UTF-8"
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                return "it is no regular file"
            if about.st_size < _MIN_SIZE:
                return "it is shorter than a Parquet file can be"
            return None if os.pread(fd, 4, about.st_size - 4) == _MAGIC else "its end is missing"
        except OSError as error:
            return error.strerror or str(error)
        finally:
            os.close(fd)


class _RemoteFolders:
    """Lists folders of an object store."""

    def __init__(self, where: str) -> None:
        what = f"cannot read {without_secrets(where)}"
        arrow_fs = need("pyarrow.fs", what)
        try:
            self.filesystem, root = arrow_fs.FileSystem.from_uri(where)
        except (OSError, ValueError) as error:
            raise UsageError(what, first_line(error), "give s3:// or gs://") from None
        self._selector = arrow_fs.FileSelector
        name = urlsplit(where).scheme
        self.scheme = {"s3": "s3a", "gcs": "gs"}.get(name, name)
        self.root = root.rstrip("/")

    def names(self, folder: str) -> list[str]:
        path = f"{self.root}/{folder}".rstrip("/")
        try:
            found = self.filesystem.get_file_info(self._selector(path, allow_not_found=True))
        except OSError as error:
            why = first_line(error)
            raise PhysviewError(f"cannot read {path}", why, path=path) from None
        return [each.base_name for each in found]

    def why_damaged(self, _path: str) -> str | None:
        """Object stores show whole objects only."""
        return None
