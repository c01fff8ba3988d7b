# SPDX-License-Identifier: GPL-2.0-or-later
"""Pack all extents and frames for the page in few bytes. data.js unpacks them.

The format is a JSON header and columns of numbers, most of them differences. A column is stored in
planes: the lowest byte of all its numbers, then the next byte of all, as many as the largest number
needs. Deflate compresses planes better than whole numbers.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import TYPE_CHECKING, Any

from physview.model import NO_ENTRY, PAGE_SIZE, PM_FLAG_NAMES, Cause, PagemapEntry, printable
from physview.pictures import layout as positions
from physview.pictures.bands import LINK_PARTS, LINK_STEPS, MAX_LINKS, DrawnPages, parts_of
from physview.pictures.grid import CELLS_PER_ROW, Grid
from physview.pictures.kinds import NO_KIND
from physview.pictures.layout import Layout, Place
from physview.pictures.model import Picture
from physview.pictures.pack_changes import change_states, distinct_rows
from physview.pictures.page_changes import PageChanges
from physview.pictures.process_pages import ProcessPages
from physview.pictures.shapes import LEAST, UNITS, Text
from physview.sources.page_flags import flag_names, well_known

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Measured: level 6 takes three times as long, and saves a tenth.
LEVEL = 4
ENTRY_BITS_SHIFT = 55


def pack(picture: Picture, layout: Layout) -> str:
    """The data of a page, as base64 of zlib's deflate."""
    columns: dict[str, npt.NDArray[Any]] = {}
    header: dict[str, Any] = {"page_size": PAGE_SIZE, "kinds": _kinds(picture)}
    if picture.frames:
        frames = picture.frames
        header["ram"] = frames.ram
        header["shift"] = frames.grid.shift
        columns["run_nr"], columns["run_kind"] = frames.runs["nr"], frames.runs["kind"]
    if picture.space:
        pages = picture.space.pages
        header["vmas"] = [
            [f"{vma.start:x}", f"{vma.end:x}", vma.perms, f"{vma.offset:x}", printable(vma.path)]
            for vma in pages.vmas
        ]
        header["bands"] = [
            [band.first, band.nr, band.name, parts_of(band, LINK_PARTS)]
            for band in picture.space.bands
        ]
        if isinstance(pages, PageChanges):
            header["states"], columns["state"] = change_states(pages)
        else:
            assert isinstance(pages, ProcessPages)
            header["states"], columns["state"] = _states(pages)
        columns |= _extents(pages, picture.frames.ram if picture.frames else [])
    header["layout"] = _layout(picture, layout)
    planes = []
    header["columns"] = []
    for name, values in columns.items():
        nr_planes, data = _planes(values)
        header["columns"].append([name, len(values), nr_planes])
        planes.append(data)
    return encode(header, b"".join(planes))


def encode(header: dict[str, Any], planes: bytes) -> str:
    """Header and planes as the page reads them."""
    text = json.dumps(header, separators=(",", ":")).encode()
    data = len(text).to_bytes(4, "little") + text + planes
    return base64.b64encode(zlib.compress(data, LEVEL)).decode()


def _kinds(picture: Picture) -> list[Any]:
    return [
        [kind.slug, kind.label, kind.is_subject, kind.has_frame, kind.is_past]
        for kind in picture.kinds
    ]


def _layout(picture: Picture, layout: Layout) -> dict[str, Any]:
    """All positions and constants for the page: the scripts have none of their own."""
    frames = None
    if picture.frames and layout.place:
        frames = _frames_layout(picture.frames.grid, layout.place, layout.frame_labels)
    return {
        "width": positions.WIDTH,
        "height": layout.height,
        "labels": positions.LABELS,
        "body": [positions.BODY, positions.BODY_WIDTH],
        "spans": [list(span) for span in layout.spans],
        "frames": frames,
        "links": {
            "left": positions.LINK_LEFT,
            "right": layout.place.x - positions.LINK_GAP if layout.place else None,
            "parts": LINK_PARTS,
            "steps": LINK_STEPS,
            "most": MAX_LINKS,
            "thinnest": positions.THINNEST,
            "opacity": positions.LINK_OPACITY,
            "ranks": positions.link_ranks(picture.kinds),
        },
    }


def _frames_layout(grid: Grid, place: Place, labels: tuple[Text, ...]) -> dict[str, Any]:
    return {
        "x": place.x,
        "top": positions.TOP,
        "bottom": place.bottom,
        "cell": place.cell,
        "pitch": place.pitch,
        "gap": place.gap,
        "per_row": CELLS_PER_ROW,
        "stripes": UNITS,
        "least": LEAST,
        "labels": [[each.x, each.y, each.text, each.size] for each in labels],
        "addresses": {
            "x": place.address_x,
            "baseline": positions.ADDRESS_BASELINE,
            "size": positions.ADDRESS_SIZE,
            "step": place.address_step,
        },
        "holes": {
            "names": [positions.fit_hole_name(hole, place) for hole in grid.holes],
            "height": positions.HOLE,
            "baseline": positions.HOLE_BASELINE,
            "size": positions.HOLE_SIZE,
        },
    }


def _planes(values: npt.NDArray[Any]) -> tuple[int, bytes]:
    """The number of planes, and the planes: all lowest bytes, all next bytes, and so on."""
    import numpy as np

    largest = int(values.max()) if len(values) else 0
    nr = max(1, -(-largest.bit_length() // 8))
    as_bytes = values.astype("<u8").view(np.uint8).reshape(-1, 8)
    return nr, np.ascontiguousarray(as_bytes[:, :nr].T).tobytes()


def _extents(pages: DrawnPages, ram: list[tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
    """Columns of the extents, in address order.

    per_vma: extents of each mapping. gap: pages from the end of the previous extent, or from the
    start of the mapping, to this one. nr: pages. frame: 0 without a frame; otherwise 1 plus the
    index in RAM as a difference to the frame after the previous extent, with the sign in the
    lowest bit. past: the same for the frame that the pages were in, if it is another.
    """
    import numpy as np

    rows = pages.rows
    starts = np.array([vma.start for vma in pages.vmas], dtype=np.uint64) // np.uint64(PAGE_SIZE)
    page = rows["vaddr"] // np.uint64(PAGE_SIZE)
    end = page + rows["nr_pages"]
    is_first = np.concatenate([[True], rows["vma"][1:] != rows["vma"][:-1]])
    before = np.where(is_first, starts[rows["vma"]], np.concatenate([end[:1], end[:-1]]))
    columns = {
        "per_vma": np.bincount(rows["vma"], minlength=len(pages.vmas)),
        "gap": page - before,
        "nr": rows["nr_pages"],
    }
    for name, placed in zip(("frame", "past"), pages.page_frames, strict=False):
        index = frame_index(placed.frames["pfn"], ram)
        inside = index >= 0
        index, nr = index[inside], placed.frames["nr"][inside].astype(np.int64)
        steps = index - np.concatenate([[0], (index + nr)[:-1]])
        columns[name] = np.zeros(len(rows), dtype=np.int64)
        columns[name][placed.rows[inside]] = np.where(steps < 0, -2 * steps - 1, 2 * steps) + 1
    return columns


def frame_index(pfns: npt.NDArray[np.uint64], ram: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The indices of frames in RAM, counted without its holes; -1 outside of RAM."""
    import numpy as np

    if not ram:
        return np.full(len(pfns), -1, dtype=np.int64)
    firsts, ends = np.array(ram, dtype=np.uint64).T
    before = np.cumsum(ends - firsts) - (ends - firsts)
    at = np.maximum(np.searchsorted(firsts, pfns, side="right") - 1, 0)
    inside = (pfns >= firsts[at]) & (pfns < ends[at])
    index: npt.NDArray[np.int64] = (pfns - firsts[at] + before[at]).astype(np.int64)
    index[~inside] = -1
    return index


def _states(pages: ProcessPages) -> tuple[list[Any], npt.NDArray[Any]]:
    """The properties of extents without their addresses: each combination is a state.

    Returns:
        [kind, flags, bits of the entry, cause, mapcount] of each state; and the state of each row.
    """
    import numpy as np

    rows = pages.rows
    parts: list[Any] = [rows["entry"] >> np.uint64(ENTRY_BITS_SHIFT), pages.kinds]
    names = rows.dtype.names or ()
    parts += [rows[name] for name in ("flags", "mapcount") if name in names]
    firsts, state = distinct_rows(parts)
    return [_state(rows[i], int(pages.kinds[i])) for i in firsts.tolist()], state


def _state(row: Any, kind: int) -> list[Any]:
    names = row.dtype.names
    entry = int(row["entry"])
    flags = int(row["flags"]) if "flags" in names else NO_ENTRY
    mapcount = int(row["mapcount"]) if "mapcount" in names else NO_ENTRY
    cause = PagemapEntry(entry).cause
    return [
        None if kind == NO_KIND else kind,
        None if flags == NO_ENTRY else ", ".join(flag_names(well_known(flags))),
        ", ".join(name for bit, name in PM_FLAG_NAMES.items() if entry >> bit & 1),
        cause.text if cause and cause is not Cause.ABSENT else None,
        None if mapcount == NO_ENTRY else mapcount,
    ]
