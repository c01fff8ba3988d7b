# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for the tests: each names in its `needs` marker what it uses of the machine.

On a machine that lacks a capability, a test without the marker fails, and is not skipped with the
reason. Examples: a checkout in a private folder, a machine without Debian's kernels.
"""

import ast
import functools
import re

import parallel
import pytest
from conftest import CAPABILITIES
from paths import ROOT

TESTS = ROOT / "tests"
FILES = sorted(path for path in TESTS.glob("test_*.py") if path.name != "test_needs.py")

# Names that a test can use, and a pattern of the capabilities that it then needs.
USES = {
    "AS_NOBODY": "nobody",
    "WITHOUT_CAPABILITIES": "no-capabilities",
    "-Ur": "no-capabilities",  # root in a user namespace of its own
    "find_kernel": "kernels|kernel-.*|arm64-.*",
    "run_in_guest": "vm",
}
# With one of these fixtures, a test uses something of its own instead of the machine's.
INSTEAD = {
    "find_kernel": {"world", "empty_cache", "monkeypatch"},
    # The parameters that run as nobody carry the marker.
    "AS_NOBODY": {"outcomes", "outcome"},
}
# These run a C program as nobody, in a folder that is open to all users, not this checkout.
COMPILED = {
    "test_the_courses_client_as_root_and_not_as_nobody",
    "test_with_insecure_nobody_sees_memory_of_their_own",
}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def definitions(path):
    """The functions, classes and constants of a file, and the members of its classes, by name."""
    top = parsed(path).body
    within = [each for node in top if isinstance(node, ast.ClassDef) for each in node.body]
    found = {}
    for node in [*within, *top]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
    return found


def names_in(node):
    """Every name in a piece of code: variables, attributes, parameters (fixtures), and strings."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def uses(function, known):
    """The names that a test uses, directly or through helpers and fixtures of its file."""
    found, left = set(), [function]
    while left:
        for name in set(names_in(left.pop())) - found:
            found.add(name)
            if name in known:
                left.append(known[name])
    return found


def needs_in(nodes):
    """The capabilities in decorators and pytestmark. by_kernel() stands for those of kernels."""
    found = set()
    for node in nodes:
        text = ast.unparse(node)
        found |= {name for name in re.findall(r"'([\w.-]+)'", text) if name in CAPABILITIES}
        if "by_kernel" in text or "needs(f'kernel-" in text:
            found.add("kernel-each")
        if "'arm64'" in text or "needs(f'arm64-" in text:
            found.add("arm64-each")
    return found


@functools.cache
def each_test_of(path):
    """Every test of a file: its name, the names that it uses, the capabilities that it needs."""
    return list(_iter_tests(path))


def _iter_tests(path):
    known = definitions(path)
    shared = {"pytestmark", "needs_tracefs"} & known.keys()
    marks = [known[name] for name in shared]
    for node in parsed(path).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        outer = node.decorator_list if isinstance(node, ast.ClassDef) else []
        for each in members:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                yield each.name, uses(each, known), needs_in([*marks, *outer, *each.decorator_list])


@pytest.mark.parametrize("used", USES)
def test_each_test_names_in_its_marker_what_it_uses(used):
    without, nr_found = [], 0
    for path in FILES:
        for name, names, needs in each_test_of(path):
            if used not in names or names & INSTEAD.get(used, set()) or name in COMPILED:
                continue
            if used in definitions(path):  # the file defines the name itself
                continue
            nr_found += 1
            if not any(re.fullmatch(USES[used], need) for need in needs):
                without.append(f"{path.name}::{name}")
    assert nr_found
    assert without == []


def test_every_skip_for_want_of_something_is_in_the_table():
    """PHYSVIEW_REQUIRE can turn only skips of the table into failures, and no skipif marker."""
    assert [path.name for path in FILES if re.search(r"mark\.skip(if)?\b", path.read_text())] == []


def test_no_test_imports_another_test():
    """What several tests use is in tests/support; code for a child in a string counts, too."""
    imports = re.compile(r"\b(?:from|import) test_\w+")
    files = sorted(TESTS.rglob("*.py"))
    assert [path.name for path in files if imports.search(path.read_text())] == []


def test_the_files_that_workers_are_chosen_for_exist():
    names = [path.name for path in TESTS.glob("test_*.py")]
    for file in (*parallel.WITH_VMS, *parallel.BESIDE_VMS):
        assert f"test_{file}.py" in names
    for start in parallel.LONG:
        assert any(name.startswith(start.partition("::")[0]) for name in names), start
    assert not {*parallel.WITH_VMS} & {*parallel.BESIDE_VMS}


def test_every_file_beside_the_tests_is_a_test():
    names = {path.name for path in TESTS.glob("*.*")} - {path.name for path in FILES}
    assert names == {"conftest.py", "test_needs.py"}
