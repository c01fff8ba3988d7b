# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws what a terminal shows while commands run in it, as an SVG that loads no other files.

pyte is the terminal, and rich draws its content. Both are well maintained and need no display.
"""

from __future__ import annotations

import io
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator

from documented import ROOT, Block, as_published, as_run, environment
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

sys.path.insert(0, str(ROOT / "tests/support"))
from screens import PtyRun, Screen

# Rich's own template loads fonts from the network.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px "DejaVu Sans Mono", monospace }}
.{unique_id}-title {{ font: bold 18px sans-serif }}
{styles}
</style>
<defs>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
PROMPT = "$ "
# pyte calls the fourth colour brown. Colours beyond the sixteen have six hexadecimal digits.
COLORS = {"brown": "yellow", "yellow": "yellow"}


def draw(block: Block) -> str:
    """Type the commands of a screen into a shell, and draw what the terminal shows afterwards."""
    assert block.size
    columns, lines = block.size
    with tempfile.TemporaryDirectory() as folder:
        shell = ["bash", "--norc", "--noprofile", "-i"]
        env = environment() | {"PS1": PROMPT, "COLORTERM": "truecolor"}
        with PtyRun(shell, columns=columns, lines=lines, env=env) as terminal:
            terminal.until(_is_idle)
            terminal.press(f"unset COLUMNS LINES; cd {folder}; set +m; clear\n")
            terminal.until(lambda shown: _is_idle(shown) and shown[0] == PROMPT.rstrip())
            for command in block.commands[:-1]:
                _type(terminal, command)
                terminal.until(_is_idle, 600)
            _type(terminal, block.commands[-1])
            if block.seconds is None:
                terminal.until(_is_idle, 600)
            else:
                _watch(terminal, block.seconds)
            shown = list(_lines(terminal.screen))
    while shown and shown[-1].plain.strip() in ("", PROMPT.strip()):
        shown.pop()
    console = Console(width=columns, file=io.StringIO(), record=True, force_terminal=True)
    for line in shown:
        console.print(line, no_wrap=True, crop=True)
    svg = console.export_svg(
        title=" ".join(as_run(block.commands[-1]).split()[:2]),
        theme=DIMMED_MONOKAI,
        code_format=SVG,
        unique_id="terminal",
    )
    return (
        "\n".join(line.rstrip() for line in as_published(svg).splitlines() if line.strip()) + "\n"
    )


def _type(terminal: PtyRun, command: str) -> None:
    text = as_run(command)
    keys = text.replace("<TAB>", "\t")
    terminal.press(keys if keys.endswith("\t") else f"{keys}\n")
    terminal.shows(PROMPT + text.partition("<TAB>")[0][:20].rstrip())


def _watch(terminal: PtyRun, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        terminal.read(0.1)


def _is_idle(shown: list[str]) -> bool:
    filled = [line for line in shown if line]
    return bool(filled) and filled[-1] == PROMPT.rstrip()


def _lines(screen: Screen) -> Iterator[Text]:
    for at in range(screen.lines):
        chars = [screen.buffer[at][column] for column in range(screen.columns)]
        line = Text()
        for style, alike in itertools.groupby(chars, _style):
            line.append("".join(char.data for char in alike), style)
        line.rstrip()
        yield line


def _style(char: Char) -> Style:
    foreground, background = (_color(name) for name in (char.fg, char.bg))
    return Style(color=foreground, bgcolor=background, bold=char.bold, reverse=char.reverse)


def _color(name: str) -> str | None:
    """Rich's name of a colour."""
    if name == "default":
        return None
    if len(name) == 6 and name not in COLORS:
        return f"#{name}"
    bright = "bright_" if name.startswith("bright") else ""
    name = name.removeprefix("bright")
    return bright + COLORS.get(name, name)
