# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists the regular files below a folder, in bounded memory, for files that others may change.

Each folder is opened relative to its parent's descriptor, and links are never followed. So no one
who may write to the tree can lead the walk out of it. Trees may be deeper than a path can be long.

Source: openat(2), getdents(2)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from physview import _ffi
from physview.errors import PhysviewError, of_path
from physview.model import printable

# So many names of one folder are held, and sorted, at once.
NAMES_AT_ONCE = 1 << 14
# So many folders are open at once. Those further up are opened again when the walk comes back.
MOST_OPEN = 64

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Folder:
    """A folder with some or all of its regular files.

    Args:
        fd: The descriptor of the folder. It is open until the next folder is asked for.
        parts: The path below which the walk began, and the names of the folders down to this one.
        names: The names of files.
    """

    def __init__(self, fd: int, parts: list[str], names: list[str]) -> None:
        self.fd = fd
        self.parts = parts
        self.names = names
        self._path = ""

    @property
    def path(self) -> str:
        """The path of the folder, with a slash at its end."""
        if not self._path:
            self._path = "/".join(self.parts).rstrip("/") + "/"
        return self._path


class _Level:
    """A folder on the way down to where the walk is."""

    def __init__(self, fd: int, identity: tuple[int, int]) -> None:
        self.fd = fd
        self.identity = identity
        self.below: list[str] = []

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class FileTree:
    """Walks through a folder and all folders below it.

    A folder that is reached a second time, through a mount, is skipped. A folder whose file system
    has no page cache (sysfs, proc and similar) is skipped, and counted.

    Args:
        path: The folder; it may be a symbolic link to one.
        on_error: Called with the error of a folder that cannot be listed; the others still are.
        wants_folder: Told the path of a folder below, says whether to go there. None: everywhere.
        seen: The identities of folders that were listed; it is added to.
    """

    def __init__(
        self,
        path: str,
        on_error: Callable[[PhysviewError], None],
        wants_folder: Callable[[str, str], bool] | None = None,
        seen: set[tuple[int, int]] | None = None,
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        self._on_error = on_error
        self._wants_folder = wants_folder
        self._seen = set() if seen is None else seen
        self._parts = [path]
        self._levels: list[_Level] = []
        self.virtual: list[str] = []
        """Folders that were skipped because their file system has no page cache."""

    def __iter__(self) -> Iterator[Folder]:
        try:
            self._enter(self._parts[0], None)
            if self._levels:
                yield from self._list()
            while self._levels:
                level = self._levels[-1]
                if not level.below:
                    level.close()
                    self._levels.pop()
                    self._parts.pop()
                    continue
                name = level.below.pop()
                self._parts.append(name)
                if self._reopen() and self._enter(name, self._levels[-1]):
                    yield from self._list()
                else:
                    self._parts.pop()
        finally:
            for level in self._levels:
                level.close()

    def _path(self) -> str:
        return "/".join(self._parts)

    def _fail(self, error: OSError) -> None:
        path = self._path()
        self._on_error(of_path(f"cannot list {printable(path)}", error, path))

    def _enter(self, name: str, parent: _Level | None) -> bool:
        """Open a folder, and make it the deepest level; return whether it is to be listed."""
        try:
            if parent:
                fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=parent.fd)
            else:
                fd = os.open(name, _FLAGS)
        except FileNotFoundError as error:
            if not parent:  # below it, a folder that has gone has no files
                self._fail(error)
            return False
        except (OSError, ValueError) as error:
            self._fail(error if isinstance(error, OSError) else OSError(0, str(error)))
            return False
        level = _Level(fd, (0, 0))
        try:
            info = os.fstat(fd)
            level.identity = (info.st_dev, info.st_ino)
            is_new = level.identity not in self._seen
            self._seen.add(level.identity)
            other = parent is None or parent.identity[0] != info.st_dev
            if is_new and other and self._is_virtual(fd, info.st_dev):
                self.virtual.append(self._path())
                is_new = False
        except OSError as error:
            self._fail(error)
            is_new = False
        if not is_new:
            level.close()
            return False
        self._levels.append(level)
        if len(self._levels) > MOST_OPEN:
            self._levels[-MOST_OPEN].close()
        return True

    def _is_virtual(self, fd: int, device: int) -> bool:
        kind = self._lib.pv_file_system(fd, os.major(device), self._ffi.new("uint64_t *"))
        return bool(kind == self._lib.PV_FS_VIRTUAL)

    def _reopen(self) -> bool:
        """Open the deepest level again if it was closed, from the nearest one that is open."""
        at = len(self._levels) - 1
        while at and self._levels[at].fd < 0:
            at -= 1
        for deeper in range(at, len(self._levels)):
            level = self._levels[deeper]
            if level.fd >= 0:
                continue
            try:
                if deeper:
                    above = self._levels[deeper - 1]
                    name = self._parts[deeper]
                    level.fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=above.fd)
                else:
                    level.fd = os.open(self._parts[0], _FLAGS)
                info = os.fstat(level.fd)
                if (info.st_dev, info.st_ino) != level.identity:
                    raise OSError(0, "another folder has taken its place")
            except OSError as error:
                self._fail(error)
                self._levels[-1].below.clear()
                return False
            # The deeper half stays open: the walk will come back to these next.
            if 0 < deeper - 1 <= len(self._levels) - MOST_OPEN // 2:
                self._levels[deeper - 1].close()
        return True

    def _list(self) -> Iterator[Folder]:
        """Yield the deepest folder, with its files; note the folders below."""
        level = self._levels[-1]
        parts = self._parts[:]
        names: list[str] = []
        try:
            with os.scandir(level.fd) as entries:
                for entry in entries:
                    if _is(entry, "is_file"):
                        names.append(entry.name)
                        if len(names) == NAMES_AT_ONCE:
                            yield Folder(level.fd, parts, sorted(names))
                            names.clear()
                    elif _is(entry, "is_dir"):
                        level.below.append(entry.name)
        except OSError as error:
            self._fail(error)
        if names:
            names.sort()
            yield Folder(level.fd, parts, names)
        if self._wants_folder and level.below:
            path = Folder(-1, parts, []).path
            wants = self._wants_folder
            level.below = [name for name in level.below if wants(path, name)]
        level.below.sort(reverse=True)


def _is(entry: os.DirEntry[str], what: str) -> bool:
    try:
        return bool(getattr(entry, what)(follow_symlinks=False))
    except OSError:  # some file systems do not tell the type, and then a stat() can fail
        return False
