# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, TypeGuard

from physview.caller import sudo_caller
from physview.errors import PhysviewError


@contextlib.contextmanager
def whole_file(path: str, *, overwrite: bool = False, private: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name only when all is written.

    Until then it lies beside it under a hidden name, and is removed if anything fails. It belongs
    to who called, also through sudo.

    Args:
        path: Its name.
        overwrite: Whether to replace a file of this name.
        private: Whether only its owner may read it, for it tells what is root's to see.

    Raises:
        PhysviewError: There is one already, or it cannot be written.
    """
    check_target(path, overwrite=overwrite)
    what = f"cannot write {path}"
    path = os.path.realpath(path)  # what a symbolic link names is replaced, not the link
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.{os.getpid()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(partial, flags, 0o600 if private else 0o666)
    except OSError as error:
        why = f"{folder}: {error.strerror}"
        raise PhysviewError(what, why, "choose another folder") from None
    try:
        with open(fd, "wb") as file:
            _give_to_caller(fd)
            yield file
            file.flush()
            os.fsync(fd)
        check_target(path, overwrite=overwrite)  # somebody else may have been quicker
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if _is_of_writing(error):
            why = error.strerror or str(error)
            raise PhysviewError(what, why, "nothing of it was kept") from None
        raise


def _give_to_caller(fd: int) -> None:
    caller = sudo_caller()
    if caller:
        with contextlib.suppress(OSError):  # a file system without owners
            os.fchown(fd, *caller)


def _is_of_writing(error: BaseException) -> TypeGuard[OSError]:
    """An error that names a file is of one that was read meanwhile."""
    if isinstance(error, PhysviewError) or not isinstance(error, OSError):
        return False
    return error.errno is not None and not error.filename


def check_target(path: str, *, overwrite: bool = False) -> None:
    """Find out whether a file could be written, before much is read for it.

    Raises:
        PhysviewError: As `whole_file()`.
    """
    what = f"cannot write {path}"
    if path in ("", "-"):
        raise PhysviewError(what, "a file is meant, which can be written whole", "name one")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise PhysviewError(what, f"there is no folder {folder}", "make it", path=path)
    if not os.access(folder, os.W_OK | os.X_OK):
        why = f"the folder {folder} is not yours to write to"
        raise PhysviewError(what, why, "choose another folder", path=path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise PhysviewError(what, error.strerror or "", path=path) from None
    if stat.S_ISDIR(mode):
        raise PhysviewError(what, "it is a folder", "name a file in it", path=path)
    if not stat.S_ISREG(mode):
        why = "it is a device or a pipe"
        raise PhysviewError(what, why, "a regular file is needed", path=path)
    if not overwrite:
        why = "it is there already"
        raise PhysviewError(what, why, "choose another name, or add --force", path=path)
