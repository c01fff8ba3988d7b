# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called sudo: whom files are given to that root makes for a person."""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.digits import bounded_int
from physview.errors import UsageError

MAX_ID = (1 << 32) - 2
"""uid_t has 32 bits, and the last of them means no change. Source: chown(2)"""


class Caller(NamedTuple):
    """A user and a group."""

    uid: int
    gid: int


def sudo_caller() -> Caller | None:
    """Who called sudo, by its SUDO_UID and SUDO_GID; None where nobody did, or we are not root.

    Raises:
        UsageError: They are set, and are no numbers of a user and a group.
    """
    words = [os.environ.get(name, "") for name in ("SUDO_UID", "SUDO_GID")]
    if os.geteuid() != 0 or not any(words):
        return None
    ids = [bounded_int(w, MAX_ID) if w.isascii() and w.isdigit() else MAX_ID + 1 for w in words]
    if max(ids) > MAX_ID:
        raise UsageError(
            "it is not known who called sudo",
            f"SUDO_UID={words[0]!r} and SUDO_GID={words[1]!r} are no user and group",
            "unset both, or set both",
        )
    return Caller(*ids)
