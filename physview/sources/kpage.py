# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads /proc/kpageflags, kpagecount and kpagecgroup, which have one value for each frame.

Source: fs/proc/page.c, include/uapi/linux/kernel-page-flags.h, tools/mm/page-types.c
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from physview import _ffi
from physview.errors import AccessDenied, Unsupported
from physview.files.descriptor import Descriptor
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE, PM_PFRAME_MASK, PM_PRESENT
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

FILES = {"flags": "kpageflags", "mapcount": "kpagecount", "cgroup": "kpagecgroup"}
"""The file that has each column of `rows.COLUMNS`, except the node."""

KPF_KSM = 1 << 21


@functools.cache
def false_flags() -> int:
    """The flags that this kernel tells wrongly in /proc/kpageflags: ksm, or none.

    Linux 6.12.117 and 6.12.118 call every anonymous page ksm, so that merged pages cannot be told
    from others. This is found by a look at a page of our own whose random contents no other page
    has.

    Returns:
        The bits of these flags. 0 if this user may not look.

    Source: stable_page_flags() in fs/proc/page.c tests `mapping & PAGE_MAPPING_KSM`, and
    PAGE_MAPPING_KSM has the bit PAGE_MAPPING_ANON.
    """
    try:
        flags_fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        pagemap_fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _flags_of_own_page(pagemap_fd, flags_fd) & KPF_KSM
        finally:
            os.close(pagemap_fd)
    except OSError:
        return 0
    finally:
        os.close(flags_fd)


def _flags_of_own_page(pagemap_fd: int, flags_fd: int) -> int:
    """Read the flags of an anonymous page with random contents; 0 if they cannot be read."""
    ffi, _ = _ffi.load()
    with mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        page[:32] = os.urandom(32)
        with ffi.from_buffer(page) as anchor:
            number = int(ffi.cast("uintptr_t", anchor)) >> PAGE_SHIFT
        entry = _read_u64(pagemap_fd, number)
        if not entry & PM_PRESENT or not entry & PM_PFRAME_MASK:
            return 0
        flags = _read_u64(flags_fd, entry & PM_PFRAME_MASK)
        # If the page moved meanwhile, the flags may be those of another page.
        return flags if _read_u64(pagemap_fd, number) == entry else 0


def _read_u64(fd: int, index: int) -> int:
    return int.from_bytes(os.pread(fd, 8, index * 8), "little")


class KpageFile(Descriptor):
    """One of the files of /proc that have a u64 for each frame of the machine.

    Args:
        name: "kpageflags", "kpagecount" or "kpagecgroup".

    Attributes:
        cleared: Flags that this kernel tells wrongly. All methods clear them.

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
        self.cleared = false_flags() if name == "kpageflags" else 0

    @property
    def core(self) -> tuple[Any, Any]:
        """The core's `ffi` and `lib`."""
        return self._ffi, self._lib

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
        return self.without_false({counts[i].value: counts[i].nr for i in range(nr)})

    def without_false(self, counts: dict[int, int]) -> dict[int, int]:
        """Clear the flags that this kernel tells wrongly: see `false_flags()`.

        Args:
            counts: Number of frames by value.
        """
        if not self.cleared:
            return counts
        found: dict[int, int] = {}
        for value, nr in counts.items():
            shown = value if value == NO_ENTRY else value & ~self.cleared
            found[shown] = found.get(shown, 0) + nr
        return found

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
            if self.cleared:
                values = pieces["value"][:nr]
                values[values != np.uint64(NO_ENTRY)] &= np.uint64(~self.cleared & NO_ENTRY)
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
