# SPDX-License-Identifier: GPL-2.0-or-later
"""The user who called sudo, who becomes the owner of files that root writes."""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.errors import UsageError
from physview.text.digits import bounded_int

MAX_ID = (1 << 32) - 2
"""uid_t has 32 bits, and the last of them means no change. Source: chown(2)"""


class Caller(NamedTuple):
    """A user and a group."""

    uid: int
    gid: int


def sudo_caller() -> Caller | None:
    """The user who called sudo, by SUDO_UID and SUDO_GID; None without sudo or without root.

    Raises:
        UsageError: SUDO_UID or SUDO_GID is set, and they are not ids of a user and a group.
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
