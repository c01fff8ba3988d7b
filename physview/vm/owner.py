# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the process with whose end a VM ends: the leader of the caller's terminal session."""

from __future__ import annotations

import os

# Programs that make a session only for the command that they run. The user's own is the one above.
_PASSING_ON = ("sudo", "su", "doas", "runuser", "pkexec", "setsid", "script")


def find() -> int | None:
    """Return the pid of the leader of the session in which the user works: a shell, as a rule.

    Returns:
        None if there is none, or if it can't be found: the leader has ended, or /proc hides it.
    """
    pid = os.getpid()
    try:
        while True:
            leader = os.getsid(pid)
            if leader <= 0:  # it is outside of this pid namespace
                return None
            if leader != pid and _name(leader) not in _PASSING_ON:
                return leader
            pid = _parent(leader)
            if pid <= 0:
                return None
    except OSError:
        return None


def _name(pid: int) -> str:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return os.fsdecode(file.read()).removesuffix("\n")


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name, in parentheses, can hold anything. The state and the parent follow it.
        return int(file.read().rpartition(b") ")[2].split(b" ")[1])
