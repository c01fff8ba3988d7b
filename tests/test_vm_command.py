# SPDX-License-Identifier: GPL-2.0-or-later
"""The command vm: what it asks for by its options, and what it refuses. No VM is booted."""

import argparse
import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from physview import kernels, vm
from physview.commands import vm as command
from physview.errors import Unsupported, UsageError
from physview.kernels import foreign_package, foreign_root
from physview.vm import qemu


@pytest.fixture
def run_command(monkeypatch):
    """A function that runs physview vm without a VM; returns the exit code and the VM's options."""
    kernel = kernels.Kernel("6.1.0-1-amd64", Path("/k"), Path("/m"), Path("/h"))
    monkeypatch.setattr(kernels, "find_kernel", lambda wanted, tell: kernel)
    monkeypatch.setattr(kernels, "build_module", lambda kernel, source: Path("/built.ko"))
    asked = {}

    def run_vm(kernel, words, **options):
        asked.update(options, kernel=kernel, command=words)
        return vm.VmResult(3, "tcg", 1.0, 0)

    monkeypatch.setattr(vm, "run", run_vm)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO()))

    monkeypatch.setattr(qemu, "check_installed", lambda machine: None)

    def run(*words):
        parser = argparse.ArgumentParser()
        command.prepare_parser(parser)
        return command.run(parser.parse_args(words)), asked

    return run


def test_the_command_passes_its_options_on(run_command):
    line = "--kernel 6.1 --la57 on --memory 2048 --cpus 4 --nodes 2 --timeout 9 -- a --json -- b"
    code, asked = run_command(*line.split())
    assert code == 3
    assert asked["command"] == ["a", "--json", "--", "b"]
    assert (asked["la57"], asked["memory_mib"], asked["cpus"], asked["timeout"]) == (
        True,
        2048,
        4,
        9,
    )
    assert asked["nodes"] == 2
    assert asked["modules"] == [Path("/built.ko")]


def test_a_vm_in_which_no_kernel_boots_is_refused(run_command, capsys):
    with pytest.raises(SystemExit):
        run_command("--memory", "95", "--", "a")
    assert "'95' is not a number from 96 to" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "expected"), [("none", []), ("x.ko", [Path("x.ko")])])
def test_the_module_can_be_chosen(run_command, module, expected):
    assert run_command("--kernel", "6.1", "--module", module, "a")[1]["modules"] == expected


def test_another_architecture_has_its_own_kernel_root_and_package(
    run_command, monkeypatch, tmp_path
):
    foreign = vm.ForeignRoot("aarch64", tmp_path, "/usr/bin/python3", tmp_path / "package")
    found = []
    kernel = SimpleNamespace(release="6.12.9-arm64-16k", modules=tmp_path)

    def find(version, tell, *, architecture):
        found.append((version, architecture))
        return kernel

    monkeypatch.setattr(kernels, "find_kernel", find)
    monkeypatch.setattr(foreign_package, "check_tools", lambda target: None)
    monkeypatch.setattr(foreign_root, "root_folder", lambda target, tell: foreign.folder)
    monkeypatch.setattr(
        foreign_package, "package_folder", lambda target, root, tell: foreign.package
    )
    asked = run_command("--arch", "arm64-16k", "--module", "a/x.ko", "physview", "doctor")[1]
    assert found == [("6.12", "arm64-16k")]
    assert asked["foreign"] == foreign
    assert asked["shares"] == [Path("a").absolute(), tmp_path]
    with pytest.raises(UsageError, match="--arch and --la57 exclude each other"):
        run_command("--arch", "arm64", "--la57", "on", "a")


@pytest.mark.parametrize(
    ("machine", "arch", "kernel"),
    [
        ("aarch64", "arm64", "arm64"),
        ("aarch64", "arm64-16k", "arm64-16k"),
        ("x86_64", "x86_64", "amd64"),
    ],
)
def test_this_machines_own_architecture_has_its_own_root(
    run_command, monkeypatch, machine, arch, kernel
):
    """On arm64, --arch chooses the size of pages. Neither a compiler nor a root is needed."""
    asked_for = []
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine, release="6.1"))
    monkeypatch.setattr(foreign_package, "check_tools", None)
    monkeypatch.setattr(
        kernels,
        "find_kernel",
        lambda version, tell, **options: asked_for.append((version, options)),
    )
    asked = run_command("--arch", arch, "a")[1]
    assert asked_for == [("6.12", {"architecture": kernel})]
    assert "foreign" not in asked


def test_a_vm_of_x86_on_arm64_is_refused_at_once(run_command, monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64", release="6.1"))
    monkeypatch.setattr(kernels, "find_kernel", None)
    with pytest.raises(Unsupported, match=r"no VM of x86-64 here: .*; use an x86-64 machine"):
        run_command("--arch", "x86_64", "a")


def test_a_missing_cross_compiler_is_told_before_anything_is_fetched(run_command, monkeypatch):
    monkeypatch.setattr(kernels, "find_kernel", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported, match="this machine has no aarch64-linux-gnu-gcc") as error:
        run_command("--arch", "arm64", "a")
    assert "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross" in str(error.value)
    monkeypatch.setattr(foreign_package, "SOURCES", Path("/nonexistent"))
    with pytest.raises(Unsupported, match="has no C sources; run it from a checkout"):
        run_command("--arch", "arm64", "a")


def test_a_self_built_image_needs_no_modules(run_command, tmp_path):
    kernel = run_command("--kernel", f"{tmp_path}/bzImage", "--module", "none", "a")[1]["kernel"]
    assert kernel.image == tmp_path / "bzImage"
    assert not kernel.modules.exists()


def test_an_unreadable_running_kernel_is_reported(run_command, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(command._common, "say", said.append)
    monkeypatch.setattr(kernels, "running_kernel", lambda: None)
    monkeypatch.setattr(kernels, "fetch_own_image", lambda tell: None)
    assert run_command("a")[0] == 3
    assert "cannot be read; trying Debian's 6.1" in said[0]


def test_without_a_command_it_is_a_shell(run_command):
    asked = run_command("--kernel", "6.1", "--")[1]
    assert (asked["command"][0], asked["otherwise"]) == ("bash", ["sh"])


def test_a_command_of_physview_needs_no_physview_before_it(run_command):
    assert run_command("--kernel", "6.1", "lab", "cow")[1]["otherwise"] == [
        *("physview", "lab", "cow"),
    ]
    assert run_command("--kernel", "6.1", "--", "ls")[1]["otherwise"] == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("start one two", "vm start takes one name: not 'two' as well"),
        ("start a/b", "'a/b' is no name for a VM"),
        ("start --timeout 3", "vm start takes no --timeout; it belongs to vm and vm exec"),
        ("--kernel 6.1 stop", "vm stop takes no --kernel; it belongs to vm and vm start"),
        ("exec", "nothing to run"),
        ("exec --", "nothing to run"),
        ("shell -- ls", "vm shell runs no command"),
        ("list x", "vm list takes no name"),
        ("stop x --all", "not both"),
        ("--stay -- ls", "vm takes no --stay; it belongs to vm start"),
    ],
)
def test_wrong_uses_are_said(run_command, words, error, tmp_path, monkeypatch):
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=re.escape(error)):
        run_command(*words.split())


def test_a_program_may_be_called_as_an_action(run_command):
    assert run_command("--kernel", "6.1", "--", "start", "x")[1]["command"] == ["start", "x"]
