# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds and removes what has not been used in the cache for long.

Only what physview itself puts there is looked at, by its place: kernels, modules that were built,
images, and packages and root folders of another architecture. Everything else in the cache stays.
What a VM uses stays, too: it is locked as long as the VM runs (`cache.held()`).

The last use is the time of the last change of a file's metadata (ctime): `cache.mark_used()` makes
one. Unlike other times, it does not come with a file from an archive.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import PhysviewError, of_path
from physview.kernels.cache import cache_dir, locked_if_free

_DAY_SECONDS = 86400
# A process that makes something takes minutes. What is older is left of one that was killed.
_LEFT_SECONDS = _DAY_SECONDS
_OLD, _LOCK = ".old-", ".lock"


class Unused(NamedTuple):
    """A file or folder of the cache that can be removed.

    Args:
        path: Its path in the cache, such as "kernels/6.1.0-56-amd64".
        size_bytes: The disk space that it takes, in bytes.
        last_used: When it was used last, in seconds since 1970.
        why: Why it can be removed.
    """

    path: str
    size_bytes: int
    last_used: float
    why: str


def find_unused(older_than_days: float, now: float | None = None) -> list[Unused]:
    """Return what can be removed from the cache, the longest unused first.

    Args:
        older_than_days: What was used in so many last days stays.
        now: The time of `time.time()`; by default the present.

    Raises:
        AccessDenied: A user other than root and the caller could change the files there.
        PhysviewError: The cache can't be read.
    """
    now = time.time() if now is None else now
    oldest = now - older_than_days * _DAY_SECONDS
    found = []
    for folder, names in _folders():
        for name in names:
            path = f"{folder}/{name}"
            used = _last_used(cache_dir() / path)
            why = _why_unused(folder, name, used, now, oldest)
            if why and not _is_in_use(path):
                found.append(Unused(path, _size_of(cache_dir() / path), used, why))
    return sorted(found, key=lambda each: each.last_used)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_ctime
    except OSError:  # a link that leads nowhere
        return path.lstat().st_ctime


def _why_unused(folder: str, name: str, used: float, now: float, oldest: float) -> str:
    if name.startswith("."):
        is_left = now - used > _LEFT_SECONDS
        return "left by a process that was killed" if is_left else ""
    if folder.startswith("modules/") and not _has_kernel(folder.partition("/")[2]):
        return "its kernel is gone"
    if used > oldest:
        return ""
    days = int((now - used) / _DAY_SECONDS)
    return f"not used for {days} {'day' if days == 1 else 'days'}" if days else "not in use"


def _has_kernel(release: str) -> bool:
    if not release[0].isdigit():  # a developer's own, which is elsewhere
        return True
    installed = Path("/lib/modules", release)
    return os.path.lexists(cache_dir("kernels") / release) or installed.exists()


def _folders() -> Iterator[tuple[str, list[str]]]:
    """Yield the folders of the cache that have what can be removed, each with these names."""
    for kind in _kinds():
        yield kind, [name for name in _names(kind) if name[0] != "." or not name.endswith(_LOCK)]


def _kinds() -> list[str]:
    modules = [f"modules/{release}" for release in _names("modules") if release[0] != "."]
    return ["kernels", "images", "packages", "roots", *modules]


def _names(folder: str) -> list[str]:
    path = cache_dir(*folder.split("/"))
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise of_path(f"cannot read {path}", error, str(path)) from None


def _size_of(path: Path) -> int:
    """The disk space of a file or folder. A file with several names counts once."""
    seen, size_bytes = set(), 0
    todo = [path]
    while todo:
        at = todo.pop()
        with contextlib.suppress(OSError):
            status = os.lstat(at)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size_bytes += status.st_blocks * 512
            if stat.S_ISDIR(status.st_mode):
                todo += [at / name for name in os.listdir(at)]
    return size_bytes


def _is_in_use(path: str) -> bool:
    with _lock(path) as is_free:
        return not is_free


@contextlib.contextmanager
def _lock(path: str) -> Iterator[bool]:
    """Lock something of the cache if nobody uses it; yield whether that is so."""
    try:
        fd = os.open(cache_dir() / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # unreadable, or a link that leads nowhere: no VM has it
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def remove(unused: Unused) -> bool:
    """Remove something from the cache, unless it was used meanwhile.

    Returns:
        Whether it was removed.

    Raises:
        PhysviewError: It can't be removed.
    """
    folder, _, name = unused.path.rpartition("/")
    # Who makes it, or looks for it, holds this lock meanwhile. ".X.new" is made with the lock of X.
    lock = name.removeprefix(".").removesuffix(".new")
    with locked_if_free(lock, *folder.split("/")) as is_free, _lock(unused.path) as is_unused:
        path = cache_dir(*folder.split("/")) / name
        try:
            if not (is_free and is_unused) or _last_used(path) > unused.last_used:
                return False
            # Half a folder must never look like a whole one.
            old = path.with_name(f"{_OLD}{name.lstrip('.')}-{os.getpid()}")
            os.rename(path, old)
            if stat.S_ISDIR(os.lstat(old).st_mode):
                shutil.rmtree(old)
            else:
                old.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            if isinstance(error, PhysviewError):
                raise
            raise of_path(f"cannot remove {path}", error, str(path)) from None
    return True


def remove_stale_locks() -> None:
    """Remove the files of locks of what is gone, and folders in which nothing is left."""
    for folder in _kinds():
        names, below = set(_names(folder)), folder.split("/")
        for lock in names:
            name = lock.removeprefix(".").removesuffix(_LOCK)
            if lock != f".{name}{_LOCK}" or name in names:
                continue
            with locked_if_free(name, *below) as is_free, contextlib.suppress(OSError):
                if is_free:
                    (cache_dir(*below) / lock).unlink()
        if len(below) > 1:  # of one kernel's modules
            with contextlib.suppress(OSError):
                cache_dir(*below).rmdir()


def size_of_cache() -> int:
    """The disk space that the cache takes, in bytes."""
    return _size_of(cache_dir())
