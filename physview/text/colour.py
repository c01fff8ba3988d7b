# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether text may have colours, and whether the terminal knows escape sequences.

Sources: no-color.org and bixense.com/clicolors
"""

from __future__ import annotations

import os
from typing import TextIO


def knows_escapes() -> bool:
    """Whether TERM names a terminal that knows escape sequences."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream shall have colours: a terminal, if no environment variable says otherwise.

    NO_COLOR turns colours off. CLICOLOR_FORCE, if it is not 0, turns them on, in a pipe, too.
    CLICOLOR=0 turns them off.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if os.environ.get("CLICOLOR") == "0":
        return False
    return stream.isatty() and knows_escapes()
