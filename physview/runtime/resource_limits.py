# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognizes errors that are caused by a limit of this process, such as its memory.

Memory, open files and threads can run out anywhere: in an import, in the C library, in NumPy. Each
place raises a different exception, and the dynamic loader reports only a text. `reached()`
recognizes all of them.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

# Messages of dlopen(), CPython and Arrow. Python does not set LC_MESSAGES, so they are in English.
_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
_OF_FILES = ("Too many open files", "Error 24")
_OF_THREADS = ("can't start new thread", "Failed to launch worker thread")
_MAX_CHAIN = 20


class Limit(NamedTuple):
    """A limit that was reached.

    Args:
        why: Which limit.
        remedy: How to raise the limit.
    """

    why: str
    remedy: str


def allow_open_files() -> None:
    """Raise the limit of open files as far as this process may.

    Children keep the limit that they had: the caller starts none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def reached(error: BaseException) -> Limit | None:
    """Find the limit that caused an error.

    Args:
        error: The error. The errors that led to it (__cause__, __context__) are examined, too.

    Returns:
        The limit; None if the error has another cause.
    """
    for one in _chain(error):
        code = one.errno if isinstance(one, OSError) else None
        text = str(one) if code is None else ""
        if code in (errno.EMFILE, errno.ENFILE) or any(words in text for words in _OF_FILES):
            return _files(code)
        if (
            isinstance(one, MemoryError)
            or code == errno.ENOMEM
            or any(words in text for words in _OF_MEMORY)
        ):
            return _memory()
        # EAGAIN of fork() and clone() has no file name. EAGAIN of a write to a full non-blocking
        # pipe has none, either, but it has characters_written.
        is_fork = (
            code == errno.EAGAIN
            and isinstance(one, OSError)
            and not one.filename
            and not hasattr(one, "characters_written")
        )
        if is_fork or any(words in text for words in _OF_THREADS):
            return _threads()
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(_MAX_CHAIN):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def _files(code: int | None) -> Limit:
    if code == errno.ENFILE:
        return Limit(
            "the machine has reached its limit of open files", "raise fs.file-max (sysctl)"
        )
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Limit(
        f"too many open files: this process may open {most}", "raise the limit (ulimit -n 1024)"
    )


def _memory() -> Limit:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        return Limit(
            f"not enough memory: this process may have {most // 1024} KiB of address space",
            "raise the limit (ulimit -v)",
        )
    return Limit(
        "not enough memory", "free some memory, or raise the limit of the container or cgroup"
    )


def _threads() -> Limit:
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return Limit(
            "no new process or thread could be started", "raise the limits (ulimit -v, ulimit -u)"
        )
    which = "" if most == resource.RLIM_INFINITY else f": uid {os.getuid()} may have {most}"
    return Limit(
        f"no new process or thread could be started{which}",
        "end some processes, or raise the limit (ulimit -u, or the container's)",
    )
