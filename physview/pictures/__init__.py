# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of memory: a process's address space, physical memory, and their connections.

>>> from physview import pictures
>>> picture = pictures.picture_process("self")
>>> drawing, layout = pictures.lay_out(picture)
>>> pictures.to_svg(drawing).startswith("<svg")
True

The kinds of frames are not fixed: `make_frames()` takes other kinds too, and a `Picture` of its
result is drawn like any other, with `Captions` that the caller writes.
"""

from physview.pictures.captions import Captions, describe
from physview.pictures.diff_picture import picture_changes
from physview.pictures.html import to_html
from physview.pictures.kinds import DIFF_KINDS, MACHINE_KINDS, PROCESS_KINDS, Kind
from physview.pictures.layout import lay_out
from physview.pictures.live_picture import picture_machine, picture_process
from physview.pictures.model import DrawnFrames, Picture, Space, make_frames
from physview.pictures.output import SUFFIXES, THEMES, check_path, write_picture
from physview.pictures.page_changes import PageChanges, read_changes
from physview.pictures.png import to_png
from physview.pictures.svg import to_svg

__all__ = [
    "DIFF_KINDS",
    "MACHINE_KINDS",
    "PROCESS_KINDS",
    "SUFFIXES",
    "THEMES",
    "Captions",
    "DrawnFrames",
    "Kind",
    "PageChanges",
    "Picture",
    "Space",
    "check_path",
    "describe",
    "lay_out",
    "make_frames",
    "picture_changes",
    "picture_machine",
    "picture_process",
    "read_changes",
    "to_html",
    "to_png",
    "to_svg",
    "write_picture",
]
