# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a file of /proc is missing if neither the kernel nor the process is the reason.

/proc may be not mounted, mounted with subset=pid (no machine-wide files), or mounted with hidepid
(processes of other users look as if they did not exist).

Source: Documentation/filesystems/proc.rst, chapter 4
"""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.runtime import invocation


class Missing(NamedTuple):
    """Why, and what to do about it."""

    why: str
    remedy: str


def why_no_file(path: str) -> Missing | None:
    """Why a file of the machine or of this process is missing; None if the kernel lacks the file.

    Args:
        path: The file, as "/proc/kpageflags", which could not be found.
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
    """Whether a /proc of this pid namespace is mounted."""
    return os.path.lexists("/proc/self")


def is_hidden(pid: int) -> bool:
    """Whether a process exists that /proc does not show: hidepid hides it.

    Args:
        pid: A process or a thread.

    Source: has_pid_permissions() in fs/proc/base.c; kill(2)
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
