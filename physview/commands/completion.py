# SPDX-License-Identifier: GPL-2.0-or-later
"""Print the code with which a shell completes physview's commands, options and process names.

To load it into the running shell, type eval "$(physview completion bash)" in bash,
eval "$(physview completion zsh)" in zsh (after compinit), or physview completion fish | source in
fish. A wheel also installs this code below share in its environment. Shells find it there if the
environment is /usr or /usr/local.
"""

from __future__ import annotations

import argparse
import os
import sys

from physview.errors import PhysviewError

NAME = "completion"
HELP = "code for bash, zsh or fish that completes commands, options and process names"

FILES = {"bash": "physview", "zsh": "_physview", "fish": "physview.fish"}


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shell", choices=tuple(FILES), help="the shell")


def run(args: argparse.Namespace) -> int:
    """Print the completion file."""
    package = os.path.dirname(os.path.dirname(__file__))
    path = os.path.join(package, "completions", FILES[args.shell])
    try:
        with open(path, encoding="utf-8") as file:
            sys.stdout.write(file.read())
    except FileNotFoundError:
        why, remedy = f"there is no {path}", "install physview again"
        raise PhysviewError(f"no completion for {args.shell}", why, remedy, path=path) from None
    return 0
