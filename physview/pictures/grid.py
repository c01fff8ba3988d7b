# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory as rows of cells. A cell stands for a fixed number of contiguous frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from physview.memory.rows import split_at
from physview.model import PAGE_SHIFT
from physview.sources.ram import Resource
from physview.units import pages_size

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.pictures.runs import Runs

CELLS_SHIFT = 7
CELLS_PER_ROW = 1 << CELLS_SHIFT
MAX_ROWS = 112
# The name of a hole takes the room of this many rows.
ROWS_PER_HOLE = 4


class Block(NamedTuple):
    """Contiguous rows that all have RAM.

    Args:
        first_row: The row's first frame divided by the frames of a row.
        nr_rows: How many rows.
        hole: The name of the hole before this block; empty for the first block.
    """

    first_row: int
    nr_rows: int
    hole: str


class Grid(NamedTuple):
    """The grid of cells that a picture draws RAM as. Each row has CELLS_PER_ROW cells.

    A row without any RAM is left out. In the other rows, cells without RAM are drawn empty.

    Args:
        shift: Frames in a cell, as a power of two.
        blocks: The rows, in order.
        holes: The name of the hole before each range of RAM; empty for the first.
    """

    shift: int
    blocks: tuple[Block, ...]
    holes: tuple[str, ...]

    @property
    def row_shift(self) -> int:
        """The number of frames in a row of cells, as a power of two."""
        return self.shift + CELLS_SHIFT

    @property
    def nr_rows(self) -> int:
        """The number of rows in all blocks."""
        return sum(block.nr_rows for block in self.blocks)

    def place(self, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The cells of frames, numbered through all rows.

        Args:
            pfns: int64 array, shape (n,): frames in the blocks.
        """
        import numpy as np

        firsts = np.array([block.first_row for block in self.blocks])
        skipped = firsts - np.cumsum([0, *(block.nr_rows for block in self.blocks[:-1])])
        block = np.searchsorted(firsts, pfns >> self.row_shift, side="right") - 1
        cells: npt.NDArray[np.int64] = (pfns >> self.shift) - (skipped[block] << CELLS_SHIFT)
        return cells


def make_grid(ram: list[tuple[int, int]], resources: list[Resource] | None) -> Grid:
    """Choose the number of frames in a cell so that all of RAM fits.

    Args:
        ram: (first frame, first frame after it), in order.
        resources: Those of /proc/iomem, for the names of holes; None if it is not known what the
            holes are, and whether they have RAM.
    """
    shift = 0
    while True:
        spans = _row_spans(ram, shift + CELLS_SHIFT)
        if sum(nr for _, nr in spans) + ROWS_PER_HOLE * (len(spans) - 1) <= MAX_ROWS:
            break
        shift += 1
    holes = ("", *(_name_hole(ram, resources, i) for i in range(1, len(ram))))
    blocks = []
    for first, nr in spans:
        after = next(i for i, (_, end) in enumerate(ram) if end > first << shift + CELLS_SHIFT)
        blocks.append(Block(first, nr, holes[after]))
    return Grid(shift, tuple(blocks), holes)


def _row_spans(ram: list[tuple[int, int]], row_shift: int) -> list[tuple[int, int]]:
    """(first row, number of rows) of contiguous rows that have RAM."""
    spans: list[tuple[int, int]] = []
    for first, end in ram:
        low, high = first >> row_shift, ((end - 1) >> row_shift) + 1
        if spans and low <= sum(spans[-1]):
            spans[-1] = (spans[-1][0], max(high, sum(spans[-1])) - spans[-1][0])
        else:
            spans.append((low, high - low))
    return spans


def _name_hole(ram: list[tuple[int, int]], resources: list[Resource] | None, index: int) -> str:
    """The name of the hole between a range of RAM and the one before it."""
    low, high = ram[index - 1][1] << PAGE_SHIFT, ram[index][0] << PAGE_SHIFT
    if resources is None:
        return f"{pages_size((high - low) >> PAGE_SHIFT)} in which no frame is named"
    inside = [
        (min(each.end, high) - max(each.start, low), each.name)
        for each in resources
        if each.depth == 0 and min(each.end, high) > max(each.start, low)
    ]
    names = list(dict.fromkeys(name for _, name in sorted(inside, reverse=True)))
    text = f"{pages_size((high - low) >> PAGE_SHIFT)} without RAM"
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{text}: {', '.join(names[:2])}{more}" if names else text


def count_cells(grid: Grid, runs: Runs, nr_kinds: int) -> npt.NDArray[np.int64]:
    """Count the frames of each kind in each cell.

    Args:
        grid: The cells.
        runs: All of RAM, each frame once.
        nr_kinds: The number of kinds.

    Returns:
        int64 array, shape (rows, CELLS_PER_ROW, kinds).
    """
    import numpy as np

    index, first, nr = split_at(runs["pfn"], runs["nr"], 1 << grid.shift)
    nr_cells = grid.nr_rows << CELLS_SHIFT
    key = grid.place(first) * nr_kinds + runs["kind"][index]
    counts = np.bincount(key, weights=nr, minlength=nr_cells * nr_kinds)
    return counts.astype(np.int64).reshape(grid.nr_rows, CELLS_PER_ROW, nr_kinds)
