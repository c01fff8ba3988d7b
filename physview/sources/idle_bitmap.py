# SPDX-License-Identifier: GPL-2.0-or-later
"""The idle bitmap: one bit for each frame, which is clear once anybody used the frame.

Whoever sets a bit makes the kernel clear the accessed bits of this frame in all processes that map
it. The kernel remembers that it did so, so reclaim still sees these pages as used. It does not
flush TLBs. A read of the bitmap looks at the accessed bits again, and clears them again.

Only frames on the lists of reclaim (KPF_LRU) have such a bit, and a folio has one bit for all of
its pages: that of its first frame.

Source: Documentation/admin-guide/mm/idle_page_tracking.rst, mm/page_idle.c
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from physview.errors import Unsupported, of_path
from physview.files.descriptor import Descriptor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PATH = "/sys/kernel/mm/page_idle/bitmap"
_KPAGEFLAGS = "/proc/kpageflags"
_LRU, _HEAD, _TAIL = 1 << 5, 1 << 15, 1 << 16
_BLOCK = 512


class IdleBitmap(Descriptor):
    """The idle bitmap, open for reading and writing.

    Raises:
        AccessDenied: Only root may.
        Unsupported: This kernel has none.
    """

    def __init__(self) -> None:
        what = f"cannot open {PATH}"
        self._flags_fd = -1
        try:
            self._fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._flags_fd = os.open(_KPAGEFLAGS, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                self.close()
                raise
        except FileNotFoundError:
            why = "this kernel was built without idle page tracking"
            remedy = "use --by accessed, or a kernel with CONFIG_IDLE_PAGE_TRACKING=y"
            raise Unsupported(what, why, remedy) from None
        except OSError as error:
            raise of_path(what, error, PATH) from None

    def close(self) -> None:
        """Close both files. Closing twice is harmless."""
        if self._flags_fd >= 0:
            os.close(self._flags_fd)
            self._flags_fd = -1
        super().close()

    def heads(self, pfns: npt.NDArray[np.uint64]) -> tuple[Any, npt.NDArray[np.bool_]]:
        """Find the frames whose bits say something of these frames.

        Args:
            pfns: Frame numbers, shape (n,).

        Returns:
            The first frame of the folio of each, and whether it has a bit at all.
        """
        import numpy as np

        heads, tells = pfns.copy(), np.zeros(len(pfns), dtype=np.bool_)
        blocks, which = np.unique(pfns // np.uint64(_BLOCK), return_inverse=True)
        order = np.argsort(which, kind="stable")
        borders = np.searchsorted(which[order], np.arange(len(blocks) + 1))
        for number, block in enumerate(blocks.tolist()):
            flags = np.zeros(_BLOCK, dtype=np.uint64)
            data = os.pread(self._flags_fd, _BLOCK * 8, block * _BLOCK * 8)
            flags[: len(data) // 8] = np.frombuffer(data, dtype=np.uint64)
            is_head = flags & np.uint64(_HEAD) != 0
            last_head = np.maximum.accumulate(np.where(is_head, np.arange(_BLOCK), -1))
            mine = order[borders[number] : borders[number + 1]]
            places = (pfns[mine] % np.uint64(_BLOCK)).astype(np.intp)
            is_tail = flags[places] & np.uint64(_TAIL) != 0
            head_places = np.where(is_tail, last_head[places], places)
            heads[mine] = block * _BLOCK + np.maximum(head_places, 0)
            tells[mine] = (head_places >= 0) & (flags[head_places] & np.uint64(_LRU) != 0)
        return heads, tells

    def mark(self, pfns: npt.NDArray[np.uint64]) -> None:
        """Set the bits of frames.

        Args:
            pfns: Frame numbers, sorted and different, shape (n,).

        Raises:
            PhysviewError: The kernel reports an error.
        """
        import numpy as np

        words, which = np.unique(pfns >> np.uint64(6), return_inverse=True)
        values = np.zeros(len(words), dtype=np.uint64)
        np.bitwise_or.at(values, which, np.uint64(1) << (pfns & np.uint64(63)))
        for first, last in _runs(words):
            try:
                os.pwrite(self._fd, values[first:last].tobytes(), int(words[first]) * 8)
            except OSError as error:
                raise of_path(f"cannot write {PATH}", error, PATH) from None

    def read(self, pfns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Whether frames are idle: nobody used them since their bits were set.

        Args:
            pfns: Frame numbers, shape (n,).

        Raises:
            PhysviewError: The kernel reports an error.
        """
        import numpy as np

        words, which = np.unique(pfns >> np.uint64(6), return_inverse=True)
        values = np.zeros(len(words), dtype=np.uint64)
        for first, last in _runs(words):
            try:
                data = os.pread(self._fd, (last - first) * 8, int(words[first]) * 8)
            except OSError as error:
                raise of_path(f"cannot read {PATH}", error, PATH) from None
            got = np.frombuffer(data[: len(data) & ~7], dtype=np.uint64)
            values[first : first + len(got)] = got
        idle: npt.NDArray[np.bool_] = (values[which] >> (pfns & np.uint64(63))) & np.uint64(1) != 0
        return idle


def _runs(words: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """The runs of numbers that follow each other, as indices (first, after the last)."""
    import numpy as np

    if not len(words):
        return []
    cuts = np.flatnonzero(np.diff(words) > 1) + 1
    edges = [0, *cuts.tolist(), len(words)]
    # One call reads or writes a page at most: sysfs cuts longer ones.
    return [
        (at, min(at + _BLOCK, last))
        for first, last in itertools.pairwise(edges)
        for at in range(first, last, _BLOCK)
    ]
