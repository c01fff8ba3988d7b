# SPDX-License-Identifier: GPL-2.0-or-later
"""Drawn walks as files: written whole or not at all."""

from __future__ import annotations

from physview.analysis.walked_addresses import WalkedAddresses
from physview.pictures.output import write_drawing
from physview.pictures.walk_layout import lay_out_walk
from physview.pictures.walk_page import walks_to_html


def write_walks(
    walks: WalkedAddresses, path: str, *, theme: str | None = None, overwrite: bool = False
) -> int:
    """Draw walks to a file. A page has all of them, an SVG or a PNG has the one that was
    asked for.

    Only its owner may read the file: it has physical addresses.

    Args:
        walks: The walks.
        path: The file; its suffix is one of `output.SUFFIXES`.
        theme: "light" or "dark". With None the viewer of an SVG or of a page chooses, and a PNG is
            light.
        overwrite: Whether to replace a file of this name.

    Returns:
        The size of the file in bytes.

    Raises:
        As `output.check_path()`.
        PhysviewError: The file cannot be written.
    """
    return write_drawing(
        path,
        lambda: lay_out_walk(walks, walks.first).drawing(),
        lambda theme: walks_to_html(walks, theme=theme),
        theme=theme,
        overwrite=overwrite,
        private=True,
    )
