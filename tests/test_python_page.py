# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/python.md: each example runs, and ends as shown."""

import doctest
import re

import documented
import pytest
from paths import ROOT

import physview

PAGE = ROOT / "docs/python.md"
EXAMPLE = re.compile(r"(?:^<!-- needs=(\S+) -->\n)?^```pycon\n(.*?)^```$", re.M | re.S)
SHOWN = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    text = PAGE.read_text()
    for match in EXAMPLE.finditer(text):
        line = text[: match.start()].count("\n")
        heading = re.findall("^## (.*)$", text[: match.start()], re.M)[-1]
        needs = filter(None, (match[1] or "").split(","))
        parameters = (match[2], line)
        yield pytest.param(*parameters, marks=pytest.mark.needs(*needs), id=f"{heading}-{line}")


@pytest.mark.parametrize(("code", "line"), list(examples()))
def test_an_example_ends_as_shown(code, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = doctest.DocTestParser().get_doctest(code, {}, PAGE.name, str(PAGE), line)
    assert case.examples
    found = []
    doctest.DocTestRunner(verbose=False, optionflags=SHOWN).run(case, out=found.append)
    assert not found, "".join(found)


def test_every_function_has_an_example():
    code = "".join(match[2] for match in EXAMPLE.finditer(PAGE.read_text()))
    names = [name for name in physview.__all__ if callable(getattr(physview, name))]
    functions = [
        name for name in names if getattr(physview, name).__module__.startswith("physview.api")
    ]
    assert len(functions) >= 13
    for name in functions:
        if name != "DiffTable":
            assert f"physview.{name}(" in code, name
    assert PAGE in documented.PAGES
