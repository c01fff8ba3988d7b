# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/test runs once more, and how often: tests/support/second_try.py."""

import re
import subprocess
import sys

import pytest
import second_try
from paths import ROOT

CONFTEST = """
import second_try

def pytest_configure(config):
    config.addinivalue_line("markers", "once(why): not again")

def pytest_collection_modifyitems(config, items):
    second_try.refuse_some(config, items)
"""
# Each of them fails the first time, and would pass the second time.
UNSTEADY = """
import pathlib, pytest
from hypothesis import given, strategies

def fail_at_first(name):
    path = pathlib.Path(__file__).with_name(name)
    first = not path.exists()
    path.touch()
    assert not first, f"the first time of {name}"

def test_a(): fail_at_first("a")
"""


def run_tests(folder, code, *options):
    """Run tests as scripts/test runs them, and return the exit code and the output."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_unsteady.py").write_text(UNSTEADY + code)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT / 'tests/support'}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    result = subprocess.run(
        [*command, *second_try.OPTIONS], cwd=folder, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout


@pytest.mark.needs("loopback")
@pytest.mark.parametrize("options", [["-n", "1"], ["-p", "no:xdist"]], ids=["workers", "guest"])
def test_a_test_that_passes_the_second_time_is_reported_with_its_failure(tmp_path, options):
    code, output = run_tests(tmp_path, "", *options)
    assert code == 0
    assert "1 passed, 1 rerun" in output
    assert "AssertionError: the first time of a" in output
    said = second_try.reported(output)
    assert said.startswith("RERUN test_unsteady.py::test_a\n")
    assert "AssertionError: the first time of a" in said


@pytest.mark.needs("loopback")
def test_the_third_that_fails_fails_the_run(tmp_path):
    code, output = run_tests(
        tmp_path,
        'def test_b(): fail_at_first("b")\ndef test_c(): fail_at_first("c")\n',
        "-n1",
    )
    assert code == 1
    assert "1 failed, 2 passed, 2 rerun" in output


@pytest.mark.needs("loopback")
@pytest.mark.parametrize(
    "code",
    [
        '@pytest.mark.once("a race")\ndef test_b(): fail_at_first("b")\n',
        '@given(strategies.integers())\ndef test_b(number): fail_at_first("b")\n',
        "def test_b(): assert False\n",
    ],
    ids=["once", "hypothesis", "always"],
)
def test_a_failure_that_is_final(tmp_path, code):
    code, output = run_tests(tmp_path, code, "-n1")
    assert code == 1
    assert re.search(r"^FAILED test_unsteady\.py::test_b", output, re.MULTILINE)


def test_a_debugger_stops_at_the_first_failure():
    assert second_try.options_for(["-n", "0", "--pdb"]) == ()
