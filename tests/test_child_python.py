# SPDX-License-Identifier: GPL-2.0-or-later
"""physview never imports from the working directory, nor from PYTHONPATH in a child."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from users import AS_NOBODY

from physview.runtime import child_python

SCRIPT = str(Path(sys.executable).with_name("physview"))
PACKAGES = {"physview", "numpy", "rich", "psutil", "cffi", "_cffi_backend", "pyarrow", "PIL"}
# What starts Python, or hands a program to a shell, and who may: advice is no start.
STARTERS = re.compile(
    r"sys\.executable|['\"]-[mcI]['\"]|\bpython3?\b['\"]|runpy|multiprocessing|ProcessPool"
    r"|os\.(system|popen|exec[lv]|spawn)|shell=True"
)
MAY_START = {
    "runtime/child_python.py": "starts all children",
    "runtime/invocation.py": "advice on starting physview itself",
    "runtime/install_advice.py": "advice on installing packages",
    "vm/runner.py": "the folder of this interpreter, for the guest's PATH",
    "vm/qemu.py": "QEMU's own -m",
    "kernels/apt.py": "apt's own -c",
    "kernels/foreign_root.py": "pip of this interpreter, with -I",
    "kernels/foreign_package.py": "the command in a guest of another architecture",
    "vm/foreign.py": "the path of the interpreter in such a guest",
    "tracing/traced_command.py": "the person's own command, by its whole path",
}


def imported_names():
    """The top-level modules that the package imports."""
    for path in (ROOT / "physview").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    """A folder with modules of all names that physview imports. An imported one writes its name."""
    folder = tmp_path_factory.mktemp("traps")
    (folder / "sprung").mkdir()
    for name in {*imported_names(), *PACKAGES, "sitecustomize", "usercustomize", "runpy"}:
        code = f"open({str(folder / 'sprung' / name)!r}, 'w').close()\nraise SystemExit(99)\n"
        if name in PACKAGES:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(code)
            (folder / name / "__main__.py").write_text(code)
        else:
            (folder / f"{name}.py").write_text(code)
    return folder


def run_among(traps, *command, **options):
    for sprung in (traps / "sprung").iterdir():
        sprung.unlink()
    result = subprocess.run(
        command, cwd=traps, capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert os.listdir(traps / "sprung") == [], result.stderr
    assert result.returncode != 99
    assert "Traceback" not in result.stderr
    return result


STARTS = [
    [SCRIPT],
    [sys.executable, "-I", "-m", "physview"],
    [sys.executable, "-I", child_python.START],
]


@pytest.mark.parametrize("start", STARTS, ids=["script", "module", "path"])
@pytest.mark.parametrize(
    "args",
    [
        ["memview", "--virtual", "--repeat", "2"],
        ["memview", "--virtual", "--repeat", "2", "--source", "reference"],
        ["lab", "runs"],
        ["lab", "cache"],
        ["lab", "cow"],
        ["doctor"],
        ["maps", "self", "--json"],
    ],
    ids=" ".join,
)
def test_a_folder_of_traps_is_never_imported_from(traps, start, args):
    result = run_among(traps, *start, *args)
    if args[0] in ("memview", "maps"):
        assert result.returncode == 0, result.stderr
    if "hides frame numbers" not in result.stderr:  # as it does from a user
        assert result.stdout


@pytest.mark.needs("root", "pfn", "tracefs")
def test_a_traced_command_may_import_from_the_folder_but_physview_does_not(traps, tracefs):
    run_among(traps, SCRIPT, "trace", "copy_to_user", "--", "/bin/true")


@pytest.mark.parametrize("args", [["memview", "--virtual", "--repeat", "2"], ["lab", "runs"]])
def test_pythonpath_does_not_reach_a_child(traps, args):
    command = [sys.executable, "-I", child_python.START, *args]
    run_among(traps, *command, env=os.environ | {"PYTHONPATH": str(traps)})


def test_a_child_has_nothing_of_python_in_its_environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONSTARTUP", "/some/file")
    assert [name for name in child_python.environment() if name.startswith("PYTHON")] == []
    assert child_python.environment()["PATH"] == os.environ["PATH"]


def test_a_child_writes_no_caches_where_its_parent_writes_none(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert child_python.command("physview.commands")[1:3] == ["-I", "-B"]


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_a_child_is_of_the_package_that_starts_it(tmp_path, place):
    """Also after `pip install --target`, where an isolated interpreter does not find physview."""
    package = ROOT / "physview"
    if place == "elsewhere":
        package = tmp_path / "physview"
        package.symlink_to(ROOT / "physview")
    code = (
        f"import sys; sys.path.insert(0, {str(package.parent)!r})\n"
        "from physview.runtime import child_python\n"
        "child = child_python.start('physview.commands', 'memview', '--virtual', '--json')\n"
        "print(*child.args, file=sys.stderr)\n"
        "sys.exit(child.wait())\n"
    )
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.count('"label"') == 40
    assert f" {package}/__main__.py " in result.stderr


@pytest.mark.needs("nobody")
@pytest.mark.parametrize("start", STARTS, ids=["script", "module", "path"])
def test_the_line_that_runs_it_as_root_is_safe_to_type(traps, start):
    """The user types the line in their working directory, which may be another user's folder."""
    result = run_among(traps, *AS_NOBODY, *start, "memview")
    line = result.stderr.partition("as root: ")[2].removeprefix("sudo ")
    again = run_among(traps, *shlex.split(line))
    assert len(again.stdout.splitlines()) == 41, again.stderr


def test_nothing_else_starts_an_interpreter():
    found = {}
    for path in sorted((ROOT / "physview").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if STARTERS.search(line.partition("#")[0]):
                found.setdefault(str(path.relative_to(ROOT / "physview")), []).append(number)
    assert found.keys() <= MAY_START.keys(), found


@pytest.mark.parametrize("path", [".", ":", "here/..:"])
def test_no_program_of_the_working_directory_is_found_by_path(tmp_path, path):
    (tmp_path / "here").mkdir()
    trap = tmp_path / "qemu-system-x86_64"
    trap.write_text("#!/bin/sh\n")
    trap.chmod(0o755)
    command = [sys.executable, "-I", str(ROOT / "physview/__main__.py"), "doctor"]
    environment = os.environ | {"PATH": path}
    shown = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    (line,) = [line for line in shown.stdout.split("\n") if " QEMU " in line]
    assert line.startswith("no ") or re.search("QEMU +/", line), line
