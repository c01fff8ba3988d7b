# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes copies of /proc/kpageflags: a u64 for each frame, from frame 0 on.

page-types -F reads the same format. A copy may come from anyone, so it is checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from physview import _ffi
from physview.errors import PhysviewError, UsageError
from physview.model import NO_ENTRY
from physview.runtime import invocation
from physview.sources.kpage import KPF_KSM, MAX_VALUES, KpageFile
from physview.sources.page_flags import FLAG_BITS

ITEM_BYTES = 8
# A copy of 64 TiB of RAM has so many bytes, if pages have 4 KiB.
MAX_BYTES = 1 << 37
CHUNK = 1 << 16

NOPAGE = 1 << FLAG_BITS["nopage"]
ANON = 1 << FLAG_BITS["anon"]
# No kernel sets these bits in kpageflags.
NEVER_SET = 0xFFFF << 48


class SavedFlags(KpageFile):
    """A copy of /proc/kpageflags in a regular file.

    Args:
        path: The file.

    Raises:
        UsageError: The file is no copy of kpageflags.
        PhysviewError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._ffi, self._lib = _ffi.load()
        self._path = path
        self.cleared = 0
        try:
            # Do not wait for a FIFO.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise PhysviewError(f"cannot read {path}", error.strerror or str(error)) from None
        try:
            self.nr_frames = self._check(os.fstat(self._fd))
        except BaseException:
            self.close()
            raise

    def _check(self, status: os.stat_result) -> int:
        if not stat.S_ISREG(status.st_mode):
            raise self.refusal("it is not a regular file")
        if not status.st_size or status.st_size % ITEM_BYTES:
            raise self.refusal(f"its size is no multiple of {ITEM_BYTES} bytes, or 0")
        if status.st_size > MAX_BYTES:
            raise self.refusal("it is larger than that of 64 TiB of RAM")
        return status.st_size // ITEM_BYTES

    def refusal(self, why: str) -> UsageError:
        """Make the error that this file is no copy of kpageflags."""
        remedy = f"make a copy with {invocation.physview('frames --save FILE')}"
        return UsageError(f"{self._path} is no copy of /proc/kpageflags", why, remedy)

    def without_false(self, counts: dict[int, int]) -> dict[int, int]:
        """Check the values of a count.

        Raises:
            UsageError: The values are no flags of frames.
        """
        if len(counts) > MAX_VALUES // 4:
            raise self.refusal("it has too many different values")
        for value in counts:
            if value == NO_ENTRY or value & NEVER_SET:
                raise self.refusal("it has values that are no flags, or it changes")
        return super().without_false(counts)


def has_false_ksm(counts: dict[int, int]) -> bool:
    """Whether a copy comes from a kernel that calls every anonymous page ksm.

    See `kpage.false_flags()`. Where pages are merged, not all anonymous pages are.
    """
    anon = [value for value in counts if value != NO_ENTRY and value & ANON]
    return bool(anon) and all(value & KPF_KSM for value in anon)


def save_flags(
    file: KpageFile,
    to: BinaryIO,
    ram: list[tuple[int, int]],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a copy of kpageflags. Frames that are no RAM get the flag nopage.

    Args:
        file: kpageflags of this machine.
        to: The file to write.
        ram: Ranges of RAM as (first frame, first frame after the range), in order.
        progress: Called with the number of frames that were written, and of all.

    Returns:
        The number of frames in the copy.
    """
    end = ram[-1][1]
    nopage = NOPAGE.to_bytes(ITEM_BYTES, "little")
    at = 0
    for low, high in ram:
        while at < high:
            if at < low:
                nr = min(low - at, CHUNK)
                to.write(nopage * nr)
            else:
                nr = min(high - at, CHUNK)
                values = os.pread(file.fd, nr * ITEM_BYTES, at * ITEM_BYTES)
                values += nopage * (nr - len(values) // ITEM_BYTES)
                to.write(_cleared(values, file.cleared))
            at += nr
            if progress:
                progress(at, end)
    return end


def _cleared(values: bytes, bits: int) -> bytes:
    if not bits:
        return values
    import numpy as np

    kept: bytes = (np.frombuffer(values, dtype=np.uint64) & np.uint64(~bits & NO_ENTRY)).tobytes()
    return kept
