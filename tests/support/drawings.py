# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures without a command: drawn of what a test made up, and taken apart again."""

import xml.etree.ElementTree as ET

import numpy as np
from memory import PAGE

from physview.analysis.changes import diff
from physview.memory.snapshot import BASE_DTYPE
from physview.model import Vma
from physview.parquet.snapshot_file import SnapshotFile
from physview.pictures import moved, moves
from physview.pictures.kinds import PROCESS_KINDS, index_of
from physview.pictures.memory import Memory

SVG = "{http://www.w3.org/2000/svg}"


def words_of(path):
    """All text of an SVG, which is well-formed."""
    root = ET.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    return [element.text for element in root.iter(f"{SVG}text")]


def expand(array):
    """Runs as a kind for each frame."""
    return {int(run["pfn"]) + i: int(run["kind"]) for run in array for i in range(int(run["nr"]))}


def some_memory(sizes, *, path=""):
    """A process with as many mappings, each of some pages, of which each has the first."""
    vmas, rows, at = [], [], 1 << 20
    for i, nr in enumerate(sizes):
        vmas.append(Vma(at, at + nr * PAGE, "rw-p", 0, "00:00", 0, path))
        rows.append(
            (at, min(i % 7 + 1, nr), 1 << 63 | 1000 + 8 * i, 1000 + 8 * i, (1 << 64) - 1, i)
        )
        at += (nr + 1) * PAGE
    array = np.array(rows, dtype=BASE_DTYPE)
    kinds = np.full(len(array), index_of(PROCESS_KINDS, "own_anon"), dtype=np.uint8)
    return Memory(vmas, array, kinds, True, int(array["nr_pages"].sum()), 0)


def draw(before, after):
    with SnapshotFile(before) as one, SnapshotFile(after) as other:
        found = moves.read_moves(one, other)
        return found, moved.picture_moves(found, one, other), diff(one, other)


def over_of(found):
    return np.concatenate([placed.frames for placed in found.placed])
