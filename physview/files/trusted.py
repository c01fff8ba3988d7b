# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that only root and the caller can change the files under a path.

physview runs programs, Makefiles and kernel modules from the cache, often as root. A user who can
write to the cache, or can put another folder in its place, could become root. `check` goes down
from / by descriptors, and checks every folder and every symbolic link before it follows it.

After `check` the path is safe to use: only root and the caller can make it lead elsewhere. Three
cases are special:

- A sticky folder, such as /tmp, lets everybody add entries, but only the owners of an entry and
  of the folder can rename or remove it (inode(7)). Nobody else can move an entry of root or of the
  caller, so a path may go through a sticky folder. A path may not end in a sticky folder, because
  others could add entries beside the cache's own.
- A file system that a user mounts (FUSE) can pretend that root owns all its files. A user can mount
  it only on a folder that the user owns, and the mount hides this folder. A mount point directly in
  a sticky folder is therefore refused.
- Many distributions give each user a private group and a umask of 002. Write permission for a
  private group gives nobody else access, unless an access control list adds users.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from physview.errors import AccessDenied
from physview.files.private_groups import is_private

_FOLDER_MODE = 0o755
# path_resolution(7): the kernel follows at most this many links.
_MOST_LINKS = 40
_WRITERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_REMEDY = "set PHYSVIEW_CACHE to a folder of your own, below folders that belong to root or you"


def check(path: Path) -> bool:
    """Check a path: nobody but root and the caller can change what it leads to.

    Args:
        path: An absolute path.

    Returns:
        Whether the path exists. If not, the existing part of the path was checked.

    Raises:
        AccessDenied: Another user could change what the path leads to.
        OSError: The path cannot be examined.
    """
    return _walk_down(path, make=False)


def make_folder(path: Path) -> None:
    """Make a folder and all missing folders above it, and check the whole path.

    Raises:
        AccessDenied: Another user could change what is in the folder.
        OSError: The folder cannot be made.
    """
    _walk_down(path, make=True)


def _walk_down(path: Path, *, make: bool) -> bool:
    assert path.is_absolute(), path  # a relative path does not begin at /
    todo = list(reversed(path.parts[1:]))
    checked = _CheckedPath(path)
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                checked.go_up()
                continue
            found = checked.open_entry(name, make=make)
            if found is None:
                return False
            if not stat.S_ISLNK(os.fstat(found).st_mode):
                checked.enter(name, found)
                continue
            target = os.readlink("", dir_fd=found)
            os.close(found)
            links += 1
            if links > _MOST_LINKS:
                raise AccessDenied(checked.what, "too many symbolic links", _REMEDY, path=str(path))
            if target.startswith("/"):
                checked.go_up(all_of_it=True)
            todo += reversed([part for part in target.split("/") if part not in ("", ".")])
        checked.require_end()
    finally:
        checked.close()
    return True


class _CheckedPath:
    """The part of a path that is checked already: its folders without symbolic links, held open."""

    def __init__(self, path: Path) -> None:
        self.what = f"cannot use the cache {path}"
        self._path = path
        self._names: list[str] = []
        self._fds = [os.open("/", _OPEN)]
        self._require_owner("/", os.fstat(self._fds[0]))
        self._require_writers(allow_sticky=True)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def go_up(self, *, all_of_it: bool = False) -> None:
        while self._names:
            self._names.pop()
            os.close(self._fds.pop())
            if not all_of_it:
                break

    def open_entry(self, name: str, *, make: bool) -> int | None:
        """Open an entry of the last folder, and require that root or the caller owns it."""
        folder = self._fds[-1]
        try:
            fd = os.open(name, _OPEN, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                return None
            # If another process makes the folder first, that folder is opened and checked.
            _make_unless_there(name, folder)
            fd = os.open(name, _OPEN, dir_fd=folder)
        try:
            self._require_owner(self._name_of(name), os.fstat(fd))
            self._require_no_mount(self._name_of(name), os.fstat(fd))
        except AccessDenied:
            os.close(fd)
            raise
        return fd

    def enter(self, name: str, fd: int) -> None:
        self._names.append(name)
        self._fds.append(fd)
        self._require_writers(allow_sticky=True)

    def require_end(self) -> None:
        """Require that others cannot even add entries to the last folder."""
        self._require_writers(allow_sticky=False)

    def _name_of(self, *more: str) -> str:
        return "/" + "/".join([*self._names, *more])

    def _require_writers(self, *, allow_sticky: bool) -> None:
        here, status = self._name_of(), os.fstat(self._fds[-1])
        writers = status.st_mode & _WRITERS
        if not writers or (status.st_mode & stat.S_ISVTX and allow_sticky):
            return
        caller = (os.geteuid(),)
        if writers == stat.S_IWGRP and is_private(self._fds[-1], status.st_gid, caller):
            return
        # All users share a sticky folder, so do not advise to change its mode.
        is_own = status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX
        remedy = f"chmod go-w {here}, or {_REMEDY}" if is_own else _REMEDY
        raise self._denied(f"users other than root and you may write to {here}", remedy)

    def _require_owner(self, here: str, status: os.stat_result) -> None:
        if status.st_uid in (0, os.geteuid()):
            return
        try:
            owner = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            owner = f"user {status.st_uid}"
        raise self._denied(f"{here} belongs to {owner}, who could change what you run", _REMEDY)

    def _require_no_mount(self, here: str, status: os.stat_result) -> None:
        above = os.fstat(self._fds[-1])
        is_sticky = above.st_mode & stat.S_ISVTX and above.st_mode & _WRITERS
        if is_sticky and status.st_dev != above.st_dev:
            raise self._denied(
                f"{here} is a mount point in a folder that others may write to", _REMEDY
            )

    def _denied(self, why: str, remedy: str) -> AccessDenied:
        return AccessDenied(self.what, why, remedy, path=str(self._path))


def _make_unless_there(name: str, folder: int) -> None:
    try:
        # This mode gives others no write permission, whatever the umask is.
        os.mkdir(name, _FOLDER_MODE, dir_fd=folder)
    except FileExistsError:
        return
