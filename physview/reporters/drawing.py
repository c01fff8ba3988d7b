# SPDX-License-Identifier: GPL-2.0-or-later
"""rich's Console for our streams: what it draws has its own escape sequences only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from physview.text.output import StyledStream, quote_controls, write_styled

PIPE_WIDTH = 240


class _Console(Console):
    """Quotes what is not printable in the texts that it draws. rich takes out BEL, BS and the like
    only, and lets ESC pass."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            quoted = segment.text if segment.control else quote_controls(segment.text)
            if quoted is segment.text:
                yield segment
            else:
                yield Segment(quoted, segment.style)


def open_console(stream: TextIO, **options: Any) -> Console:
    """A console that draws on one of our streams, in its encoding.

    Args:
        stream: sys.stdout or sys.stderr.
        options: More for rich's Console.
    """
    file: Any = StyledStream(stream)
    return _Console(file=file, highlight=False, **options)


def draw(what: RenderableType, pipe_width: int = PIPE_WIDTH) -> None:
    """Print a table or a text.

    Args:
        what: What rich can draw.
        pipe_width: Columns where stdout is no terminal.
    """
    console = open_console(sys.stdout)
    if not console.is_terminal:
        console.width = pipe_width  # a pipe has no edge to wrap at
    with console.capture() as drawn:
        console.print(what)
    # rich fills every line up with blanks, which only a terminal's copy and paste would show.
    lines = drawn.get().removesuffix("\n").split("\n")
    write_styled(sys.stdout, "".join(f"{line.rstrip()}\n" for line in lines))
