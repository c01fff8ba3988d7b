# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the data of pictures without a command, and reads finished pictures."""

import xml.etree.ElementTree as ET

import numpy as np
from memory import PAGE

from physview.analysis.changes import diff
from physview.memory.snapshot import BASE_DTYPE
from physview.model import Vma
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures import diff_picture, page_changes
from physview.pictures.kinds import PROCESS_KINDS, index_of
from physview.pictures.process_pages import ProcessPages

SVG = "{http://www.w3.org/2000/svg}"


def words_of(path):
    """The texts of an SVG file. A file that is no well-formed SVG fails the test."""
    root = ET.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    return [element.text for element in root.iter(f"{SVG}text")]


def expand(array):
    """The kind of each frame, by its number, from an array of runs."""
    return {int(run["pfn"]) + i: int(run["kind"]) for run in array for i in range(int(run["nr"]))}


def some_memory(sizes, *, path=""):
    """The memory of an imaginary process.

    Args:
        sizes: The pages of each mapping. The first few pages of each, 1 to 7, are resident.
        path: The path of all mappings.
    """
    vmas, rows, at = [], [], 1 << 20
    for i, nr in enumerate(sizes):
        vmas.append(Vma(at, at + nr * PAGE, "rw-p", 0, "00:00", 0, path))
        rows.append(
            (at, min(i % 7 + 1, nr), 1 << 63 | 1000 + 8 * i, 1000 + 8 * i, (1 << 64) - 1, i)
        )
        at += (nr + 1) * PAGE
    array = np.array(rows, dtype=BASE_DTYPE)
    kinds = np.full(len(array), index_of(PROCESS_KINDS, "own_anon"), dtype=np.uint8)
    return ProcessPages(vmas, array, kinds, True, int(array["nr_pages"].sum()), 0)


def draw(before, after):
    """The changes of pages, the picture and the counted changes between two snapshot files."""
    with SnapshotFile(before) as one, SnapshotFile(after) as other:
        found = page_changes.read_changes(one, other)
        return found, diff_picture.picture_changes(found, one, other), diff(one, other)


def over_of(found):
    """The runs of frames, of both snapshots, that are drawn over RAM."""
    return np.concatenate([placed.frames for placed in found.page_frames])
