# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether a file of /proc is missing because of how /proc is mounted.

- /proc may not be mounted at all.
- /proc may be mounted with subset=pid: then it has no machine-wide files.
- /proc may be mounted with hidepid: then processes of other users seem not to exist.

Source: Documentation/filesystems/proc.rst, chapter 4
"""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.runtime import invocation


class Missing(NamedTuple):
    """Why a file is missing, and what to do about it."""

    why: str
    remedy: str


def why_no_file(path: str) -> Missing | None:
    """Why a machine-wide file, or a file of this process, is missing.

    Args:
        path: The file that was not found, such as "/proc/kpageflags".

    Returns:
        The reason; None if the mount is not the reason, so that the kernel lacks the file.
    """
    if not path.startswith("/proc/"):
        return None
    if not is_mounted():
        return Missing("/proc is not mounted", _mount())
    if path.startswith("/proc/self"):
        return None
    if not os.path.exists("/proc/filesystems") and not os.path.exists("/proc/version"):
        return Missing(
            "/proc is mounted with subset=pid, without the machine's own files",
            f"mount a complete one: {_mount()}",
        )
    return None


def _mount() -> str:
    return invocation.as_root("mount -t proc proc /proc")


def is_mounted() -> bool:
    """Whether /proc is mounted for this pid namespace."""
    return os.path.lexists("/proc/self")


def is_hidden(pid: int) -> bool:
    """Whether a process exists although /proc does not show it: then hidepid hides it.

    Args:
        pid: A process or a thread that was not found in /proc.

    Source: has_pid_permissions() in fs/proc/base.c; kill(2)
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
