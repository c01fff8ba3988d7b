# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, each with what failed, why, and what to do.

Every error is a `PhysviewError`, and most are the builtin of the same meaning too, so that a
caller may catch either. They carry the pid or path they are about, and they pickle.
"""

from __future__ import annotations

from errno import EACCES, ENODEV, ENOTTY, EOPNOTSUPP, ESRCH
from typing import Any

from physview.text.quoting import printable


class PhysviewError(Exception):
    """Base of all errors that physview raises. Its text is one line, whatever names are in it.

    Args:
        what: What failed.
        why: Why it failed.
        remedy: What to do about it; empty where nothing can be done.
        lines: Lines below these, such as of a log.
        pid: The process it is about.
        path: The file it is about.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        lines: tuple[str, ...] = (),
        *,
        pid: int | None = None,
        path: str | None = None,
    ) -> None:
        text = "; ".join(filter(None, [": ".join(filter(None, [what, why])), remedy]))
        super().__init__("\n".join(map(printable, (text, *lines))))
        self._parts = (what, why, remedy, lines)
        self.pid = pid
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._parts, self.pid, self.path)


def _rebuild(
    kind: type[PhysviewError],
    parts: tuple[str, str, str, tuple[str, ...]],
    pid: int | None,
    path: str | None,
) -> PhysviewError:
    return kind(*parts, pid=pid, path=path)


class UsageError(PhysviewError, ValueError):
    """An argument that cannot be meant: the caller has to say something else."""

    exit_code = 2


class AccessDenied(PhysviewError, PermissionError):
    """The kernel refuses this user, who may run it as root."""

    errno = EACCES


class ProcessGone(PhysviewError, ProcessLookupError):
    """There is no such process, or it ended or ran another program while it was read."""

    errno = ESRCH


class NoUserMemory(PhysviewError, ProcessLookupError):
    """The process has no user address space: a kernel thread or a zombie."""

    errno = ESRCH


class Unsupported(PhysviewError, OSError):
    """This kernel was built without what is asked for, or is too old for it."""

    errno = EOPNOTSUPP


class CoreUnavailable(PhysviewError, ImportError):
    """The compiled core, physview._native, is not built or does not load."""


class ModuleUnavailable(PhysviewError, OSError):
    """The kernel module is not loaded, or cannot be."""

    errno = ENODEV


class AbiMismatch(PhysviewError, OSError):
    """The module that is loaded is not one that can answer this."""

    errno = ENOTTY
