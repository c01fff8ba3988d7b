# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of a process for a picture: extents with their kinds, and mappings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.entry_rules import is_swapped
from physview.memory.extents import USER_END
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, PM_FILE, PM_MMAP_EXCLUSIVE, PM_PRESENT, Vma
from physview.pictures.bands import PageFrames
from physview.pictures.kinds import NO_KIND, PROCESS_KINDS, Kind, index_of, own_kind
from physview.pictures.runs import RUN_DTYPE
from physview.sources.page_flags import FLAG_BITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs

HUGETLB = 1 << FLAG_BITS["huge"]


class ProcessPages(NamedTuple):
    """The pages of a process at one time.

    Args:
        vmas: The mappings, in address order, without [vsyscall], which belongs to the kernel.
        rows: Structured array, shape (n,), of `snapshot.BASE_DTYPE`, flags and mapcount.
        kinds: uint8 array, shape (n,): indices in PROCESS_KINDS; NO_KIND for guards and markers.
        knows_frames: Whether rows have frame numbers and flags.
        nr_resident: Resident pages, counted as Rss in smaps: without zero pages and hugetlb.
        nr_exclusive: How many of them are mapped only once, as the kernel says.
    """

    vmas: list[Vma]
    rows: npt.NDArray[np.void]
    kinds: npt.NDArray[np.uint8]
    knows_frames: bool
    nr_resident: int
    nr_exclusive: int

    @property
    def has_frames(self) -> npt.NDArray[np.bool_]:
        """Bool array, shape (n,): which rows have a known frame of their own; zero pages do not."""
        import numpy as np

        own = [i for i, kind in enumerate(PROCESS_KINDS) if kind.is_subject]
        chosen: npt.NDArray[np.bool_] = self.rows["pfn"] != np.uint64(NO_ENTRY)
        return chosen & np.isin(self.kinds, own)

    @property
    def frames(self) -> Runs:
        """The frames that the process maps. A frame that is mapped twice is there twice."""
        (placed,) = self.page_frames
        return placed.frames

    @property
    def page_frames(self) -> list[PageFrames]:
        """The rows with frames, each once."""
        import numpy as np

        chosen = np.flatnonzero(self.has_frames)
        rows = self.rows[chosen]
        frames: Runs = np.empty(len(chosen), dtype=RUN_DTYPE)
        frames["pfn"], frames["nr"], frames["kind"] = (
            rows["pfn"],
            rows["nr_pages"],
            self.kinds[chosen],
        )
        return [PageFrames(chosen, frames)]

    @property
    def all_kinds(self) -> tuple[Kind, ...]:
        """The kinds of its pages and frames."""
        return PROCESS_KINDS

    @property
    def is_changed(self) -> None:
        """None, as the pages were read at one time only."""
        return None


def read_process_pages(
    snapshot: Snapshot,
    *,
    with_mapcount: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> ProcessPages:
    """Read all pages of a process.

    Args:
        snapshot: The process.
        with_mapcount: Whether to read also how often each frame is mapped. Some kernels had a bug
            in this file.
        progress: Called with how many pages were read, and None.

    Raises:
        ProcessGone: It ended or started another program meanwhile.
    """
    import numpy as np

    columns = ["flags", "mapcount"] if with_mapcount else ["flags"]
    batches: list[Any] = []
    nr_pages = 0
    for rows in snapshot.iter_extents(columns=columns if snapshot.knows_frames else ()):
        batches.append(rows)
        nr_pages += int(rows["nr_pages"].sum())
        if progress:
            progress(nr_pages, None)
    if not batches:
        raise snapshot.proc.gone()  # every living process has pages
    rows = np.concatenate(batches)
    kinds = _kinds(rows, knows_frames=snapshot.knows_frames)
    present = rows["entry"] & np.uint64(PM_PRESENT) != 0
    counted = present & (kinds != index_of(PROCESS_KINDS, "zero"))
    if snapshot.knows_frames:
        known = rows["flags"] != np.uint64(NO_ENTRY)
        counted &= ~known | (rows["flags"] & np.uint64(HUGETLB) == 0)
    exclusive = counted & (rows["entry"] & np.uint64(PM_MMAP_EXCLUSIVE) != 0)
    return ProcessPages(
        [vma for vma in snapshot.vmas if vma.start < USER_END],
        rows,
        kinds,
        snapshot.knows_frames,
        int(rows["nr_pages"][counted].sum()),
        int(rows["nr_pages"][exclusive].sum()),
    )


def _kinds(rows: Any, *, knows_frames: bool) -> npt.NDArray[np.uint8]:
    """The kind of each row: looked up once for each combination of flags and entry bits."""
    import numpy as np

    entries = rows["entry"]
    has_frame = entries & np.uint64(PM_PRESENT) != 0
    is_file = entries & np.uint64(PM_FILE) != 0
    kinds = np.full(len(rows), NO_KIND, dtype=np.uint8)
    kinds[is_swapped(entries)] = index_of(PROCESS_KINDS, "swapped")
    flags = rows["flags"] if knows_frames else np.full(len(rows), NO_ENTRY, dtype=np.uint64)
    for file in (False, True):
        chosen = np.flatnonzero(has_frame & (is_file == file))
        distinct, where = np.unique(flags[chosen], return_inverse=True)
        table = [own_kind(int(value), is_file=file) for value in distinct]
        if table:
            kinds[chosen] = np.array(table, dtype=np.uint8)[where]
    return kinds
