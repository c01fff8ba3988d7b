# SPDX-License-Identifier: GPL-2.0-or-later
r"""Text from outside is split only at the real separators of its fields.

str.split(), str.splitlines() and str.strip() also take \r, \v, \f, \x1c to \x1e, \x85 and U+2028
for separators. bytes.split() and similar methods take some of these. A file in text mode reads \r
as \n. Users can have all these bytes in names. So the package uses these methods only for texts
without names.
"""

import ast

import pytest
from paths import ROOT

PACKAGE = ROOT / "physview"

OWN_WORDS = "words that the user who runs it wrote on the command line, or types"
PRINTED = "blanks at the end of a line that is printed, in which names are quoted already"
OF_PROGRAMS = "what a program of physview's own choice printed, for people or without names"

# What may strip, or split, whatever is white; a name ending in "/" stands for all below it.
MAY_STRIP = {
    "sources/page_flags.py": OWN_WORDS,
    "commands/": OWN_WORDS,
    "runtime/invocation.py": OWN_WORDS,
    "reporters/": PRINTED,
    "pictures/shapes.py": PRINTED,
    "runtime/packages.py": OF_PROGRAMS,
    "kernels/apt.py": OF_PROGRAMS,
    "kernels/build.py": OF_PROGRAMS,
    "runtime/install_advice.py": "of pyvenv.cfg, in the folder that this Python runs from",
    "vm/failures.py": OF_PROGRAMS,
}
MAY_SPLIT = {
    "kernels/apt.py": "names of packages, in an alphabet of their own",
    "kernels/build.py": "make's output, of which a line is shown",
    "parquet/column_reader.py": "an error's text, of which the first line is shown",
    "vm/failures.py": "the log of physview's own VM, by a serial line, which ends them with \\r\\n",
    "vm/qemu.py": "the names of CPU flags that QEMU knows",
}
MAY_READ_TEXT = {
    "exporter/shipped.py": "files that come with physview",
    "runtime/packages.py": "os-release, which root wrote",
    "commands/completion.py": "a file of the package",
    "pictures/html.py": "a file of the package",
    "runtime/install_advice.py": "pyvenv.cfg, in the folder that this Python runs from",
    "kernels/headers.py": "a Makefile of a package of the distribution's",
    "kernels/build.py": "the configuration of a kernel",
}

SPLITS = {"split", "rsplit", "splitlines"}
STRIPS = {"strip", "lstrip", "rstrip"}


def calls():
    """Every call in the package: its place and its node."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), node


def keys_of(where, allowed):
    """The keys of a table of files and folders that contain a file."""
    return (key for key in allowed if where == key or (key[-1] == "/" and where.startswith(key)))


def is_none(node):
    return isinstance(node, ast.Constant) and node.value is None


def splits_at_all_that_is_white(call):
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in SPLITS:
        return False
    separators = call.args[:1] + [each.value for each in call.keywords if each.arg == "sep"]
    return call.func.attr == "splitlines" or not separators or is_none(separators[0])


def strips_all_that_is_white(call):
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in STRIPS:
        return False
    return not call.args or is_none(call.args[0])


def reads_text(call):
    if isinstance(call.func, ast.Attribute):
        return call.func.attr == "read_text"
    if not isinstance(call.func, ast.Name) or call.func.id != "open":
        return False
    modes = call.args[1:2] + [each.value for each in call.keywords if each.arg == "mode"]
    return not modes or not set("bwxa") & set(modes[0].value)


@pytest.mark.parametrize(
    ("is_one", "allowed"),
    [
        (splits_at_all_that_is_white, MAY_SPLIT),
        (strips_all_that_is_white, MAY_STRIP),
        (reads_text, MAY_READ_TEXT),
    ],
)
def test_text_is_taken_apart_at_its_real_separators(is_one, allowed):
    found = [(where, node.lineno) for where, node in calls() if is_one(node)]
    reasons = {place: list(keys_of(place[0], allowed)) for place in found}
    assert not [place for place, keys in reasons.items() if not keys], (
        "see physview/text/proctext.py"
    )
    assert {key for keys in reasons.values() for key in keys} == set(allowed), "no longer needed"


@pytest.mark.parametrize(
    ("line", "is_one", "answer"),
    [
        ("x.split()", splits_at_all_that_is_white, True),
        ("x.rsplit(None, 1)", splits_at_all_that_is_white, True),
        ("x.split(maxsplit=1)", splits_at_all_that_is_white, True),
        ("x.split(b' ', 1)", splits_at_all_that_is_white, False),
        ("x.splitlines(keepends=True)", splits_at_all_that_is_white, True),
        ("x.lstrip()", strips_all_that_is_white, True),
        ("x.strip(' ')", strips_all_that_is_white, False),
        ("open(x)", reads_text, True),
        ("open(x, encoding='ascii')", reads_text, True),
        ("open(x, 'rb')", reads_text, False),
        ("x.read_text()", reads_text, True),
    ],
)
def test_what_is_looked_for_is_found(line, is_one, answer):
    assert is_one(ast.parse(line, mode="eval").body) is answer
