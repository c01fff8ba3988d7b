# SPDX-License-Identifier: GPL-2.0-or-later
"""Lays a walk of the page tables out: the address on top, a column for each table, the frame last.

The drawing has one part for each step of the walk, so that a page can go through them. Part 0 is
always shown.
"""

from __future__ import annotations

from typing import NamedTuple

from physview.analysis.entry_bits import bit_names, meaning
from physview.analysis.walked_addresses import WalkedAddress, WalkedAddresses, WalkedLevel
from physview.pictures import walk_captions
from physview.pictures.shapes import Cells, Drawing, Line, Outline, Rect, Shape, Text, fit
from physview.pictures.walk_captions import WalkCaptions
from physview.pictures.walk_shapes import (
    BAND,
    BIT_PITCH,
    BITS_Y,
    FIELD_CAPTION_Y,
    FIELD_HEIGHT,
    FIELD_TOP,
    GAP,
    GRID_COLUMNS,
    GRID_HEIGHT,
    HEADER_Y,
    INDEX_Y,
    KERNEL,
    LEAST_BITS,
    LONG_NAME_Y,
    MARGIN,
    MORE,
    MOST_PITCH,
    NEIGHBOURS,
    ORIGIN_Y,
    PLACE_Y,
    ROW,
    TABLE_BOTTOM,
    TABLE_TOP,
    TAKEN,
    TAKEN_TOP,
    TITLE_Y,
    TRACK,
    WALK_KINDS,
    WIDTH,
    Column,
    address_words,
    badge,
    binary,
    columns_of,
    field,
    mono,
    path_to,
    shrunk,
    use_of,
    wrap,
)
from physview.sources.table_geometry import EntryUse, GeometryLevel
from physview.units import pfn_text, size_words


class WalkDrawing(NamedTuple):
    """A drawn walk.

    Args:
        captions: Its words.
        height: Of the drawing; its width is WIDTH.
        parts: The shapes of each step: part 0 is always shown, part 1 belongs to
            `captions.steps[0]`, and so on.
    """

    captions: WalkCaptions
    height: float
    parts: list[list[Shape]]

    def drawing(self) -> Drawing:
        """All parts as one drawing."""
        return self.drawing_of([shape for part in self.parts for shape in part])

    def drawing_of(self, shapes: list[Shape]) -> Drawing:
        """A drawing of this size with other shapes."""
        return Drawing(WIDTH, self.height, self.captions.title, WALK_KINDS, shapes)


def lay_out_walk(walks: WalkedAddresses, at: WalkedAddress) -> WalkDrawing:
    """Lay one of the walks out.

    Args:
        walks: All walks.
        at: Which of them.
    """
    captions = walk_captions.describe_walk(walks, at)
    return _Layout(walks, at, captions).draw()


class _Layout:
    """Lays one walk out, part by part."""

    def __init__(self, walks: WalkedAddresses, at: WalkedAddress, captions: WalkCaptions) -> None:
        self.walks, self.at, self.captions = walks, at, captions
        self.columns = columns_of(walks.geometry)
        self.names = [bit_names(level.read, walks.machine) for level in at.levels]
        lines = max([LEAST_BITS, *map(len, self.names)])
        self.grid_caption_y = BITS_Y + BIT_PITCH * lines + 12
        self.grid_top = self.grid_caption_y + 9
        self.height = self.grid_top + GRID_HEIGHT + (34 if captions.hidden else 18)

    def draw(self) -> WalkDrawing:
        levels = [self._level(depth) for depth in range(len(self.at.levels))]
        parts = [self._always(), self._address(), *levels, self._last()]
        return WalkDrawing(self.captions, self.height, parts)

    # What is always shown

    def _always(self) -> list[Shape]:
        captions, room = self.captions, WIDTH - 2 * MARGIN
        shapes: list[Shape] = [
            Text(MARGIN, TITLE_Y, captions.title, 19, is_bold=True),
            Text(MARGIN, PLACE_Y, fit(captions.place, room, 12.5), 12.5),
            Text(MARGIN, ORIGIN_Y, fit(captions.origin, room, 10.5), 10.5, "muted"),
            *self._row_labels(),
        ]
        for name, column in zip(self.walks.geometry.folded, self.columns.folded, strict=True):
            middle = column.x + column.width / 2
            shapes += [
                Rect(column.x, TABLE_TOP, column.width, TABLE_BOTTOM - TABLE_TOP, "panel", 3),
                Text(middle, HEADER_Y, name, 14, "muted", is_middle=True),
                Text(middle, LONG_NAME_Y, "folded", 10.5, "muted", is_middle=True),
            ]
        if captions.hidden:
            y = self.height - 14
            shapes.append(Text(MARGIN, y, fit(captions.hidden, room, 11), 11))
        return shapes

    def _row_labels(self) -> list[Shape]:
        """What the rows of the drawing show, and the colours of entries."""
        x, y = float(MARGIN), self.grid_caption_y
        labels = [
            (TAKEN_TOP + 15, "the entry that is"),
            (TAKEN_TOP + 29, "taken, and those"),
            (TAKEN_TOP + 43, "beside it"),
            (BITS_Y, "the bits of the"),
            (BITS_Y + BIT_PITCH, "entry that is taken"),
            (y, "how full it is"),
        ]
        shapes: list[Shape] = [Text(x, at, words, 10.5, "muted") for at, words in labels]
        used = {use for level in self.at.levels if level.table for use in level.table.uses}
        slots = [int(use) for use in sorted(used)]
        if self._has_kernel_half():
            slots.append(KERNEL)
        for i, kind in enumerate(WALK_KINDS[slot] for slot in slots):
            top = self.grid_top + 2 + 13 * i
            shapes += [
                Rect(x, top, 9, 9, kind.slug, 1),
                Text(x + 14, top + 8, kind.label, 10, "muted"),
            ]
        return shapes

    def _has_kernel_half(self) -> bool:
        root = self.walks.geometry.levels[0]
        return root.nr_user < root.nr_entries and any(level.table for level in self.at.levels[:1])

    # The address

    def _address(self) -> list[Shape]:
        geometry, vaddr = self.walks.geometry, self.at.walk.vaddr
        root = self.columns.root
        upper = 64 - geometry.address_bits
        shapes: list[Shape] = [*badge(root.x + 8, FIELD_CAPTION_Y - 4, 1)]
        if upper:
            value = vaddr >> geometry.address_bits
            words = f"{upper} zeros" if not value else f"{value:b}"
            caption = walk_captions.bit_range(63, geometry.address_bits)
            shapes += field(root, words, caption, "panel", indent=22)
            note = walk_captions.upper_words(geometry)
            shapes.append(Text(root.x + root.width / 2, INDEX_Y, note, 10, "muted", is_middle=True))
        for column in self.columns.folded:
            shapes += field(column, "-", "no bits", "panel")
        nr_used = len(self.at.levels)
        for depth, (level, column) in enumerate(
            zip(geometry.levels, self.columns.levels, strict=True)
        ):
            if depth < nr_used:
                shapes += self._index_field(level, column, "path_tint")
            elif self.at.walk.paddr is None:
                shapes += self._index_field(level, column, "panel")
        return shapes + self._offset_field()

    def _index_field(self, level: GeometryLevel, column: Column, colour: str) -> list[Shape]:
        index = level.index_of(self.at.walk.vaddr)
        caption = walk_captions.bit_range(level.shift + level.index_bits - 1, level.shift)
        shapes = field(column, binary(index, level.index_bits), caption, colour)
        is_used = colour != "panel"
        words = f"= entry {index}" if is_used else "not used"
        tone = "path" if is_used else "muted"
        shapes.append(Text(column.x + TRACK + 9, INDEX_Y, words, 12, tone, is_bold=is_used))
        return shapes

    def _offset_field(self) -> list[Shape]:
        column, walk = self._frame_column(), self.at.walk
        if walk.paddr is None:
            bits, column = self.walks.geometry.page_shift, self.columns.frame
        else:
            bits = walk.page_size_bytes.bit_length() - 1
        offset = walk.vaddr & ((1 << bits) - 1)
        caption = walk_captions.bit_range(bits - 1, 0)
        if walk.paddr is None:
            shapes = field(column, binary(offset, bits), caption, "panel")
            return [*shapes, Text(column.x + TRACK + 9, INDEX_Y, "not used", 12, "muted")]
        words = f"= offset {offset:#x}"
        return [
            *field(column, binary(offset, bits), caption, "offset_tint"),
            Text(column.x + TRACK + 9, INDEX_Y, words, 12, "offset", is_bold=True),
        ]

    # The tables

    def _level(self, depth: int) -> list[Shape]:
        level, column = self.at.levels[depth], self.columns.levels[depth]
        track = column.x + TRACK
        name = level.read.name
        long_name = walk_captions.LONG_NAMES[name]
        shapes: list[Shape] = self._pointer(depth)
        shapes += [
            Text(column.x + 24, HEADER_Y, name, 15, is_bold=True),
            shrunk(column.x + 24, LONG_NAME_Y, long_name, column.width - 24, 10.5, "muted"),
            *self._table(level, column),
            Line(((track, FIELD_TOP + FIELD_HEIGHT), (track, HEADER_Y - 13)), "path", 2),
            Line(((track, HEADER_Y + 3), (track, TAKEN_TOP)), "path", 2, has_arrow=True),
            *badge(track, HEADER_Y - 5, depth + 2),
            *self._bits(depth),
            *self._grid(level, column),
        ]
        return shapes

    def _pointer(self, depth: int) -> list[Shape]:
        """What leads to a table: the root register, or the entry above."""
        column, y = self.columns.levels[depth], TABLE_TOP + BAND / 2
        if depth:
            return [path_to(self.columns.levels[depth - 1], column.x, y)]
        root, paddr = self.columns.root, self.at.levels[0].table_paddr
        register = walk_captions.register(self.walks.machine)
        return [
            Rect(root.x, TABLE_TOP - 4, root.width, BAND + 8, "path_tint", 3),
            Outline(root.x, TABLE_TOP - 4, root.width, BAND + 8, "path", 1, 3),
            Text(root.x, HEADER_Y + 10, register, 13, is_bold=True),
            mono(root.x + 6, y + 4, address_words(paddr), root.width - 12),
            Line(((root.right, y), (column.x, y)), "path", 2, has_arrow=True),
            Text(root.x, TABLE_TOP + BAND + 20, "the processor's", 10.5, "muted"),
            Text(root.x, TABLE_TOP + BAND + 34, "register: where the", 10.5, "muted"),
            Text(root.x, TABLE_TOP + BAND + 48, "first table is", 10.5, "muted"),
        ]

    def _table(self, level: WalkedLevel, column: Column) -> list[Shape]:
        """A table's entries near the one that was taken."""
        x, last = column.x, level.level.nr_entries - 1
        paddr = address_words(level.table_paddr, "at ")
        shapes: list[Shape] = [
            Rect(x, TABLE_TOP, column.width, BAND, "panel"),
            mono(x + 20, TABLE_TOP + 13, paddr, column.width - 24),
        ]
        first = level.taken - NEIGHBOURS
        y = float(TABLE_TOP + BAND + MORE)
        if first > 0:
            shapes.append(Text(x + 50, y - 3, f"… {first} more", 9.5, "muted"))
        for index in range(first, level.taken + NEIGHBOURS + 1):
            if index == level.taken:
                y += TAKEN
            elif 0 <= index <= last:
                shapes += self._neighbour(level, column, index, y)
                y += ROW
            else:
                y += ROW
        below = max(level.taken + NEIGHBOURS - last, 0)
        nr_more = last - level.taken - NEIGHBOURS
        if nr_more > 0:
            shapes.append(Text(x + 50, y + 9, f"… {nr_more} more", 9.5, "muted"))
        height = TABLE_BOTTOM - TABLE_TOP - (MORE + below * ROW if below else 0)
        shapes.append(Outline(x, TABLE_TOP, column.width, height, "muted", 1, 2))
        return shapes + self._taken(level, column)

    def _neighbour(self, level: WalkedLevel, column: Column, index: int, y: float) -> list[Shape]:
        use = use_of(level.table, index)
        if use is None:
            words = "the kernel's" if level.table else "?"
        else:
            words = walk_captions.USE_WORDS[use]
        is_faint = use is None or use is EntryUse.EMPTY
        shapes: list[Shape] = [
            Line(((column.x, y), (column.right, y)), "line", 1),
            Text(column.x + 44, y + 12, f"{index}", 10.5, "muted", is_right=True),
            Text(column.x + 52, y + 12, words, 10.5, "muted" if is_faint else "ink"),
        ]
        if use not in (None, EntryUse.EMPTY):
            shapes.append(Rect(column.right - 16, y + 4, 9, 9, WALK_KINDS[use].slug, 1))
        return shapes

    def _taken(self, level: WalkedLevel, column: Column) -> list[Shape]:
        x, width = column.x, column.width
        value = "hidden" if level.read.entry is None else f"{level.read.entry:#018x}"
        words = walk_captions.use_words(level)
        return [
            Rect(x, TAKEN_TOP, width, TAKEN, "path_tint", 2),
            Outline(x, TAKEN_TOP, width, TAKEN, "path", 2, 2),
            Text(x + 44, TAKEN_TOP + 15, f"{level.taken}", 12, "path", is_bold=True, is_right=True),
            Text(x + 52, TAKEN_TOP + 15, words, 12, is_bold=True),
            Text(x + 8, TAKEN_TOP + 31, value, 10.5, is_mono=True),
        ]

    def _bits(self, depth: int) -> list[Shape]:
        """The bits of the entry that was taken, by name."""
        column, level = self.columns.levels[depth], self.at.levels[depth]
        shapes: list[Shape] = []
        for i, name in enumerate(self.names[depth]):
            y = BITS_Y + BIT_PITCH * i
            indent = max(34.0, 7.2 * len(name) + 6)
            room = column.width - indent
            shapes += [
                Text(column.x + 4, y, name, 10.5, is_bold=True),
                Text(column.x + 4 + indent, y, fit(meaning(name), room, 10), 10, "muted"),
            ]
        if not self.names[depth]:
            if level.read.entry is None:
                words = "hidden"
            elif not level.read.entry:
                words = "all bits are 0"
            else:
                words = "not present"
            shapes.append(Text(column.x + 4, BITS_Y, words, 10.5, "muted"))
        return shapes

    def _grid(self, level: WalkedLevel, column: Column) -> list[Shape]:
        """A small square for each entry of the table, and how many are used."""
        import numpy as np

        x, y, table = column.x, self.grid_caption_y, level.table
        if not table:
            words = walk_captions.why_no_table(level)
            return [
                Text(x, self.grid_caption_y + 14 * i, line, 10.5, "muted")
                for i, line in enumerate(wrap(words, column.width, 10.5))
            ]
        nr = level.level.nr_entries
        nr_columns = min(nr, GRID_COLUMNS << max(0, (nr.bit_length() - 10 + 1) // 2))
        nr_rows = nr // nr_columns
        codes = np.full(nr, KERNEL, dtype=np.uint8)
        codes[: len(table.uses)] = table.uses
        pitch = min(GRID_HEIGHT / nr_rows, MOST_PITCH)
        width = column.width / nr_columns
        row, place = divmod(level.taken, nr_columns)
        gap = 1.0 if pitch >= 3 else 0.0
        words = f"{table.nr_used} of {level.level.nr_user} used"
        ring = (x + place * width - 2, self.grid_top + row * pitch - 2.5)
        return [
            Text(x, y, words, 11, is_bold=True),
            Cells(x, self.grid_top, column.width, pitch, gap, codes.reshape(nr_rows, nr_columns)),
            Outline(*ring, width + 4, pitch - gap + 5, "paper", 5, 2),
            Outline(*ring, width + 4, pitch - gap + 5, "path", 2, 2),
        ]

    # The end

    def _frame_column(self) -> Column:
        """From the column after the last table to the right edge: a huge page is wide."""
        nr = len(self.at.levels)
        x = self.columns.levels[nr].x if nr < len(self.columns.levels) else self.columns.frame.x
        return Column(x, self.columns.frame.right - x)

    def _last(self) -> list[Shape]:
        if self.at.walk.paddr is None:
            return self._hole()
        walk, column = self.at.walk, self._frame_column()
        size, paddr = walk.page_size_bytes, self.at.walk.paddr
        offset, x = paddr & (size - 1), column.x
        track, top = x + TRACK, TABLE_TOP + BAND
        body = TABLE_BOTTOM - top
        mark = top + min(max(body * offset / size, 6), body - 6)
        label_y = mark - 6 if mark > top + body / 2 else mark + 15
        start, page_shift = paddr - offset, self.walks.geometry.page_shift
        words = "frame" if size == 1 << page_shift else f"{size_words(size)} page"
        return [
            path_to(self.columns.levels[len(self.at.levels) - 1], x, TABLE_TOP + BAND / 2),
            Rect(x, TABLE_TOP, column.width, TABLE_BOTTOM - TABLE_TOP, "offset_tint", 2),
            Rect(x, TABLE_TOP, column.width, BAND, "panel"),
            Outline(x, TABLE_TOP, column.width, TABLE_BOTTOM - TABLE_TOP, "offset", 2, 2),
            mono(x + 20, TABLE_TOP + 13, f"at {start:#x}", column.width - 24),
            Text(x + 24, HEADER_Y, words, 15, is_bold=True),
            Text(x + 24, LONG_NAME_Y, pfn_text(start >> page_shift), 10.5, "muted"),
            Line(((track, FIELD_TOP + FIELD_HEIGHT), (track, HEADER_Y - 13)), "offset", 2),
            Line(((track, HEADER_Y + 3), (track, mark)), "offset", 2),
            Line(((track, mark), (column.right, mark)), "offset", 2, has_arrow=True),
            *badge(track, HEADER_Y - 5, len(self.at.levels) + 2, "offset"),
            Text(track + 9, label_y, f"byte {offset:,}", 11, "offset", is_bold=True),
            Text(x, BITS_Y, "the physical address", 10.5, "muted"),
            shrunk(x, BITS_Y + 18, f"{paddr:#x}", column.width, 15, is_bold=True),
            Text(x, BITS_Y + 36, f"= {start:#x}", 10.5, "muted"),
            Text(x, BITS_Y + 50, f"+ {offset:#x}", 10.5, "offset"),
        ]

    def _hole(self) -> list[Shape]:
        """Where a walk ends without a page."""
        column = self._frame_column()
        x, width = column.x, column.width
        before = self.columns.levels[len(self.at.levels) - 1]
        y, middle = TAKEN_TOP + TAKEN / 2, before.right + GAP / 2
        shapes: list[Shape] = [
            Line(((before.right, y), (middle, y)), "path", 2),
            Line(((middle, y - 8), (middle, y + 8)), "path", 3),
            Rect(x, TABLE_TOP, width, TABLE_BOTTOM - TABLE_TOP, "panel", 3),
            Outline(x, TABLE_TOP, width, TABLE_BOTTOM - TABLE_TOP, "muted", 1.5, 3, is_dashed=True),
            *badge(x + TRACK, HEADER_Y - 5, len(self.at.levels) + 2),
            Text(x + 24, HEADER_Y, "no page", 15, is_bold=True),
            Text(x + 24, LONG_NAME_Y, "the walk ends here", 10.5, "muted"),
        ]
        why, remedy = self.captions.end
        y = TABLE_TOP + BAND + 6
        for words, colour, is_bold in ((why, "ink", True), (remedy, "muted", False)):
            for line in wrap(words, width - 20, 11.5):
                shapes.append(Text(x + 10, y, line, 11.5, colour, is_bold))
                y += 15
            y += 8
        return shapes
