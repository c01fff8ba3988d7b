# SPDX-License-Identifier: GPL-2.0-or-later
"""What a picture shows, as a JSON document (docs/json.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from physview.model import PAGE_SIZE

if TYPE_CHECKING:
    from physview.pictures import Captions, Picture


def picture_document(
    picture: Picture, captions: Captions, path: str, size_bytes: int
) -> dict[str, Any]:
    """Make the JSON document of picture, frames --picture and diff --picture.

    Args:
        picture: The picture.
        captions: Its words.
        path: Its file.
        size_bytes: The file's size.
    """
    space, frames = picture.space, picture.frames
    nr_frames = frames.totals if frames else [None] * len(picture.kinds)
    return {
        "file": path,
        "size_bytes": size_bytes,
        "page_size_bytes": PAGE_SIZE,
        "pid": space.pid if space else None,
        "title": captions.title,
        "missing": captions.missing or None,
        "kinds": [
            {"kind": kind.slug, "label": kind.label, "nr_frames": nr if kind.has_frame else None}
            for kind, nr in zip(picture.kinds, nr_frames, strict=True)
        ],
        "cell": {
            "nr_frames": 1 << frames.grid.shift,
            "nr_rows": frames.grid.nr_rows,
        }
        if frames
        else None,
        "bands": [
            {
                "name": band.name,
                "start": hex(band.start),
                "end": hex(band.end),
                "nr_mappings": band.nr,
                "nr_pages": band.nr_pages,
                "pages": {
                    kind.slug: nr for kind, nr in zip(picture.kinds, band.counts, strict=True) if nr
                },
            }
            for band in (space.bands if space else ())
        ],
    }
