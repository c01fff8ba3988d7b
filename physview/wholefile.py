# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, TypeGuard

from physview.errors import PhysviewError


@contextlib.contextmanager
def whole_file(path: str, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name only when all is written.

    Until then it lies beside it under a hidden name, and is removed if anything fails. Only its
    owner may read it: what it tells of physical memory is root's to see.

    Args:
        path: Its name.
        overwrite: Whether to replace a file of this name.

    Raises:
        PhysviewError: There is one already, or it cannot be written.
    """
    what = f"cannot write {path}"
    if path in ("", "-"):
        raise PhysviewError(what, "a file is meant, which can be written whole", "name one")
    path = os.path.realpath(path)  # what a symbolic link names is replaced, not the link
    _check_target(path, what, overwrite=overwrite)
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not os.path.isdir(folder):
            raise PhysviewError(what, f"there is no folder {folder}", "make it") from None
        raise PhysviewError(what, f"{folder}: {error.strerror}", "choose another folder") from None
    try:
        with open(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        _check_target(path, what, overwrite=overwrite)  # somebody else may have been quicker
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if _is_of_writing(error):
            why = error.strerror or str(error)
            raise PhysviewError(what, why, "nothing of it was kept") from None
        raise


def _is_of_writing(error: BaseException) -> TypeGuard[OSError]:
    """An error that names a file is of one that was read meanwhile."""
    if isinstance(error, PhysviewError) or not isinstance(error, OSError):
        return False
    return error.errno is not None and not error.filename


def _check_target(path: str, what: str, *, overwrite: bool) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise PhysviewError(what, error.strerror or "") from None
    if stat.S_ISDIR(mode):
        raise PhysviewError(what, "it is a folder", "name a file in it")
    if not stat.S_ISREG(mode):
        raise PhysviewError(what, "it is a device or a pipe", "a regular file is needed")
    if not overwrite:
        raise _exists(what)


def _exists(what: str) -> PhysviewError:
    return PhysviewError(what, "it is there already", "choose another name, or add --force")
