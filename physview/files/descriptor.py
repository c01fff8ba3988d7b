# SPDX-License-Identifier: GPL-2.0-or-later
"""Base classes for objects that hold open files: close(), `with`, and one descriptor."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T", bound="Closable")


class Closable:
    """A context manager that calls close() at the end of the `with` block."""

    def close(self) -> None:
        """Close all open files of this object. Closing twice is harmless."""
        raise NotImplementedError

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Descriptor(Closable):
    """An object with one open descriptor. A subclass opens it and sets `_fd`."""

    _fd: int = -1

    @property
    def fd(self) -> int:
        """The descriptor; -1 after `close()`."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
