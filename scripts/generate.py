# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the man pages and the shells' completions from the parser of the command line.

It also writes the worksheet of the course and its key, which worksheet.py makes; the columns in
docs/recording.md; and the files for Prometheus and Grafana, which monitoring.py makes.

    .venv/bin/python scripts/generate.py

The files are kept in git, so that a wheel can be built without this script. A test fails if they
are out of date. shtab makes the completions. argparse-manpage is not used: its page says everything
twice and has no line for whatis.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import monitoring
import shtab
import worksheet

from physview import __version__, labs
from physview.commands import make_parser, subparsers
from physview.recording import schema
from physview.tracing import targets

ROOT = Path(__file__).parent.parent
COMPLETIONS = {"bash": "physview", "zsh": "_physview", "fish": "physview.fish"}
"""File names as the shells look for them."""


def words_of(command: str) -> dict[str, object]:
    """Complete an argument with the words that a shell command prints when Tab is pressed."""
    complete: dict[str, object] = shtab.cmd(command)
    # shtab's own code runs the command when zsh loads the file, so its words would soon be old. The
    # code below stands in double quotes, in an argument of _arguments, which splits it at colons.
    quoted = command.replace(":", "\\:")
    for special in ("\\", '"', "$", "`"):
        quoted = quoted.replace(special, f"\\{special}")
    return complete | {"zsh": f"{{compadd -- \\$({quoted})}}"}


# Offer the names that only one process has, and that have no characters with a meaning in a shell:
# a process may be called $(…), and bash would run that. Kernel threads are left out; they have no
# cmdline. tr removes other bytes, because grep prints no lines of a file that it takes for binary.
PROCESSES = words_of(
    "grep -sl . /proc/*/cmdline | sed s/cmdline/comm/ | xargs cat 2>/dev/null"
    " | LC_ALL=C tr -c '\\n -~' ' ' | grep -x '[A-Za-z0-9_][A-Za-z0-9_.+:@-]*' | sort | uniq -u"
)
COMPLETE = {
    "PID": PROCESSES,
    "FILE": shtab.FILE,
    "PATH": shtab.FILE,
    "SOCKET": shtab.FILE,
    "DATASET": shtab.DIRECTORY,
    "BEFORE": shtab.FILE,
    "AFTER": shtab.FILE,
}
"""What completes an argument, by its name in the usage."""

# The kernel's list of events can be read by root only. Others get the short names.
EVENTS = words_of(
    f"printf '%s\\n' {' '.join((*targets.FUNCTIONS, *targets.EVENTS))};"
    " cat /sys/kernel/tracing/available_events 2>/dev/null"
    " | LC_ALL=C grep -x '[A-Za-z0-9_]*:[A-Za-z0-9_]*'"
)
COMPLETE_IN = {
    ("lab", "NAME"): words_of(f"printf '%s\\n' {' '.join(labs.NAMES)}"),
    ("trace", "EVENT"): EVENTS,
}
"""What completes an argument of one command only."""

# bash splits a word at a colon, so kmem:kmalloc comes as three words. This joins them again, and
# afterwards takes from each offer what stands before the last colon, which bash keeps.
BASH_END = r"""
_physview() {
  local -a words=()
  local at here=0 glue=
  for at in "${!COMP_WORDS[@]}"; do
    local word=${COMP_WORDS[at]}
    if [[ $at -gt 0 && ( $word == : || -n $glue ) ]]; then
      words[${#words[@]}-1]+=$word
    else
      words+=("$word")
    fi
    glue=
    [[ $word == : && $at -ne $COMP_CWORD ]] && glue=yes
    [[ $at -eq $COMP_CWORD ]] && here=$((${#words[@]} - 1))
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$here
  _shtab_physview "$@"
  local typed=${words[here]}
  local kept=${typed%"${typed##*:}"}
  [[ $COMP_WORDBREAKS == *:* && -n $kept ]] && COMPREPLY=("${COMPREPLY[@]#"$kept"}")
  return 0
}

complete -o bashdefault -F _physview physview
"""

EXIT_STATUS = (
    ("0", "All went well."),
    ("1", "Something failed, an address is UNKNOWN, or what was compared differs."),
    ("2", "It was used wrongly."),
)
SEE_ALSO = ("madvise(2)", "mincore(2)", "proc(5)")


def completion(shell: str) -> str:
    """The completion file of a shell in COMPLETIONS."""
    parser = make_parser()
    for name, command in subparsers(parser).items():
        for action in command._actions:
            metavar = str(action.metavar)
            complete = COMPLETE_IN.get((name, metavar), COMPLETE.get(metavar))
            if complete:
                vars(action)["complete"] = complete
    script = shtab.complete(parser, shell).rstrip()
    if shell == "bash":
        last = "complete -o bashdefault -F _shtab_physview physview"
        assert script.endswith(last)
        script = script.removesuffix(last) + BASH_END.strip()
    return "\n".join(line.rstrip() for line in script.splitlines()) + "\n"


def roff(text: str) -> str:
    r"""Escape text for roff.

    >>> roff("a-b \\ …")
    'a\\-b \\e \\[u2026]'
    """
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)


def paragraph(text: str) -> Iterator[str]:
    """The lines of a paragraph."""
    for line in textwrap.wrap(text, 68, break_long_words=False, break_on_hyphens=False):
        # In roff a dot at the start of a line begins a request.
        yield f"\\&{roff(line)}" if line.startswith(".") else roff(line)


def paragraphs(text: str) -> Iterator[str]:
    """The lines of a docstring."""
    for number, part in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        yield from paragraph(part)


def synopsis(name: str, parser: argparse.ArgumentParser) -> str:
    """The usage line of a command."""
    if parser.usage:
        return parser.usage
    words = [f"physview {name}"]
    options = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    words += ["[OPTIONS]"] if options else []
    forms = {"*": "[{}…]", "+": "{}…", "?": "[{}]", None: "{}"}
    for action in parser._actions:
        if not action.option_strings:
            words.append(forms[action.nargs].format(_metavar(action)))  # type: ignore[index]
    return " ".join(words)


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The lines about the arguments and options, with their help."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.dest == "help" or not (action.help or action.option_strings):
            continue
        names = ", ".join(f"\\fB{roff(name)}\\fR" for name in action.option_strings)
        value = "" if action.nargs == 0 else f"\\fI{roff(_metavar(action))}\\fR"
        yield ".TP"
        yield f"{names} {value}".strip()
        yield from paragraph(formatter._expand_help(action) if action.help else "")


def man_page() -> str:
    """The text of physview(1), in the format of man(7)."""
    parser = make_parser()
    about = str(parser.description).rstrip(".")
    lines = [
        '.\\" Made by scripts/generate.py: do not edit.',
        f'.TH PHYSVIEW 1 "" "physview {__version__}" "User Commands"',
        ".SH NAME",
        f"physview \\- {roff(about[0].lower() + about[1:])}",
        ".SH SYNOPSIS",
        "\\fBphysview\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        *paragraph(
            f"{parser.description} Physical addresses are shown to root only (CAP_SYS_ADMIN), as"
            " the kernel has decided; everything else works without, and says what it lacks."
            " Reports are on stdout, all else on stderr. Every command takes --help;"
            " physview help COMMAND is the same."
        ),
        ".SH OPTIONS",
        *options(parser),
        ".SH COMMANDS",
    ]
    for name, command in subparsers(parser).items():
        lines += [f".SS {roff(synopsis(name, command))}"]
        lines += [*paragraphs(str(command.description)), *options(command)]
    lines += [*exit_status(), ".SH SEE ALSO"]
    own = [f"physview-{name}(1)" for name in subparsers(parser)]
    pages = [see.rstrip(")").split("(") for see in (*own, *SEE_ALSO)]
    lines += [
        f".BR {roff(page)} ({part}){',' * (at + 1 < len(pages))}"
        for at, (page, part) in enumerate(pages)
    ]
    return "\n".join(lines) + "\n"


def command_page(name: str, command: argparse.ArgumentParser, about: str) -> str:
    """The text of physview-COMMAND(1).

    Args:
        name: The command.
        command: Its parser.
        about: What it does, in a few words.
    """
    lines = [
        '.\\" Made by scripts/generate.py: do not edit.',
        f'.TH PHYSVIEW-{name.upper()} 1 "" "physview {__version__}" "User Commands"',
        ".SH NAME",
        f"physview\\-{name} \\- {roff(about)}",
        ".SH SYNOPSIS",
        roff(synopsis(name, command)),
        ".SH DESCRIPTION",
        *paragraphs(str(command.description)),
        ".SH OPTIONS",
        *options(command),
        *exit_status(),
        ".SH SEE ALSO",
        ".BR physview (1)",
    ]
    return "\n".join(lines) + "\n"


def exit_status() -> Iterator[str]:
    """The section about exit codes."""
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_STATUS:
        yield from (".TP", f"\\fB{code}\\fR", *paragraph(meaning))


def command_pages() -> dict[str, str]:
    """The man page of each command, by its file name."""
    return {
        f"physview-{name}.1": command_page(
            name, command, import_module(f"physview.commands.{name}").HELP
        )
        for name, command in subparsers(make_parser()).items()
    }


def recording_page() -> str:
    """The text of docs/recording.md, with the columns of the tables of a recording."""

    def table(match: re.Match[str]) -> str:
        lines = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
        for column in schema.TABLES[match[1]]:
            meaning = column.meaning.replace("|", "\\|")
            lines.append(f"| `{column.name}` | {column.kind} | {column.unit} | {meaning} |")
        text = "\n".join(lines)
        return f"<!-- columns: {match[1]} -->\n{text}\n<!-- end -->"

    page = (ROOT / "docs/recording.md").read_text()
    pattern = r"<!-- columns: (\w+) -->\n.*?<!-- end -->"
    return re.sub(pattern, table, page, flags=re.DOTALL)


def generated() -> dict[Path, str]:
    """The content of each generated file, by its path."""
    files = {ROOT / "docs/physview.1": man_page()}
    files |= {ROOT / "docs/man" / name: text for name, text in command_pages().items()}
    files[ROOT / "docs/worksheet.md"] = worksheet.worksheet()
    files[ROOT / "docs/key.md"] = worksheet.key()
    files[ROOT / "docs/recording.md"] = recording_page()
    for shell, name in COMPLETIONS.items():
        files[ROOT / "physview/completions" / name] = completion(shell)
    files |= monitoring.files()
    if sys.version_info >= (3, 11):  # Grafana's library needs it
        import dashboard

        files[dashboard.PATH] = dashboard.dashboard()
    return files


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))
