# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the user who called sudo. Files that root writes for this user belong to this user."""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.errors import UsageError
from physview.text.digits import bounded_int

MAX_ID = (1 << 32) - 2
"""The largest valid uid or gid: both have 32 bits, and -1 means "no change". Source: chown(2)"""


class Caller(NamedTuple):
    """The uid and gid of the user who called sudo."""

    uid: int
    gid: int


def sudo_caller() -> Caller | None:
    """Read the user who called sudo from SUDO_UID and SUDO_GID.

    Returns:
        The user; None if physview does not run as root, or was not started by sudo.

    Raises:
        UsageError: SUDO_UID or SUDO_GID is set, but they are not a valid uid and gid.
    """
    words = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if os.geteuid() != 0 or not any(words):
        return None
    ids = [bounded_int(w, MAX_ID) if w.isascii() and w.isdigit() else MAX_ID + 1 for w in words]
    if max(ids) > MAX_ID:
        raise UsageError(
            "cannot tell who called sudo",
            f"SUDO_UID={words[0]!r} and SUDO_GID={words[1]!r} are not a user and a group",
            "set both to numbers, or unset both",
        )
    return Caller(*ids)
