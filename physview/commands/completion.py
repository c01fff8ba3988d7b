# SPDX-License-Identifier: GPL-2.0-or-later
"""Print the code with which a shell completes physview's commands, options and process names.

To load it into the running shell, type eval "$(physview completion bash)" in bash,
eval "$(physview completion zsh)" in zsh (after compinit), or physview completion fish | source in
fish. In a checkout, ./scripts/run completion also completes ./scripts/run. A wheel also installs
files below share in its environment that load this code. Shells find these files if the environment
is /usr or /usr/local.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from physview.errors import PhysviewError
from physview.runtime import invocation

NAME = "completion"
HELP = "code for bash, zsh or fish that completes commands, options, processes, labs and events"

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
            sys.stdout.write(file.read() + _for_checkout(args.shell))
    except FileNotFoundError:
        why, remedy = f"there is no {path}", "install physview again"
        raise PhysviewError(f"no completion for {args.shell}", why, remedy, path=path) from None
    return 0


def _for_checkout(shell: str) -> str:
    """Return the code that completes scripts/run as well, if physview runs from a checkout."""
    # Every shell takes a path as it is if it needs no quotes.
    paths = [path for path in invocation.checkout_scripts() if shlex.quote(path) == path]
    if not paths:
        return ""
    if shell == "bash":
        return f"complete -o bashdefault -F _physview {' '.join(paths)}\n"
    if shell == "fish":
        return "".join(f"complete -c {path} -w physview\n" for path in paths)
    # zsh looks for a relative path below the working folder: /checkout/./scripts/run.
    absolute = [path for path in paths if path.startswith("/")]
    relative = [f"{path.removesuffix('scripts/run')}./scripts/run" for path in absolute]
    return f"compdef _shtab_physview {' '.join(absolute + relative)}\n" if absolute else ""
