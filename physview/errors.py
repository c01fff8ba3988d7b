# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors that physview raises. Each says what failed, why, and what to do.

All are subclasses of `PhysviewError`. Most are also subclasses of the builtin exception with the
same meaning, so that a caller may catch either. An error has the pid or the path that it is about.
Errors can be pickled.
"""

from __future__ import annotations

import os
from errno import EACCES, ENODEV, ENOTTY, EOPNOTSUPP, ESRCH
from typing import Any

from physview.text.quoting import printable


class PhysviewError(Exception):
    """Base class of all errors that physview raises.

    The text is "what: why; remedy", in one line: control characters in names are quoted.

    Args:
        what: What failed.
        why: Why it failed.
        remedy: What to do about it; "" if nothing can be done.
        lines: Further lines of text, such as those of a log.
        pid: The process that the error is about.
        path: The file that the error is about.
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

    @property
    def why(self) -> str:
        """Why it failed."""
        return self._parts[1]

    @property
    def remedy(self) -> str:
        """What to do about it; "" if nothing can be done."""
        return self._parts[2]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._parts, self.pid, self.path)


def _rebuild(
    kind: type[PhysviewError],
    parts: tuple[str, str, str, tuple[str, ...]],
    pid: int | None,
    path: str | None,
) -> PhysviewError:
    return kind(*parts, pid=pid, path=path)


def first_line(error: Exception) -> str:
    """The first line of what a library says of its error, without the blanks around it."""
    return str(error).lstrip("\n ").partition("\n")[0].rstrip(" ")


class UsageError(PhysviewError, ValueError):
    """An argument is not valid. The caller has to change it."""

    exit_code = 2


class AccessDenied(PhysviewError, PermissionError):
    """The kernel denies this user access. As root it may work."""

    errno = EACCES


class ProcessGone(PhysviewError, ProcessLookupError):
    """There is no such process, or the process ended or ran another program while it was read."""

    errno = ESRCH


class NoUserMemory(PhysviewError, ProcessLookupError):
    """The process has no user address space: a kernel thread or a zombie."""

    errno = ESRCH


class Unsupported(PhysviewError, OSError):
    """This kernel lacks a feature: it is too old, or was built without the feature."""

    errno = EOPNOTSUPP


class CoreUnavailable(PhysviewError, ImportError):
    """The compiled core, physview._native, is not built or does not load."""


class ModuleUnavailable(PhysviewError, OSError):
    """The kernel module is not loaded, or cannot be loaded."""

    errno = ENODEV


class AbiMismatch(PhysviewError, OSError):
    """The loaded kernel module has another interface, and cannot answer."""

    errno = ENOTTY


def of_path(what: str, error: OSError, path: str) -> PhysviewError:
    """Translate an OSError about a path.

    Args:
        what: What failed.
        error: Why.
        path: The path.
    """
    why = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return AccessDenied(what, why, "run as root" if os.geteuid() else "", path=path)
    return PhysviewError(what, why, path=path)
