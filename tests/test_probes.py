# SPDX-License-Identifier: GPL-2.0-or-later
"""The probes of memview: places in a program whose addresses the report shows."""

import ctypes
import itertools
import os
import subprocess

import pytest
from paths import ROOT

from physview import Process
from physview.sources.probes import visit_probes
from physview.sources.reference import visit_stand_ins

LABELS = [
    *["argv", "argv[0]", "envp", "envp[0]", "lmsg", "&lmsg", "gmsg", "&gmsg", "main", "&buf"],
    *[f"buf[{i:02}]" for i in range(30)],
]

both = pytest.mark.parametrize("visit", [visit_probes, visit_stand_ins])


def pointer_at(address):
    return ctypes.c_void_p.from_address(address).value


@both
def test_the_labels_are_memview2s(visit):
    assert visit(lambda probes: [probe.label for probe in probes]) == LABELS


@both
def test_the_probes_are_what_they_are_called(visit):
    def look(probes):
        at = {probe.label: probe.vaddr for probe in probes}
        assert pointer_at(at["argv"]) == at["argv[0]"]
        assert pointer_at(at["envp"]) == at["envp[0]"]
        assert pointer_at(at["&gmsg"]) == at["gmsg"]
        assert pointer_at(at["&lmsg"]) == at["lmsg"]
        for i in range(30):
            assert pointer_at(at["&buf"] + 8 * i) == at[f"buf[{i:02}]"]
        with open("/proc/self/cmdline", "rb") as file:
            first = file.read().split(b"\0")[0]
        assert ctypes.string_at(at["argv[0]"]) == first
        with open("/proc/self/environ", "rb") as file:
            first = file.read().split(b"\0")[0]
        assert ctypes.string_at(at["envp[0]"]) == first
        assert ctypes.string_at(at["lmsg"]) == b"Local message"

    visit(look)


def test_the_core_and_the_stack_agree_on_argv_and_envp():
    def first_four(probes):
        return probes[:4]

    assert visit_probes(first_four) == visit_stand_ins(first_four)


@pytest.mark.needs("cc", "machine")
def test_argv_is_found_without_the_c_librarys_help(tmp_path):
    """musl passes no argv to constructors, so the core looks for it on the stack."""
    program = tmp_path / "a name) R 1"
    sources = [ROOT / "csrc/probes.c", ROOT / "tests/support/main_args.c"]
    options = ["-Wall", "-Wextra", "-Werror", "-DPV_ARGS_FROM_PROC", "-I", ROOT / "csrc"]
    subprocess.run(["cc", *options, "-o", program, *sources], check=True)
    for arguments, environment in (
        (["one", "", "three"], {"A": "1"}),
        ([], {"A": "", "B": "2"}),
        (["x" * 100000], {str(i): "y" * 50 for i in range(1000)}),
    ):
        subprocess.run([program, *arguments], env=environment, check=True)


def test_the_probes_lie_where_a_program_has_them():
    def look(probes):
        with Process() as process:
            answers = process.translate_many([probe.vaddr for probe in probes], with_vma=True)
        return {p.label: (t.vma.path, t.vma.perms) for p, t in zip(probes, answers, strict=True)}

    lies_in = visit_probes(look)
    for label in ("argv", "argv[0]", "envp", "envp[0]", "&lmsg", "&buf"):
        assert lies_in[label][0] == "[stack]"
    for label in ("buf[00]", "buf[29]"):
        assert lies_in[label][0] == "[heap]"
    assert lies_in["main"][1] == "r-xp"
    assert lies_in["&gmsg"][1] == "rw-p"
    for label in ("lmsg", "gmsg"):
        # The linker of arm64 puts constants and code into one segment.
        assert lies_in[label][1] in ("r--p", "r-xp")
    # Without a GIL there is no abi3, and the name tells the version of Python.
    (name,) = {os.path.basename(lies_in[label][0]) for label in ("main", "lmsg", "gmsg")}
    assert name.startswith("_native.")


def test_the_buffers_lie_in_equal_steps():
    """malloc(4096) in a row takes 0x1010 each: the course asks for this pattern."""
    addresses = visit_probes(lambda probes: [probe.vaddr for probe in probes[10:]])
    steps = {after - before for before, after in itertools.pairwise(addresses)}
    assert steps == {0x1010}


@pytest.mark.needs("pfn")
@both
def test_every_probe_has_a_frame(visit):
    def look(probes):
        with Process() as process:
            return process.translate_many([probe.vaddr for probe in probes])

    assert [t for t in visit(look) if t.paddr is None] == []


@both
def test_an_error_in_the_visitor_arrives(visit):
    with pytest.raises(ZeroDivisionError):
        visit(lambda probes: 1 // 0)


@both
def test_the_buffers_are_given_back(visit):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    visit(len)
    before = resident()
    for _ in range(200):
        visit(len)
    assert resident() - before < 200 * 30 // 4
