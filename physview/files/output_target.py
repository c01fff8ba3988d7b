# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds where a file is written: a folder that is held open, and a name in this folder.

The path is followed component by component, and each folder is held by its descriptor. So nobody
can replace a part of the path between a check and its use, or redirect root to another place. A
symbolic link is followed only if nobody but root and the caller can have made it.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import IntEnum
from typing import NamedTuple

from physview.errors import PhysviewError
from physview.files.caller import sudo_caller
from physview.files.descriptor import Closable, Descriptor

MAX_LINKS = 40
"""The maximum number of symbolic links in a path, as in the kernel. Source: MAXSYMLINKS"""

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Access(IntEnum):
    """How far users other than root and the caller may change the entries of a folder."""

    OWN = 0
    """Other users may change nothing."""
    STICKY = 1
    """Other users may add entries, but not remove or rename those of root and the caller (/tmp)."""
    SHARED = 2
    """Other users may add, remove and rename entries."""


def trusted_uids() -> frozenset[int]:
    """The users whose folders and links are trusted: root, this user, and who called sudo."""
    caller = sudo_caller()
    return frozenset({0, os.geteuid(), *(caller[:1] if caller else ())})


class Target(Closable):
    """Where a file will be written: an open folder and a name in it. A context manager.

    Args:
        path: The file, which need not exist.

    Attributes:
        path: The path as it was given.
        fd: Descriptor of the folder, opened with O_PATH.
        name: The name of the file in the folder.
        access: How far other users may change the entries of the folder.
        folder_uid: The owner of the folder.

    Raises:
        PhysviewError: The folder does not exist, the path is not that of a file, or the path leads
            through a symbolic link that another user may have made.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._trusted = trusted_uids()
        what = f"cannot write {path}"
        if path in ("", "-"):
            raise PhysviewError(what, "physview writes a regular file", "give a file name")
        if path.endswith("/") or os.path.basename(path) in (".", ".."):
            raise PhysviewError(what, "it is a folder", "name a file in it", path=path)
        try:
            self._walk = _PathWalk(path, self._trusted)
        except ValueError:  # a NUL, or a character that the file system encoding lacks
            raise PhysviewError(what, "this is not a valid file name", path=path) from None
        except OSError as error:
            raise PhysviewError(what, error.strerror or "", path=path) from None
        self.fd, self.name, self.access = self._walk.fd, self._walk.name, self._walk.access
        self.folder_uid = os.fstat(self.fd).st_uid

    def close(self) -> None:
        """Close the folder. Closing twice is harmless."""
        self._walk.close()

    @property
    def folder(self) -> str:
        """The folder's path, for messages."""
        return os.path.dirname(self.path) or "."

    def check(self, *, overwrite: bool) -> os.stat_result | None:
        """Check whether the file may be written now.

        Args:
            overwrite: Whether it may replace an existing file.

        Returns:
            The existing file, which would be replaced; None if there is no such file.

        Raises:
            PhysviewError: The file may not be written.
        """
        what = f"cannot write {self.path}"
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.fd):
            why = f"you may not write to the folder {self.folder}"
            raise PhysviewError(what, why, "choose another folder", path=self.path)
        try:
            info = os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PhysviewError(what, error.strerror or "", path=self.path) from None
        why, remedy = self._refusal(info, overwrite)
        if why:
            raise PhysviewError(what, why, remedy, path=self.path)
        return info

    def _refusal(self, info: os.stat_result, overwrite: bool) -> tuple[str, str]:
        """Why the existing file must stay, and what to do; both empty if it may be replaced."""
        if stat.S_ISDIR(info.st_mode):
            return "it is a folder", "name a file in it"
        if stat.S_ISLNK(info.st_mode):  # it was made after the path was followed
            return "it is a symbolic link", "choose another name"
        if not stat.S_ISREG(info.st_mode):
            return "it is a device or a pipe", "name a regular file"
        if not overwrite:
            return "it is there already", "choose another name, or add --force"
        if info.st_uid not in self._trusted:
            return (
                f"the file exists and belongs to another user (uid {info.st_uid})",
                "choose another name",
            )
        if self.access is Access.SHARED:
            why = f"the file exists, and others may replace files in the folder {self.folder}"
            return why, "remove it first, or choose another folder"
        return "", ""


class _Link(NamedTuple):
    """A symbolic link on the path: its target and its owner."""

    text: str
    uid: int


class _PathWalk(Descriptor):
    """Follows a path to the folder that holds its last component."""

    def __init__(self, path: str, trusted: frozenset[int]) -> None:
        self._path = path
        self._trusted = trusted
        self._nr_links = 0
        self.access = Access.OWN
        try:
            self._start(path)
            left = _components(path)
            while True:
                name = left.pop()
                link = self._link(name) if not left else self._enter(name)
                if link is not None:
                    self._allow(name, link)
                    self._start(link.text)
                    left += _components(link.text)
                    if not left:
                        raise IsADirectoryError(errno.EISDIR, "it leads to a folder")
                elif not left:
                    break
            self.name = name
        except BaseException:
            self.close()
            raise

    def _start(self, path: str) -> None:
        """Begin an absolute path at /. A relative one begins in the current folder of the walk.

        At first the current folder is the working directory.
        """
        if path.startswith("/"):
            self._move(os.open("/", _FOLDER))
        elif self.fd < 0:
            self._move(os.open(".", _FOLDER))

    def _move(self, fd: int) -> None:
        self.close()
        self._fd = fd
        # Whoever may rename a folder on the path decides where the path ends. So the access of the
        # whole path is at least that of each of its folders.
        before = Access.OWN if self.access is not Access.SHARED else Access.SHARED
        self.access = max(before, access_of(fd, self._trusted))

    def _enter(self, name: str) -> _Link | None:
        """Enter a folder; if the name is that of a symbolic link, return the link instead."""
        try:
            fd = os.open(name, _FOLDER, dir_fd=self.fd)
        except NotADirectoryError:
            link = self._link(name)
            if link is None:
                raise PhysviewError(
                    f"cannot write {self._path}", f"{name} is not a folder", path=self._path
                ) from None
            return link
        except FileNotFoundError:
            why = f"there is no folder {os.path.dirname(self._path) or name}"
            raise PhysviewError(
                f"cannot write {self._path}", why, "make it", path=self._path
            ) from None
        if self.access is Access.STICKY and os.fstat(fd).st_uid not in self._trusted:
            self.access = Access.SHARED
        self._move(fd)
        return None

    def _link(self, name: str) -> _Link | None:
        """The symbolic link of this name; None if the entry is not a link or does not exist."""
        try:
            fd = os.open(name, _ENTRY, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISLNK(info.st_mode):
                return None
            return _Link(os.readlink("", dir_fd=fd), info.st_uid)
        finally:
            os.close(fd)

    def _allow(self, name: str, link: _Link) -> None:
        """Refuse a link that another user may have put there.

        To check the owner of the link is not enough. If fs.protected_hardlinks is 0, any user can
        make a hard link in /tmp to a symbolic link of root. So the folder is checked, too.
        """
        self._nr_links += 1
        if self._nr_links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        what = f"cannot write {self._path}"
        if link.uid not in self._trusted:
            why = f"{name} is a symbolic link of another user (uid {link.uid})"
            raise PhysviewError(what, why, "choose another name", path=self._path)
        if self.access is not Access.OWN:
            why = f"{name} is a symbolic link in a folder that others may write to"
            raise PhysviewError(what, why, "name the link's target", path=self._path)


def _components(path: str) -> list[str]:
    """The components of a path, in reverse order."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def access_of(fd: int, trusted: frozenset[int]) -> Access:
    """How far other users may change the entries of a folder, by its owner and its mode.

    An access control list that grants more is visible in the group bits of the mode.

    Args:
        fd: The folder; O_PATH is enough.
        trusted: The trusted users, from `trusted_uids()`.
    """
    info = os.fstat(fd)
    if info.st_uid not in trusted:
        return Access.SHARED
    others_write = bool(info.st_mode & stat.S_IWOTH) or (
        bool(info.st_mode & stat.S_IWGRP) and not _is_private(fd, info.st_gid, trusted)
    )
    if not others_write:
        return Access.OWN
    return Access.STICKY if info.st_mode & stat.S_ISVTX else Access.SHARED


def _is_private(fd: int, gid: int, trusted: frozenset[int]) -> bool:
    from physview.files.private_groups import (
        is_private,  # imports pwd and grp, which are rarely needed
    )

    return is_private(fd, gid, trusted)
