# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that hold for every command. The commands, and what they take, are found in the parser.

A new command is tested here without a change to this file, unless it takes something new: then the
tables below want to know what is there, and what is not.
"""

import argparse
import json

import pytest

from physview.commands import COMMANDS, make_parser

# By metavar: things that are not there.
MISSING = {"PID": ("4194305", "no such process"), "PATH": ("/no/file", "/no/other")}
# Words of which one that is not valid refuses the whole command line, before anything is done.
CHECKED_FIRST = {"ADDR", "GPA", "FRAME", "FLAGS", "CMD", "WORDS"}
# Words that choose among what is there: none of them can fail by itself.
CHOOSING = {"PATTERN"}
# Positional arguments that a command needs besides.
FILL = {
    "ADDR": "0x0",
    "FRAME": "0x123456789000",
    "EVENT": "kmalloc",
    "BEFORE": "/no/before",
    "AFTER": "/no/after",
}
# Options without which a command does not start, or does not end.
OPTIONS = {
    "picture": ["-o", "/no/folder/a.svg"],
    "snapshot": ["-o", "/no/folder/a.parquet"],
    "record": ["--samples", "1"],
    "watch": ["--ticks", "1"],
    "touched": ["--for", "0"],
    "trace": ["--seconds", "0.1"],
}
NEEDS = {"owners": ["kpage"], "tables": ["bpf"], "compare": ["walk"], "walk": ["walk"]}


def parsers():
    """The parser of each command, by name."""
    (action,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def takes_several(action):
    return action.nargs in ("*", "+") or isinstance(action, argparse._AppendAction)


def several():
    """Every argument of every command that may be given several times."""
    for name, parser in parsers().items():
        marks = [pytest.mark.needs(*NEEDS[name])] if name in NEEDS else []
        for action in parser._actions:
            if takes_several(action) and action.metavar not in CHECKED_FIRST | CHOOSING:
                label = "".join(action.option_strings[-1:]) or action.metavar
                yield pytest.param(name, action, marks=marks, id=f"{name} {label}")


def command_line(name, action, values):
    """A command line in which an argument has these values, and every other one something valid."""
    words = [name]
    for other in parsers()[name]._actions:
        if not other.option_strings and other.dest != action.dest and other.nargs not in ("?", "*"):
            words.append(FILL[other.metavar])
    for value in values:
        words += [*action.option_strings[:1], value]
    return [*words, *OPTIONS.get(name, [])]


def errors_of(result):
    """The member `errors` of the one JSON document that was printed."""
    return json.loads(result.stdout)["errors"]


@pytest.fixture
def there(sleeper):
    """By metavar: something that is there, and is the same whenever it is looked at."""
    return {"PID": str(sleeper.pid), "PATH": "/bin/sh"}


@pytest.mark.parametrize(("name", "action"), [*several()])
def test_of_several_one_that_fails_leaves_the_others(physview, name, action, there):
    there, (missing, _) = there[action.metavar], MISSING[action.metavar]
    alone = physview(*command_line(name, action, [there]))
    result = physview(*command_line(name, action, [missing, there]))
    assert result.returncode == 1
    said = set(result.stderr.splitlines()) - set(alone.stderr.splitlines())
    assert [missing in line for line in said] == [True], result.stderr
    assert abs(result.stdout.count("\n") - alone.stdout.count("\n")) <= 12, result.stdout
    document = physview(*command_line(name, action, [there, missing]), "--json")
    assert document.returncode == 1
    (error,) = errors_of(document)
    assert error["asked"] == missing
    assert f"physview: {error['message']}\n" in document.stderr
    fine = json.loads(physview(*command_line(name, action, [there]), "--json").stdout)
    assert fine["errors"] == []
    found = json.loads(document.stdout)
    assert {key: type(value) for key, value in found.items()} == {
        key: type(value) for key, value in fine.items()
    }
    lists = [key for key, value in fine.items() if isinstance(value, list) and key != "errors"]
    assert [len(found[key]) for key in lists] == [len(fine[key]) for key in lists]


@pytest.mark.parametrize(("name", "action"), [*several()])
def test_of_several_all_can_fail(physview, name, action):
    missing = MISSING[action.metavar]
    result = physview(*command_line(name, action, missing))
    assert result.returncode == 1
    said = result.stderr.splitlines()
    assert len(said) == len(missing)
    assert all(any(word in line for line in said) for word in missing)
    document = physview(*command_line(name, action, missing), "--json")
    assert {error["asked"] for error in errors_of(document)} == set(missing)


def may_fail():
    """Commands that take one thing that can be missing, with a command line in which it is."""
    for name, parser in parsers().items():
        if "--json" not in parser._option_string_actions:
            continue
        taken = [a for a in parser._actions if not a.option_strings and a.nargs in (None, "?")]
        if any(a.metavar in ("PID", "BEFORE") for a in taken):
            fill = {**FILL, "PID": MISSING["PID"][0]}
            words = [fill[a.metavar] for a in taken if a.metavar in fill]
            more = [a for a in parser._actions if a.nargs == "+"]
            words += [fill[a.metavar] for a in more if a.metavar in fill]
            yield pytest.param([name, *words, *OPTIONS.get(name, []), "--json"], id=name)


@pytest.mark.parametrize("words", [*may_fail()])
def test_a_document_is_valid_if_all_failed(physview, words):
    result = physview(*words)
    assert result.returncode == 1, result
    (error,) = errors_of(result)
    assert error["asked"] is None
    assert result.stderr.endswith(f"physview: {error['message']}\n")


def test_every_command_is_tested_here():
    found = {each.id.split(" ")[0] for each in several()}
    assert found >= {"maps", "tables", "owners", "file"}
    assert set(parsers()) == set(COMMANDS)


# Names that mean something else in one command, and why.
OTHER_MEANING = {
    ("maps", "-o"): "columns, as with ps and lsblk; its file is --output only",
}
# Names of the same thing: a command that has one of them has the first.
SAME = [("--every", "--interval"), ("--columns", "--fields"), ("--output", "--out", "--file")]


def options():
    """Each option of each command: (command, option, its action)."""
    for name, parser in parsers().items():
        for action in parser._actions:
            for option in action.option_strings:
                yield name, option, action


def test_an_option_means_the_same_in_every_command():
    meanings = {}
    for name, option, action in options():
        if (name, option) not in OTHER_MEANING:
            takes = (action.metavar if action.nargs != 0 else None, action.nargs == 0)
            meanings.setdefault(option, {}).setdefault(takes, []).append(name)
    assert {option: found for option, found in meanings.items() if len(found) > 1} == {}


def test_all_times_take_the_same_units():
    """A metavar is the unit of a number without a letter."""
    expected = {"S": [2.0, 120.0, 3600.0], "MIN": [2, 2880, 10080], "DAYS": [2, 2, 7]}
    words = {"S": ["2", "2m", "1h"], "MIN": ["2", "2d", "1w"], "DAYS": ["2", "2d", "1w"]}
    found = {}
    for name, option, action in options():
        if action.metavar in words:
            found[name, option] = action.metavar
            numbers = [action.type(word) for word in words[action.metavar]]
            assert numbers == expected[action.metavar], (name, option)
            for wrong in ("", "5x", "1 m", "-1", "nan", "1.2.3", "9" * 99, "9999w"):
                with pytest.raises(argparse.ArgumentTypeError, match=r"^'.*' is not a "):
                    action.type(wrong)
        assert action.type is not float, (name, option)
    assert len(found) >= 15
    assert set(found.values()) == set(words)


def test_the_same_thing_has_the_same_option():
    own = {}
    for name, option, _ in options():
        own.setdefault(name, set()).add(option)
    for name, found in own.items():
        for names in SAME:
            assert not found & set(names) or names[0] in found, (name, names)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pages", "self", "--columns", "mapcnt"], "mapcount"),
        (["pages", "self", "--flags", "anonn"], "anon"),
        (["lab", "hep"], "heap"),
        (["vm", "strt"], "start"),
        (["vm", "--memory", "512", "shel"], "shell"),
        (["mapp"], "maps"),
        (["diff", "/no/a", "/no/b", "--extents", "--only", "move"], "moved"),
        (["map", "self"], "maps"),
        (["maps", "self", "--rolup"], "--rollup"),
        (["walk", "self", "0x0", "--source", "bfp"], "bpf"),
    ],
)
def test_the_nearest_name_is_offered(physview, words, offered):
    result = physview(*words)
    assert result.returncode == 2
    assert f"mean {offered}" in result.stderr
