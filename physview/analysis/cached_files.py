# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the cached pages of many files below folders, each once however many names it has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from physview.errors import PhysviewError
from physview.sources import page_cache
from physview.sources.file_tree import FileTree, Folder
from physview.sources.page_cache import CachedFile, OpenFile, PageCache, Row, to_cached_file

# Files in one call of the core, which cannot be interrupted.
FILES_AT_ONCE = 512

OnError = Callable[[PhysviewError], None]


class Patterns:
    """Chooses files by shell patterns.

    A pattern without "/" is for a name. A pattern with "/" is for the whole path, and its "*" also
    stands for "/".

    Args:
        include: A file has to match one of them; () for all files.
        exclude: A file or folder that matches one of them is left out.
    """

    def __init__(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self._include = _Matcher(include)
        self._exclude = _Matcher(exclude)
        self._is_empty = self._include.is_empty and self._exclude.is_empty

    def choose(self, folder: Folder) -> list[str]:
        """The names of the files of a folder that are wanted."""
        if self._is_empty:
            return folder.names
        needs_path = self._include.needs_path or self._exclude.needs_path
        path = folder.path if needs_path else ""
        return [name for name in folder.names if self._wants(path, name)]

    def wants_file(self, path: str) -> bool:
        """Whether a file is wanted."""
        folder, slash, name = path.rpartition("/")
        return self._is_empty or self._wants(folder + slash, name)

    def wants_folder(self, path: str, name: str) -> bool:
        """Whether a folder is wanted. `path`: where it is, with a slash at the end."""
        return not self._exclude.matches(path, name)

    def _wants(self, path: str, name: str) -> bool:
        if not self._include.is_empty and not self._include.matches(path, name):
            return False
        return not self._exclude.matches(path, name)


class _Matcher:
    def __init__(self, patterns: Iterable[str]) -> None:
        import fnmatch
        import re

        self._of_names: list[re.Pattern[str]] = []
        self._of_paths: list[re.Pattern[str]] = []
        for pattern in patterns:
            compiled = re.compile(fnmatch.translate(pattern))
            (self._of_paths if "/" in pattern else self._of_names).append(compiled)
        self.needs_path = bool(self._of_paths)
        self.is_empty = not self._of_names and not self._of_paths

    def matches(self, path: str, name: str) -> bool:
        return any(each.match(name) for each in self._of_names) or any(
            each.match(path + name) for each in self._of_paths
        )


class Batch(NamedTuple):
    """Files of a folder that were counted.

    Args:
        folder: The folder; None if the names are paths.
        names: The names of the files.
        rows: What is known of them: see page_cache.py.
    """

    folder: Folder | None
    names: list[str]
    rows: list[Row]

    def iter_files(self) -> Iterator[CachedFile]:
        """Yield the result of each file."""
        path = self.folder.path if self.folder else ""
        for name, row in zip(self.names, self.rows, strict=True):
            yield to_cached_file(path + name, row)


class FileExaminer:
    """Counts files below paths.

    Args:
        cache: The page cache.
        on_error: Called with the error of each file or folder that could not be examined.
        patterns: Which files to examine.
        keeps_all: Whether files can be reached from several paths, so that all of them must be kept
            in mind. Otherwise only files with several names are.
        on_virtual: Called with the path of each folder that is left out, because its file system
            has no page cache.
    """

    def __init__(
        self,
        cache: PageCache,
        on_error: OnError,
        patterns: Patterns,
        *,
        keeps_all: bool,
        on_virtual: Callable[[str], None] | None = None,
    ) -> None:
        self._cache = cache
        self._on_error = on_error
        self._patterns = patterns
        self._keeps_all = keeps_all
        self._seen: set[tuple[int, int]] = set()
        self._seen_folders: set[tuple[int, int]] = set()
        self._on_virtual = on_virtual

    def iter_batches(self, path: str) -> Iterator[Batch]:
        """Count the file at a path, or all files below it."""
        if not os.path.isdir(path):
            for file in self.iter_open(path):
                try:
                    yield Batch(None, [path], [file.count()])
                except PhysviewError as error:
                    self._on_error(error)
            return
        for folder in self._iter_folders(path):
            names = self._patterns.choose(folder)
            for at in range(0, len(names), FILES_AT_ONCE):
                part = Folder(folder.fd, folder.parts, names[at : at + FILES_AT_ONCE])
                yield self._finished(part, self._cache.count_folder(part))

    def iter_open(self, path: str) -> Iterator[OpenFile]:
        """Open the file at a path, or all files below it, one after the other."""
        if not os.path.isdir(path):
            if self._patterns.wants_file(path):
                yield from self._opened(partial(self._cache.open, path))
            return
        for folder in self._iter_folders(path):
            for name in self._patterns.choose(folder):
                yield from self._opened(partial(self._cache.open_in, folder, name))

    def _opened(self, open_file: Callable[[], OpenFile]) -> Iterator[OpenFile]:
        try:
            file = open_file()
        except PhysviewError as error:
            self._on_error(error)
            return
        with file:
            if file.identity not in self._seen:
                self._seen.add(file.identity)
                yield file

    def _iter_folders(self, path: str) -> Iterator[Folder]:
        tree = FileTree(path, self._on_error, self._patterns.wants_folder, self._seen_folders)
        nr_virtual = 0
        for folder in tree:
            yield folder
            nr_virtual = self._tell_virtual(tree, nr_virtual)
        self._tell_virtual(tree, nr_virtual)

    def _tell_virtual(self, tree: FileTree, nr_told: int) -> int:
        for path in tree.virtual[nr_told:]:
            if self._on_virtual:
                self._on_virtual(path)
        return len(tree.virtual)

    def _finished(self, folder: Folder, rows: list[Row]) -> Batch:
        """Finish what the core left, report errors, and leave out what was counted before."""
        keeps_all = self._keeps_all
        problem, nr_links = page_cache.PROBLEM, page_cache.NR_LINKS
        if not keeps_all and all(not row[problem] and row[nr_links] == 1 for row in rows):
            return Batch(folder, folder.names, rows)
        names, kept = [], []
        for name, counted in zip(folder.names, rows, strict=True):
            row = self._again(folder, name, counted) if counted[problem] else counted
            if row is None:
                continue
            if keeps_all or row[nr_links] != 1:
                identity = (row[page_cache.DEVICE], row[page_cache.INODE])
                if identity in self._seen:
                    continue
                self._seen.add(identity)
            names.append(name)
            kept.append(row)
        return Batch(folder, names, kept)

    def _again(self, folder: Folder, name: str, row: Row) -> Row | None:
        """Count a file by itself that the core left; report the error of one that it could not."""
        if self._cache.has_gone(row):  # since it was listed, so it is no file of the folder
            return None
        try:
            if not self._cache.is_large(row):
                error = self._cache.error(folder.path + name, row)
                assert error
                raise error
            with self._cache.open_in(folder, name) as file:
                return file.count()
        except PhysviewError as error:
            self._on_error(error)
            return None
