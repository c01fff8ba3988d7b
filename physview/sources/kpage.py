# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads /proc/kpageflags, kpagecount and kpagecgroup, which have one value for each frame.

Source: fs/proc/page.c, include/uapi/linux/kernel-page-flags.h, tools/mm/page-types.c
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview import _ffi
from physview.errors import AccessDenied, Unsupported
from physview.files.descriptor import Descriptor
from physview.runtime import proc_mount
from physview.runtime.privileges import root_remedy

if TYPE_CHECKING:
    import numpy.typing as npt

FRAMES_DTYPE = [("pfn", "u8"), ("nr", "u8")]
"""A run of contiguous frames. pfn: the first frame number. nr: the number of frames."""

PIECE_DTYPE = [("run", "u8"), ("pfn", "u8"), ("nr", "u8"), ("value", "u8")]
"""A part of a run in which all frames have the same value.

run: index of the run. pfn: the first frame number. nr: the number of frames. value: their value.
"""

MAX_VALUES = 4096
PIECES = 1 << 14


class KpageFile(Descriptor):
    """One of the files of /proc that have a u64 for each frame of the machine.

    Args:
        name: "kpageflags", "kpagecount" or "kpagecgroup".

    Raises:
        AccessDenied: Only root may read the file.
        Unsupported: This kernel was built without the file, or /proc does not show it.
        CoreUnavailable: The core is not built.
    """

    def __init__(self, name: str) -> None:
        self._ffi, self._lib = _ffi.load()
        self._path = f"/proc/{name}"
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            what = f"cannot read {self._path}"
            if error.errno in (errno.EACCES, errno.EPERM):
                why = "only root may read what the kernel knows about frames"
                raise AccessDenied(what, why, root_remedy("SYS_ADMIN"), path=self._path) from None
            if error.errno != errno.ENOENT:
                raise
            missing = proc_mount.why_no_file(self._path)
            if missing:
                raise Unsupported(what, *missing, path=self._path) from None
            remedy = "use a kernel with CONFIG_PROC_PAGE_MONITOR=y"
            if name == "kpagecgroup":
                remedy = "use a kernel with CONFIG_PROC_PAGE_MONITOR=y and CONFIG_MEMCG=y"
            why = "this kernel was built without it"
            raise Unsupported(what, why, remedy, path=self._path) from None

    def count(self, runs: npt.NDArray[Any]) -> dict[int, int]:
        """Count the frames of runs by their value.

        Args:
            runs: Structured array of FRAMES_DTYPE, sorted by pfn. A frame in two runs counts twice.

        Returns:
            Number of frames by value. Frames that do not exist count under NO_ENTRY.

        Raises:
            OSError: The kernel reports an error.
        """
        return self._count(self._runs(runs), len(runs))

    def count_range(self, first: int, nr_frames: int) -> dict[int, int]:
        """Count the frames of one run by their value, as `count()` does, but without NumPy.

        Args:
            first: The first frame number.
            nr_frames: The number of frames.
        """
        return self._count(self._ffi.new("struct pv_frames *", (first, nr_frames)), 1)

    def count_buffer(self, runs: Any, nr_runs: int) -> dict[int, int]:
        """Count the frames of runs by their value, as `count()` does, but without NumPy.

        Args:
            runs: Buffer of the core, `struct pv_frames[]`.
            nr_runs: The number of runs.
        """
        return self._count(runs, nr_runs)

    def _count(self, runs: Any, nr_runs: int) -> dict[int, int]:
        counts = self._ffi.new("struct pv_count[]", MAX_VALUES)
        nr = self._lib.pv_count_values(self._fd, runs, nr_runs, counts, len(counts))
        _ffi.check(nr, self._path)
        return {counts[i].value: counts[i].nr for i in range(nr)}

    def iter_pieces(self, runs: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Split runs of frames where the value changes.

        Args:
            runs: Structured array of FRAMES_DTYPE. Reading is fastest if it is sorted by pfn.

        Yields:
            Structured arrays of PIECE_DTYPE, in the order of the runs. The next array overwrites
            the previous one.

        Raises:
            OSError: The kernel reports an error.
        """
        import numpy as np

        pieces = np.empty(PIECES, dtype=PIECE_DTYPE)
        buffer = self._ffi.cast("struct pv_piece *", pieces.ctypes.data)
        at, pfn = self._ffi.new("uint64_t *"), self._ffi.new("uint64_t *")
        runs_buffer = self._runs(runs)
        while at[0] < len(runs):
            nr = self._lib.pv_split_by_value(
                self._fd, runs_buffer, len(runs), at, pfn, buffer, len(pieces)
            )
            _ffi.check(nr, self._path)
            yield pieces[:nr]

    def split(self, frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Split runs as `iter_pieces()` does, but return all pieces at once, sorted by pfn.

        The frames are read in the order of their numbers, whatever the order of the runs is.

        Args:
            frames: Structured array of FRAMES_DTYPE, in any order.

        Returns:
            Structured array of PIECE_DTYPE, sorted by pfn; run is the index in `frames`.

        Raises:
            OSError: The kernel reports an error.
        """
        import numpy as np

        order = np.argsort(frames["pfn"], kind="stable")
        none = np.empty(0, dtype=PIECE_DTYPE)
        pieces: npt.NDArray[Any] = np.concatenate(
            [none, *(p.copy() for p in self.iter_pieces(frames[order]))]
        )
        pieces["run"] = order[pieces["run"].astype(np.intp)]
        return pieces

    def _runs(self, runs: npt.NDArray[Any]) -> Any:
        assert runs.dtype == FRAMES_DTYPE
        assert runs.flags.c_contiguous
        return self._ffi.cast("struct pv_frames *", runs.ctypes.data)
