# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders of a dataset, held open, which nobody but root and the caller can change.

A recorder often runs as root, makes folders and removes old files. So every step goes by the
descriptor of a folder, and no symbolic link is followed below the folder that the caller named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from physview.errors import AccessDenied, PhysviewError
from physview.files.caller import sudo_caller
from physview.files.descriptor import Descriptor
from physview.files.output_target import Access, Target, access_of, trusted_uids

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o700  # what root sees of processes is for root only


class Folder(Descriptor):
    """A folder that is held open. A context manager.

    Args:
        fd: Its descriptor, which the object closes.
        path: Its path, for messages and for `files.atomic_file`.
    """

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self.path = path

    def enter(self, name: str, *, make: bool = True) -> Folder:
        """Open a folder in this one.

        Args:
            name: Its name.
            make: Whether to make it if it is missing.

        Raises:
            PhysviewError: It is another user's, a symbolic link or no folder, or cannot be made.
            FileNotFoundError: It is missing, and `make` is not set.
        """
        path = f"{self.path}/{name}"
        what = f"cannot use {path}"
        try:
            if make:
                _make(self.fd, name)
            fd = os.open(name, _FOLDER, dir_fd=self.fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                why = "it is a symbolic link or no folder"
            raise PhysviewError(what, why, "choose another folder") from None
        folder = Folder(fd, path)
        try:
            folder._require_own(what)
        except BaseException:
            folder.close()
            raise
        return folder

    def _require_own(self, what: str) -> None:
        info = os.fstat(self.fd)
        trusted = trusted_uids()
        if info.st_uid not in trusted:
            why = f"it belongs to another user (uid {info.st_uid})"
            raise AccessDenied(what, why, "choose a folder of your own", path=self.path)
        if access_of(self.fd, trusted) is not Access.OWN:
            why = "other users may write to this folder"
            raise AccessDenied(what, why, f"chmod go-w {self.path}", path=self.path)

    def names(self) -> list[str]:
        """The names of all entries."""
        return os.listdir(self.fd)

    def iter_folders(self, prefix: str) -> Iterator[Folder]:
        """Yield the folders with names that begin so, each open until the next one.

        Folders of other users and symbolic links are skipped.
        """
        for name in sorted(self.names()):
            if name.startswith(prefix):
                try:
                    folder = self.enter(name, make=False)
                except (PhysviewError, FileNotFoundError):
                    continue
                with folder:
                    yield folder

    def size_of(self, name: str) -> int | None:
        """The bytes of a regular file; None if it is none."""
        try:
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def open_file(self, name: str, flags: int) -> int:
        """Open a file in this folder; what is no regular file is refused with an OSError."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is no regular file")
        return fd

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def remove_folder(self, name: str) -> None:
        """Remove a folder if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self.fd)


def open_folder(path: str) -> Folder:
    """Open a folder by its path, and make it if it is missing.

    Raises:
        PhysviewError: Others may change it, or the folder above it, or it cannot be made.
    """
    if os.path.basename(path.rstrip("/")) in ("", ".", ".."):
        path = os.path.realpath(path)
    path = path.rstrip("/")
    if not path:
        raise PhysviewError("cannot use /", "a dataset needs a folder of its own", "name one")
    with Target(path) as target:
        if target.access is Access.SHARED:
            place = os.path.realpath(".") if target.folder == "." else target.folder
            why = f"other users may rename folders in {place}"
            raise AccessDenied(f"cannot use {path}", why, "choose a folder of your own", path=path)
        with Folder(os.open(".", _FOLDER, dir_fd=target.fd), os.path.dirname(path)) as above:
            folder = above.enter(target.name)
    folder.path = path
    return folder


def _make(above: int, name: str) -> None:
    try:
        os.mkdir(name, _MODE, dir_fd=above)
    except FileExistsError:
        return
    caller = sudo_caller()
    if caller:
        with contextlib.suppress(OSError):  # for example vfat, which has no owners
            os.chown(name, *caller, dir_fd=above, follow_symlinks=False)
