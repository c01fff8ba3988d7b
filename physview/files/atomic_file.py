# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes files completely or not at all, and only in the folder that the caller meant.

Every file that a command or the API writes is written by this module. `output_target.Target` finds
the folder; all further steps use descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeGuard

from physview.errors import PhysviewError
from physview.files.caller import sudo_caller
from physview.files.output_target import Access, Target

# Errors of file systems without O_TMPFILE, such as vfat, 9p and NFS. EISDIR: Linux before 3.11.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS, errno.EINVAL)
# Errors of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TERMINATING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def whole_file(path: str, *, overwrite: bool = False, private: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when all of it is written.

    Until then the file has no name (O_TMPFILE), so nothing is left behind if the process ends. A
    file system without O_TMPFILE needs a hidden name instead. The hidden name is removed on every
    error and signal except SIGKILL.

    A new file belongs to the caller; under sudo, to the user who called sudo. A file that replaces
    another file keeps the owner of the old file, except in the caller's own folder.

    Args:
        path: The name of the file.
        overwrite: Whether to replace an existing file of this name.
        private: Whether only its owner may read the file, because it has data that only root may
            see.

    Raises:
        PhysviewError: The file exists, cannot be written, or could be redirected by another user.
    """
    what = f"cannot write {path}"
    with Target(path) as target:
        target.check(overwrite=overwrite)
        partial = _UnfinishedFile(target)
        with contextlib.closing(partial):
            try:
                partial.create(0o600 if private else 0o666)
            except OSError as error:
                why = f"{target.folder}: {error.strerror}"
                raise PhysviewError(what, why, "choose another folder") from None
            try:
                with open(partial.fd, "wb", closefd=False) as file:
                    yield file
                os.fsync(partial.fd)
                partial.name_it(overwrite=overwrite)
            except BaseException as error:
                if _is_write_error(error):
                    why = error.strerror or str(error)
                    raise PhysviewError(what, why, "no part of the file was kept") from None
                raise


def _is_write_error(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error is about the written file. An error with a file name is about another."""
    if isinstance(error, PhysviewError) or not isinstance(error, OSError):
        return False
    return error.errno is not None and not error.filename


def check_target(path: str, *, overwrite: bool = False) -> None:
    """Check whether a file could be written, before the work that produces its contents.

    Args:
        path: The name of the file.
        overwrite: Whether an existing file of this name would be replaced.

    Raises:
        PhysviewError: As in `whole_file()`.
    """
    with Target(path) as target:
        target.check(overwrite=overwrite)


def note_on_folder(path: str) -> str:
    """A warning if other users can replace the written file; an empty text if they cannot."""
    with Target(path) as target:
        if target.access is not Access.SHARED:
            return ""
        return f"others may write to the folder {target.folder}, and so replace {path}"


class _UnfinishedFile:
    """A file that is being written; `close()` removes it unless it has got its name."""

    def __init__(self, target: Target) -> None:
        self.fd = -1
        self._target = target
        self._hidden = ""  # its temporary name; empty if it has none
        self._signals = contextlib.ExitStack()

    def create(self, mode: int) -> None:
        """Create the file, without a name if the file system supports O_TMPFILE."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            self.fd = os.open(".", flags | os.O_TMPFILE, mode, dir_fd=self._target.fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        else:
            if self._has_link():
                return
            os.close(self.fd)  # without /proc, linkat() could never give it a name
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self.fd = os.open(self._hide(), flags, mode, dir_fd=self._target.fd)

    def close(self) -> None:
        """Close the file, and remove it unless it has got its name."""
        self._remove()
        self._signals.close()
        if self.fd >= 0:
            os.close(self.fd)

    def name_it(self, *, overwrite: bool) -> None:
        """Give the file its owner and its name.

        Raises:
            PhysviewError: Another process has made a file of this name meanwhile.
        """
        old = self._target.check(overwrite=overwrite)
        self._set_owner(old)
        if old is None:
            try:
                self._link(self._target.name)
                return
            except FileExistsError:
                self._target.check(overwrite=overwrite)
            except OSError as error:
                if not self._hidden or error.errno not in _NO_LINKS:
                    raise
        if not self._hidden:
            # linkat() cannot replace a file, but rename() can. So give it a hidden name first.
            self._link(self._hide())
        folder = self._target.fd
        os.rename(self._hidden, self._target.name, src_dir_fd=folder, dst_dir_fd=folder)
        self._hidden = ""

    def _link(self, name: str) -> None:
        folder = self._target.fd
        # Link the descriptor: the hidden name may belong to another file by now.
        source = f"/proc/self/fd/{self.fd}"
        if not self._has_link():
            source = self._hidden
        os.link(
            source, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=source[0] == "/"
        )

    def _has_link(self) -> bool:
        """Whether the file can be linked through its descriptor in /proc."""
        try:
            found = os.stat(f"/proc/self/fd/{self.fd}")
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self.fd))

    def _hide(self) -> str:
        """Choose a hidden name; from now on a terminating signal removes the name first."""
        self._signals.enter_context(_before_termination(self._remove))
        name = os.fsdecode(os.fsencode(self._target.name)[:200])  # NAME_MAX is 255 bytes
        self._hidden = f".{name}.{secrets.token_hex(8)}.part"
        return self._hidden

    def _set_owner(self, old: os.stat_result | None) -> None:
        ids: tuple[int, int] | None = sudo_caller()
        if old is not None and os.geteuid() == 0:
            own_folder = ids is not None and self._target.folder_uid == ids[0]
            ids = ids if own_folder else (old.st_uid, old.st_gid)
        if ids is not None:
            with contextlib.suppress(OSError):  # for example vfat, which has no owners
                os.fchown(self.fd, *ids)

    def _remove(self) -> None:
        """Remove the hidden name if it still belongs to this file."""
        hidden, self._hidden = self._hidden, ""
        if not hidden:
            return
        with contextlib.suppress(OSError):
            found = os.stat(hidden, dir_fd=self._target.fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.fstat(self.fd)):
                os.unlink(hidden, dir_fd=self._target.fd)


@contextlib.contextmanager
def _before_termination(clean_up: Callable[[], None]) -> Iterator[None]:
    """Call `clean_up` before a signal ends the process.

    Signals that are already caught or ignored stay as they are. Only the main thread can set signal
    handlers: in another thread nothing is set up, and a signal ends the process without the call.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, _frame: object) -> None:
        clean_up()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    handled = [each for each in _TERMINATING_SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    try:
        for each in handled:
            signal.signal(each, end)
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
