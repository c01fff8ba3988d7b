# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in messages work when the user types them. The tests run each form in a real folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from users import AS_NOBODY

from physview.runtime import invocation

SCRIPT = Path(sys.executable).with_name("physview")
# A stand-in for sudo, which not every machine has: only whether it is named counts.
SUDO = '#!/bin/sh\nexec "$@"\n'
# Words of other programs, or about physview, that are no command lines of it.
COMMAND = re.compile(
    r"\b(?:sudo [a-z]|physview (?:%s|help|--\w+)\b|physview \{\}|scripts/run [a-z])"
)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A PATH of the test, and an unprivileged user."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "memview"])
    monkeypatch.chdir("/")
    return tmp_path


def put(folder, name, text="#!/bin/sh\n"):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_without_sudo_the_line_is_for_root(world):
    assert invocation.as_root("dmesg") == "as root: dmesg"
    assert invocation.write_as_root("16", "/proc/x") == "as root: echo 16 >/proc/x"
    put(world, "sudo", SUDO)
    assert invocation.as_root("dmesg") == "sudo dmesg"
    assert invocation.write_as_root("16", "/proc/x") == "echo 16 | sudo tee /proc/x"


def test_root_needs_no_sudo(world, monkeypatch):
    put(world, "sudo", SUDO)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert invocation.as_root("dmesg") == "dmesg"
    assert invocation.write_as_root("16", "/proc/x") == "echo 16 >/proc/x"
    assert invocation.physview_as_root("module load") == invocation.physview("module load")


def test_a_sudo_of_the_working_directory_is_none(world, monkeypatch):
    put(world, "sudo", SUDO)
    monkeypatch.chdir(world)
    monkeypatch.setenv("PATH", ".")
    assert invocation.as_root("dmesg") == "as root: dmesg"


def test_in_a_checkout_it_is_scripts_run(world, monkeypatch):
    put(world, "sudo", SUDO)
    assert invocation.physview_as_root("module load") == f"sudo {ROOT}/scripts/run module load"
    assert invocation.physview("doctor") == f"{ROOT}/scripts/run doctor"
    monkeypatch.chdir(ROOT)
    assert invocation.physview_as_root("module load") == "sudo ./scripts/run module load"
    assert invocation.physview("doctor") == "./scripts/run doctor"


def test_on_path_it_is_its_name_but_not_for_sudo(world, monkeypatch):
    (world / "physview").symlink_to(SCRIPT)
    assert invocation.physview("doctor") == "physview doctor"
    assert invocation.physview_as_root("doctor") == f"as root: {ROOT}/scripts/run doctor"


def test_another_physview_on_path_is_not_ours(world):
    put(world, "physview")
    assert invocation.physview("doctor") == f"{ROOT}/scripts/run doctor"


def test_where_there_is_no_script_it_is_the_packages_own_file(world, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert invocation.physview("x") == f"/nowhere/python3 -I {ROOT}/physview/__main__.py x"


def test_a_path_is_quoted(tmp_path):
    """Installed from a wheel into an environment with a blank in its path."""
    folder = tmp_path / "a folder"
    shutil.copytree(ROOT / "physview", folder / "physview", symlinks=True)
    script = put(
        folder,
        "physview.py",
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(folder)!r})\n"
        "from physview.commands import main\nsys.exit(main())\n",
    )
    (folder / "bin").mkdir()
    script = script.rename(folder / "bin/physview")
    result = subprocess.run(
        [script, "vmm"], capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/bin"}
    )
    assert f"'{script}' --help lists all commands" in result.stderr
    line = re.search(r"'/.*' ", result.stderr)[0]
    again = subprocess.run([*shlex.split(line), "--version"], capture_output=True, check=True)
    assert again.stdout.startswith(b"physview ")


@pytest.mark.needs("nobody")
def test_a_child_advises_what_the_person_typed(physview):
    result = physview("memview", "--repeat", "2", prefix=AS_NOBODY)
    assert "as root: " in result.stderr
    assert result.stderr.endswith(" memview --repeat 2\n")


def test_no_message_names_a_command_by_hand():
    """Docstrings (the help) and comments may name commands as the documentation does."""
    import ast

    from physview.commands import COMMANDS

    command = re.compile(COMMAND.pattern % "|".join(COMMANDS))
    found = []
    for path in sorted((ROOT / "physview").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}: {text!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.expr)
            and id(node) not in docs
            and command.search(text := text_of(node))
        ]
    allowed = {  # what is no advice of an error, but tells of the command line in general
        "physview/commands/__init__.py": "the version",
        "physview/commands/diff.py": "help of an argument",
        "physview/commands/trace.py": "the usage",
        "physview/commands/vm.py": "the usage",
        "physview/parquet/snapshot_file.py": "the version",
        "physview/reporters/quiz.py": "the version",
        "physview/runtime/invocation.py": "makes them",
        "physview/vm/keeper.py": "the version",
        "physview/exporter/server.py": "the title of its page",
        "physview/model.py": "said by who knows no more; commands put the whole line instead",
    }
    assert [line for line in found if line.partition(":")[0] not in allowed] == []


def text_of(node):
    """The text of a string or an f-string in the code; {} stands for what is filled in."""
    import ast

    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    return ""


def test_the_search_finds_commands_in_every_kind_of_string():
    import ast

    lines = ("'run physview maps'", "f'physview {name} does'", "f'{x} physview help {name}'", "'a'")
    command = re.compile(COMMAND.pattern % "maps")
    found = [bool(command.search(text_of(ast.parse(line, mode="eval").body))) for line in lines]
    assert found == [True, True, True, False]
