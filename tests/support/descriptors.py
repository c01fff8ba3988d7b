# SPDX-License-Identifier: GPL-2.0-or-later
"""What the test's own process has open."""

import os
from collections.abc import Iterator


def open_files() -> set[tuple[int, int, int]]:
    """Return each open descriptor, with the device and the inode of its file.

    Whether a test leaves nothing open: `open_files() <= before`. They may differ in the other
    direction, because threads of earlier tests close what they had.
    """
    return set(_identities())


def _identities() -> Iterator[tuple[int, int, int]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(int(name))
        except OSError:
            continue  # closed by now, as the descriptor of this very list
        yield int(name), status.st_dev, status.st_ino
