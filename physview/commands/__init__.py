# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: the list of commands, and the one place that turns errors into exit codes.

Exit code 0 means success, 1 a failure or a difference that was found, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from typing import Any, NoReturn

from physview.commands import _common
from physview.errors import PhysviewError, UsageError
from physview.reporters import documents
from physview.reporters.failures import of_this_run
from physview.runtime import invocation, pager, proc_mount, resource_limits
from physview.runtime.version import __version__
from physview.text.nearest import nearest
from physview.text.output import safe_streams
from physview.text.quoting import printable

COMMANDS = (
    "memview",
    "translate",
    "maps",
    "pages",
    "watch",
    "touched",
    "record",
    "snapshot",
    "diff",
    "fleet",
    "walk",
    "compare",
    "tables",
    "frames",
    "owners",
    "file",
    "guest",
    "exporter",
    "picture",
    "lab",
    "trace",
    "module",
    "vm",
    "doctor",
    "completion",
)
"""Names of the commands, each a module of this package.

Such a module has NAME (equal to its name here), HELP, `prepare_parser(parser)`, and `run(args)`,
which returns the exit code. If it has STARTS_PROGRAM, the words after the first "--" are a program
and its arguments: `parse()` puts them into `args.command`.
"""


PAGED = (
    *("translate", "maps", "pages", "diff", "walk", "compare", "tables", "frames", "owners"),
    *("file", "guest", "fleet"),
)
"""Commands whose output is shown in a pager if it is longer than the terminal."""


MAX_WIDTH = 102
"""Help uses at most this width of the terminal: longer lines are hard to read."""


class _Formatter(argparse.HelpFormatter):
    """A help formatter that breaks lines at words, and finds the terminal's width without shutil.

    argparse makes a formatter for every argument that is added. Its own formatter would import
    shutil for the width, which makes every start slower.
    """

    def __init__(self, prog: str) -> None:
        try:
            width = int(os.environ.get("COLUMNS") or os.get_terminal_size().columns)
        except (ValueError, OSError):
            width = 80
        super().__init__(prog, width=min(width if width > 0 else 80, MAX_WIDTH) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap a description, paragraph by paragraph. argparse calls this."""
        paragraphs = [_wrap(part, width - len(indent)) for part in text.strip().split("\n\n")]
        return "\n\n".join("\n".join(indent + line for line in lines) for lines in paragraphs)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap the help of an option. argparse calls this."""
        return _wrap(text, width)


def _wrap(text: str, width: int) -> list[str]:
    """Break a text into lines at blanks. A word longer than a line breaks after commas only."""
    lines: list[str] = []
    for word in re.findall(r"[^ \n]+", text):
        pieces = [word] if len(word) <= width else re.findall(r"[^,]+,*", word)
        for at, piece in enumerate(pieces):
            glue = " " if at == 0 else ""
            if lines and len(lines[-1]) + len(glue) + len(piece) <= width:
                lines[-1] += glue + piece
            else:
                lines.append(piece)
    return lines


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # "-0x10" is a wrong address, not an unknown option. argparse knows this from 3.14 on.
        self._negative_number_matcher = re.compile("^-(?:0[xX])?[0-9]")
        self.color = False  # argparse colours from 3.14 on; our streams would quote the escapes

    def format_help(self) -> str:
        """Return the help. Its last line is made only here: finding the command takes time."""
        if self.prog == "physview":
            self.epilog = f"{invocation.physview('help COMMAND')} describes a command."
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with 2."""
        wrong = re.match(r"argument COMMAND: invalid choice: ('.*') \(choose from ", message)
        if wrong:  # argparse lists all commands, so that the nearest name would be lost among them
            message = f"there is no command {wrong[1]}"
        self.exit(2, f"{self.prog}: {printable(message)}; {self._advice(message)}\n")

    def _advice(self, message: str) -> str:
        words = self.prog.partition(" ")[2]
        own_help = invocation.physview(f"{words} --help".strip())
        see = f"{own_help} {'shows its usage' if words else 'lists all commands'}"
        if wrong := re.match(r"unrecognized arguments: (-[^ =]+)", message):
            known = [name for action in self._actions for name in action.option_strings]
        elif wrong := re.match(r"there is no command '(.*)'", message):
            known = [*COMMANDS, "help"]
        elif wrong := re.match(r"argument .*: invalid choice: '(.*)' \(", message):
            known = [
                str(choice)
                for action in self._actions
                for choice in action.choices or ()
                if f"argument {'/'.join(action.option_strings) or action.metavar or action.dest}:"
                in message
            ]
        else:
            return see
        found = nearest(wrong[1], known)
        return f"do you mean {' or '.join(found)}? {see}" if found else see


def make_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Make the parser of the command line. scripts/generate.py makes documentation from it, too.

    Args:
        commands: Names of the commands to include. Each one makes the start slower, used or not.
    """
    parser = _Parser(
        prog="physview",
        description="Shows where a process's memory really is.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"physview {__version__}")
    # Without prog, argparse formats a usage line to find the name, and imports shutil for it.
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
        if name in PAGED:
            subparser.add_argument(
                "--no-pager", action="store_true", help="do not show long output in a pager"
            )
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
    if words[:1] == ["help"]:  # help COMMAND
        words = [*words[1:], "--help"]
    if not words or words[0] not in COMMANDS:
        return (parser or make_parser()).parse_args(words)
    command = import_module(f"physview.commands.{words[0]}")
    own = subparsers(parser or make_parser(words[:1]))[words[0]]
    words = words[1:]
    if any(action.nargs == argparse.REMAINDER for action in own._actions):
        return own.parse_args(words)
    # Options may stand between the arguments: maps PID --rollup PID.
    if not getattr(command, "STARTS_PROGRAM", False):
        return own.parse_intermixed_args(words)
    at = words.index("--") if "--" in words else len(words)
    args = own.parse_intermixed_args(words[:at])
    args.command = words[at + 1 :] if at < len(words) else None
    return args


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, by its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no commands")


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        argv: Arguments without the program's name; sys.argv's by default.
    """
    with safe_streams():
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    args = argparse.Namespace()
    of_this_run.reset()
    try:
        words = sys.argv[1:] if argv is None else argv
        _keep_numpy_small(words[:1])
        _keep_whole_paths()
        args = parse(words)
        if sys.stdout is None:
            raise PhysviewError("cannot write the report", "standard output is closed", "open it")
        code = 0  # if the user leaves the pager early
        with _paged(args):
            code = of_this_run.exit_code(args.run(args))
        sys.stdout.flush()
    except PhysviewError as error:
        return _fail(error, args)
    except BrokenPipeError:
        _common.die_of("SIGPIPE")
    except KeyboardInterrupt:
        _common.die_of("SIGINT")
    except Exception as error:
        meaning = _describe(error)
        if meaning is None:  # a bug: the traceback describes it best
            raise
        _common.discard_stdout()
        return _fail(meaning, args)
    return code


def _paged(args: argparse.Namespace) -> AbstractContextManager[object]:
    """Return a context that shows long output in a pager, if stdout is a terminal."""
    shall = hasattr(args, "no_pager") and not args.no_pager
    if shall and not getattr(args, "every", None) and pager.is_possible():
        found = pager.find_pager()
        if found:
            return pager.Pager(found, os.get_terminal_size(1).lines)
    return nullcontext()


def _keep_numpy_small(words: list[str]) -> None:
    """Keep NumPy's OpenBLAS from starting threads and from reserving memory.

    physview does not use OpenBLAS. Where OpenBLAS cannot get its threads or its memory, it ends
    the process by SIGINT. trace and vm are exempt: with them, the user's own program inherits our
    environment.
    """
    if words not in (["trace"], ["vm"]):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _keep_whole_paths() -> None:
    """Remove relative folders from PATH, as scripts/setup.sh does.

    A relative folder is looked up in the working directory. Whoever can write there could put a
    program of their own there, and root would run it instead of apt-get, make or QEMU.
    """
    folders = os.environ.get("PATH", os.defpath).split(":")
    whole = [folder for folder in folders if folder.startswith("/")]
    if whole != folders:
        os.environ["PATH"] = ":".join(whole) or os.defpath


def _describe(error: Exception) -> PhysviewError | None:
    """Explain an error that no command handles; None where there is no explanation."""
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


def _fail(error: PhysviewError, args: argparse.Namespace) -> int:
    """Say what failed, also in the JSON document. Wrong usage prints no document."""
    if getattr(args, "json", False) and error.exit_code == 1 and sys.stdout is not None:
        with suppress(OSError):  # it may be why we are here
            documents.write_failure(error)
            sys.stdout.flush()
    _common.say(error)
    return error.exit_code
