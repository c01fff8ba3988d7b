# SPDX-License-Identifier: GPL-2.0-or-later
"""Print what makes a shell complete physview's commands, options and process names.

In bash, and in zsh after compinit, eval "$(physview completion bash)", or zsh, makes the running
shell do it; in fish physview completion fish | source does. A wheel also puts the files below share
in its environment, where shells look if that is /usr or /usr/local.
"""

from __future__ import annotations

import argparse
import os
import sys

from physview.errors import PhysviewError

NAME = "completion"
HELP = "what makes bash, zsh or fish complete commands, options and process names"

FILES = {"bash": "physview", "zsh": "_physview", "fish": "physview.fish"}


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shell", choices=tuple(FILES), help="for which shell")


def run(args: argparse.Namespace) -> int:
    """Print the file."""
    package = os.path.dirname(os.path.dirname(__file__))
    path = os.path.join(package, "completions", FILES[args.shell])
    try:
        with open(path, encoding="utf-8") as file:
            sys.stdout.write(file.read())
    except FileNotFoundError:
        why, remedy = f"there is no {path}", "install physview again"
        raise PhysviewError(f"no completion for {args.shell}", why, remedy, path=path) from None
    return 0
