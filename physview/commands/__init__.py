# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: which commands there are, and the one place that turns errors into exit codes.

0 is fine, 1 a failure or a difference found, 2 a wrong use.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.runtime import proc_mount, resource_limits
from physview.runtime.version import __version__
from physview.text.output import safe_streams
from physview.text.quoting import printable

COMMANDS = (
    "memview",
    "translate",
    "maps",
    "pages",
    "watch",
    "snapshot",
    "diff",
    "walk",
    "compare",
    "frames",
    "owners",
    "file",
    "picture",
    "lab",
    "trace",
    "module",
    "vm",
    "doctor",
    "completion",
)
"""Modules here, each with NAME, which is its own, HELP, `prepare_parser(parser)` and `run(args)`,
which returns the exit code. With STARTS_PROGRAM the words after the first -- are a program and its
arguments: `parse()` puts them into `args.command`."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Finds the terminal's width itself: argparse makes a formatter for every argument that is
    added, and imports shutil for the width."""

    def __init__(self, prog: str) -> None:
        try:
            width = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
        except (ValueError, OSError):
            width = 80
        super().__init__(prog, width=width - 2)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # "-0x10" is a wrong address, not an unknown option; argparse knows so from 3.14 on.
        self._negative_number_matcher = re.compile("^-(?:0[xX])?[0-9]")
        self.color = False  # from 3.14 on it would be, and our streams quote what colours

    def error(self, message: str) -> NoReturn:
        """Say it in one line."""
        self.exit(2, f"{self.prog}: {printable(message)}; see '{self.prog} --help'\n")


def make_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The whole command line; also for those who make documentation of it.

    Args:
        commands: Which commands it has. Each costs time at the start, used or not.
    """
    parser = _Parser(
        prog="physview",
        description="Shows where a process's memory really is.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"physview {__version__}")
    # Without prog argparse formats a usage line to find it, and imports shutil for that.
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, prog="physview", parser_class=_Parser
    )
    for name in commands:
        command = import_module(f"physview.commands.{name}")
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.__doc__,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        command.prepare_parser(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def parse(words: list[str], parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parse a command line.

    Args:
        words: The arguments, without the program's name.
        parser: A parser that has their command; None makes one.

    Returns:
        The arguments. If the command has STARTS_PROGRAM, `command` has the words after the first
        --, in which argparse would look for options; None without a --.
    """
    known = words[0] in COMMANDS if words else False
    parser = parser or make_parser(words[:1] if known else COMMANDS)
    command = import_module(f"physview.commands.{words[0]}") if known else None
    if not getattr(command, "STARTS_PROGRAM", False):
        return parser.parse_args(words)
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    args.command = words[at + 1 :] if at < len(words) else None
    return args


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: Arguments without the program's name; sys.argv's by default.
    """
    with safe_streams():
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else argv
        _keep_numpy_small(words[:1])
        _keep_whole_paths()
        args = parse(words)
        if sys.stdout is None:
            raise PhysviewError("cannot write the report", "standard output is closed", "open it")
        code: int = args.run(args)
        sys.stdout.flush()
    except PhysviewError as error:
        return _fail(error, error.exit_code)
    except BrokenPipeError:
        _common.die_of("SIGPIPE")
    except KeyboardInterrupt:
        _common.die_of("SIGINT")
    except Exception as error:
        meaning = _describe(error)
        if meaning is None:  # a bug, which its traceback tells of best
            raise
        _common.discard_stdout()
        return _fail(meaning, meaning.exit_code)
    return code


def _keep_numpy_small(words: list[str]) -> None:
    """Have NumPy's OpenBLAS, which nothing here uses, start no threads and set no memory aside.

    Where these cannot be had it ends the process by SIGINT. Not where a person's own program
    inherits our environment.
    """
    if words not in (["trace"], ["vm"]):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _keep_whole_paths() -> None:
    """Take out of PATH what is looked for in the working directory, as scripts/setup.sh does.

    Whoever fills that folder would be run as root in the place of apt-get, make or QEMU.
    """
    folders = os.environ.get("PATH", os.defpath).split(":")
    whole = [folder for folder in folders if folder.startswith("/")]
    if whole != folders:
        os.environ["PATH"] = ":".join(whole) or os.defpath


def _describe(error: Exception) -> PhysviewError | None:
    """What an error means that no command foresaw; None where that is not known."""
    limit = resource_limits.reached(error)
    if limit:
        return PhysviewError("the command was given up", *limit)
    if isinstance(error, OSError):
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        missing = proc_mount.why_no_file(path) if isinstance(error, FileNotFoundError) else None
        if missing:
            return PhysviewError(f"cannot read {path}", *missing)
        return PhysviewError(path, error.strerror or str(error))
    if isinstance(error, RecursionError):
        why = "an argument or a file is nested too deeply"
        return PhysviewError("the command was given up", why, "give a flatter one")
    if isinstance(error, ModuleNotFoundError) and not f"{error.name}.".startswith("physview."):
        remedy = "install physview again, with what it needs"
        return PhysviewError(f"the Python package {error.name} is missing", "", remedy)
    if isinstance(error, OverflowError) or "integer string conversion" in str(error):
        return UsageError("a number is too large", str(error).partition(";")[0])
    return None


def _fail(message: str | PhysviewError, code: int) -> int:
    _common.say(message)
    return code
