# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the process that the user named on the command line."""

from __future__ import annotations

import os
import re

from physview.errors import ProcessGone, UsageError
from physview.runtime import proc_mount
from physview.text.digits import bounded_int

MAX_LISTED = 8
MAX_COMM = 15  # TASK_COMM_LEN without the terminating 0


def find_pid(text: str) -> int | str:
    """Find the process that `text` names.

    Args:
        text: A pid, "self", or a name that exactly one process has. The name is the comm, or the
            file name of the program.

    Returns:
        The pid, or "self" for this process. A pid is not checked: the process may not exist.

    Raises:
        UsageError: Several processes have that name, or the pid is not positive.
        ProcessGone: No process has that name.
    """
    if text == "self":
        return text
    if not text:
        raise UsageError("'' is no process", "the name is empty", "ps -e lists the processes")
    if re.fullmatch("[+-][0-9]+|0+", text):
        raise UsageError(f"'{text}' is no pid", "pids are positive", "ps -e lists the processes")
    if re.fullmatch("[0-9]+", text):
        # The limit is above every pid. int() also removes leading zeros: "0012" is /proc/12.
        return bounded_int(text, (1 << 31) - 1)
    missing = proc_mount.why_no_file("/proc/self")
    if missing:
        raise ProcessGone(f"no process is named '{text}'", *missing)
    pids = _pids_named(text)
    if not pids:
        raise ProcessGone(
            f"no process is named '{text}'", "none that you may see", "ps -e lists the processes"
        )
    if len(pids) > 1:
        listed = ", ".join(map(str, pids[:MAX_LISTED])) + (", …" if len(pids) > MAX_LISTED else "")
        raise UsageError(
            f"'{text}' is ambiguous",
            f"{len(pids)} processes have that name",
            f"choose one of {listed}",
        )
    return pids[0]


def _pids_named(name: str) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        program = (process.info["cmdline"] or [""])[0]
        full = process.info["name"] or ""  # psutil completes a name that the kernel has truncated
        if (
            name in (full, full[:MAX_COMM], os.path.basename(program))
            and process.pid != os.getpid()
        ):
            found.append(process.pid)
    return sorted(found)
