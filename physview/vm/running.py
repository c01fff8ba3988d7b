# SPDX-License-Identifier: GPL-2.0-or-later
"""The VMs that were started by name: the folder in which their keepers can be reached.

The folder is $PHYSVIEW_VMS, or `vms` in the cache, with mode 0700. A VM has two files there:
NAME.lock, which its keeper holds locked, and the socket NAME.socket. The kernel drops the lock when
the keeper ends in whatever way, so files that a killed keeper left are known, and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from physview.errors import AccessDenied, PhysviewError, UsageError, of_path
from physview.files import trusted
from physview.kernels import make_cache_dir
from physview.runtime import invocation

DEFAULT_NAME = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_LOCK, _SOCKET = ".lock", ".socket"
_SECONDS_FOR_LOCK = 0.5


def check_name(name: str) -> str:
    """Return the name of a VM if it may be one.

    Raises:
        UsageError: It may not.
    """
    if not _NAME.fullmatch(name) or name.endswith((_LOCK, _SOCKET)):
        remedy = "use up to 32 letters, digits, _, . and -, with a letter or digit first"
        raise UsageError(f"'{name}' is no name for a VM", "", remedy)
    return name


@contextlib.contextmanager
def opened_folder() -> Iterator[int]:
    """Open the folder of the VMs, which nobody else may enter. It is made if it is missing.

    Yields:
        Its descriptor.

    Raises:
        AccessDenied: A user other than root and the caller could change the folder.
        PhysviewError: The folder can't be made.
    """
    path = _make_folder()
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            why, remedy = "it belongs to another user", "set PHYSVIEW_CACHE to a folder of your own"
            raise AccessDenied(f"cannot keep VMs in {path}", why, remedy, path=str(path))
        os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)


def _make_folder() -> Path:
    chosen = os.environ.get("PHYSVIEW_VMS")
    if not chosen:
        return make_cache_dir("vms")
    path = Path(chosen).absolute()
    try:
        trusted.make_folder(path)
    except OSError as error:
        raise of_path(f"cannot keep VMs in {path}", error, str(path)) from None
    return path


def taken(name: str) -> PhysviewError:
    """Return the error for a name that a VM has."""
    remedy = f"choose another name, or end it: {invocation.physview(f'vm stop {name}')}"
    return PhysviewError(f"the VM {name} runs already", "", remedy)


def claim(folder: int, name: str) -> int:
    """Take a name for a VM.

    Args:
        folder: The folder of the VMs.
        name: The name.

    Returns:
        The lock. The name is taken as long as a process has it open.

    Raises:
        PhysviewError: A VM has this name.
    """
    deadline = time.monotonic() + _SECONDS_FOR_LOCK  # a process that only looks holds it shortly
    while True:
        lock = _lock(folder, name, os.O_CREAT)
        if lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + _SOCKET, dir_fd=folder)
            return lock
        if time.monotonic() > deadline:
            raise taken(name)
        time.sleep(0.02)


def _lock(folder: int, name: str, flags: int = 0) -> int | None:
    """Lock a VM's name; None if its keeper holds the lock, or if the file is gone."""
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.open(name + _LOCK, flags, 0o600, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock may have removed the file.
        if os.fstat(lock).st_ino == os.stat(name + _LOCK, dir_fd=folder).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def remove(folder: int, name: str) -> None:
    """Remove the files of a VM whose lock this process has."""
    for suffix in (_SOCKET, _LOCK):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + suffix, dir_fd=folder)


def names(folder: int) -> list[str]:
    """Return the names of the VMs that run. Files of others are removed."""
    found = []
    for file in sorted(os.listdir(folder)):
        name = file.removesuffix(_LOCK)
        if name == file or not _NAME.fullmatch(name):
            continue
        lock = _lock(folder, name)
        if lock is None:
            found.append(name)
        else:
            remove(folder, name)
            os.close(lock)
    return found


def listen(folder: int, name: str) -> socket.socket:
    """Return a socket on which the clients of a VM are accepted."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_path(folder, name))
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(folder: int, name: str) -> socket.socket | None:
    """Connect to the keeper of a VM; None if there is no such VM."""
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.connect(_path(folder, name))
    except (FileNotFoundError, ConnectionRefusedError):
        connected.close()
        return None
    except BaseException:
        connected.close()
        raise
    return connected


def _path(folder: int, name: str) -> str:
    # The path of a socket has at most 107 bytes, and the cache's can be longer.
    return str(Path(f"/proc/self/fd/{folder}", name + _SOCKET))


def wait_until_gone(folder: int, name: str, seconds: float) -> bool:
    """Wait until a VM's keeper has ended and its files are gone; return whether that is so."""
    deadline = time.monotonic() + seconds
    while name in names(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def choose(folder: int, name: str | None) -> str:
    """Return the VM that a command means: the named one, or the one called DEFAULT_NAME.

    It is never another one: that may be somebody else's, or another script's.

    Raises:
        UsageError: The name is none.
        PhysviewError: It does not run.
    """
    running = names(folder)
    wanted = DEFAULT_NAME if name is None else check_name(name)
    if wanted in running:
        return wanted
    start = invocation.physview("vm start" if name is None else f"vm start {name}")
    if not running:
        raise PhysviewError("no VM runs", "", f"start one: {start}")
    why = f"these run: {', '.join(running)}"
    raise PhysviewError(f"no VM {wanted} runs", why, f"name one of them, or start one: {start}")
