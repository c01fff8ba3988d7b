# SPDX-License-Identifier: GPL-2.0-or-later
"""rich's Console for our streams. Only escape sequences made by rich reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from physview.text.colour import wants_colour
from physview.text.output import StyledStream, quote_controls, write_styled

PIPE_WIDTH = 240


class _Console(Console):
    """A Console that quotes control characters in the texts that it draws.

    rich itself removes only BEL, BS and a few others. It lets ESC pass.
    """

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
    """Make a console that draws on one of our streams, in the stream's encoding.

    Args:
        stream: sys.stdout or sys.stderr.
        options: Further arguments of rich's Console.
    """
    file: Any = StyledStream(stream)
    if wants_colour(stream):
        options = {"color_system": "standard", "force_terminal": True, **options}
    else:
        options = {"color_system": None, **options}
    return _Console(file=file, highlight=False, no_color=False, **options)


def draw(what: RenderableType, pipe_width: int = PIPE_WIDTH) -> None:
    """Print a table or a text on stdout.

    Args:
        what: Anything that rich can draw.
        pipe_width: Width in characters if stdout is no terminal.
    """
    console = open_console(sys.stdout)
    if not sys.stdout.isatty():
        console.width = pipe_width  # a pipe has no edge to wrap at
    with console.capture() as drawn:
        console.print(what)
    # rich pads every line with blanks. They would end up in text that a user copies and pastes.
    lines = drawn.get().removesuffix("\n").split("\n")
    write_styled(sys.stdout, "".join(f"{line.rstrip()}\n" for line in lines))
