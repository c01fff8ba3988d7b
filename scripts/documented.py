# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the commands that the documentation shows, runs them, and writes the output into the pages.

A transcript is a comment and the fenced block after it. A screen is a comment and a picture:

    <!-- transcript: WHERE; needs=kmod; exits=0,1; lines=N; folder=checkout -->
    ```
    $ sudo ./scripts/run COMMAND
    what it printed
    ```

    <!-- screen: WHERE; size=80x24; seconds=9
    sudo ./scripts/run COMMAND
    -->
    ![What it is](pictures/NAME.svg)

WHERE says where scripts/transcripts runs the commands: `here`, or options of physview vm. The tests
run them on every machine that has what they need. All commands of one block share a shell and its
working directory, so a command can use $! and the files of the command before. `exits` are the exit
codes; without it each must be 0. With `folder=checkout` they run in the checkout, and not in an
empty folder; they may write to it in a VM only, where the changes are lost. A screen is what a
terminal shows when the last command is done, or after so many seconds; <TAB> is the key.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FLEET_GENERATE = ROOT / "scripts/fleet_generate.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TRANSCRIPT = re.compile(r"^<!-- transcript: ([^\n]*?) -->\n```\n(.*?)^```$", re.M | re.S)
SCREEN = re.compile(r"^<!-- screen: ([^\n]*?)\n(.*?)^-->\n!\[[^\]]*\]\(([^)]*)\)", re.M | re.S)


class Block(NamedTuple):
    """A transcript or a screen.

    Args:
        where: `here`, or options of physview vm.
        commands: The command lines, as the page shows them.
        exits: Their exit codes.
        needs: What the machine must have, as in the tests' table of capabilities.
        nr_lines: How many lines of each output the page shows; None shows all.
        size: Columns and lines of a screen; None for a transcript.
        seconds: When to take the screen of a command that does not end; None waits for its end.
        picture: The path of a screen's picture, relative to the page.
        in_checkout: Whether the commands run in the checkout, and not in an empty folder.
    """

    where: str
    commands: tuple[str, ...]
    exits: tuple[int, ...]
    needs: tuple[str, ...] = ()
    nr_lines: int | None = None
    size: tuple[int, int] | None = None
    seconds: float | None = None
    picture: str = ""
    in_checkout: bool = False


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    output: str
    code: int


def _make(head: str, commands: list[str], picture: str = "") -> Block:
    where, *rest = (part.strip() for part in head.split(";"))
    values = dict(part.split("=", 1) for part in rest)
    exits = [int(code) for code in values.get("exits", "").split(",") if code]
    columns, _, lines = values.get("size", "").partition("x")
    return Block(
        where,
        tuple(commands),
        tuple(exits) or (0,) * len(commands),
        tuple(name for name in values.get("needs", "").split(",") if name),
        int(values["lines"]) if "lines" in values else None,
        (int(columns), int(lines)) if columns else None,
        float(values["seconds"]) if "seconds" in values else None,
        picture,
        values.get("folder") == "checkout",
    )


def _transcript(match: re.Match[str]) -> Block:
    return _make(match[1], [line[2:] for line in match[2].splitlines() if line.startswith("$ ")])


def blocks(text: str) -> list[Block]:
    """The transcripts of a page, then its screens."""
    screens = [_make(m[1], m[2].splitlines(), m[3]) for m in SCREEN.finditer(text)]
    return [*(_transcript(match) for match in TRANSCRIPT.finditer(text)), *screens]


def fill(text: str, results: dict[Block, list[Result]]) -> str:
    """Write the output of the commands into the text of a page."""

    def replace(match: re.Match[str]) -> str:
        block = _transcript(match)
        if block not in results:
            return match[0]
        lines = []
        for command, result in zip(block.commands, results[block], strict=True):
            printed = result.output.rstrip("\n").splitlines()
            if block.nr_lines is not None and len(printed) > block.nr_lines:
                printed = [*printed[: block.nr_lines], "…"]
            lines += [f"$ {command}", *printed]
        head, _, _ = match[0].partition("```\n")
        return head + "```\n" + "".join(f"{line}\n" for line in lines) + "```"

    return TRANSCRIPT.sub(replace, text)


def as_run(command: str, *, as_printed: bool = False) -> str:
    """The command as root types it: as it is printed, in a checkout; or if physview is on PATH."""
    command = command.replace("sudo ", "")
    if as_printed:
        return command
    if command == "./scripts/run":
        return "physview memview"
    command = command.replace("./scripts/fleet-generate", f"{sys.executable} {FLEET_GENERATE}")
    return command.replace("./scripts/run", "physview")


def as_published(output: str) -> str:
    """The output without the paths of this machine."""
    return output.replace(str(ROOT), "~/physview").replace(str(Path.home()), "~")


def environment(*, as_printed: bool = False) -> dict[str, str]:
    """This process's environment, with physview at the end of PATH: python3 is the system's.

    Args:
        as_printed: Whether physview is not on PATH, as in a checkout.
    """
    own = os.path.join(sys.prefix, "bin")
    folders = [name for name in os.environ["PATH"].split(":") if name != own]
    folders += [] if as_printed else [own]
    return os.environ | {"PATH": ":".join(folders), "COLUMNS": "100", "LC_ALL": "C.UTF-8"}


def run(block: Block, *, as_printed: bool = False) -> list[Result]:
    """Run the commands of a transcript in one shell; kill what they started.

    Args:
        block: The transcript.
        as_printed: Whether to run ./scripts/run in the checkout, and not an installed physview.
    """
    script = "".join(
        f"{as_run(command, as_printed=as_printed)}\nprintf '\\0%d\\0' $?\n"
        for command in block.commands
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as vms,
        tempfile.TemporaryFile("w+b") as output,
    ):
        shell = subprocess.Popen(
            ["bash", "--norc", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT if as_printed or block.in_checkout else folder,
            # VMs of their own, apart from those that the user has started.
            env=environment(as_printed=as_printed) | {"PHYSVIEW_VMS": vms},
            start_new_session=True,
        )
        try:
            shell.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        output.seek(0)
        parts = output.read().decode("utf-8", "replace").split("\0")
    return [
        Result(as_published(printed), int(code))
        for printed, code in zip(parts[:-1:2], parts[1::2], strict=True)
    ]
