# SPDX-License-Identifier: GPL-2.0-or-later
"""The module and both witnesses on other kernels: the tests themselves, run in VMs.

PHYSVIEW_KERNELS=5.10,6.1,6.12,7.2,7.3 (scripts/test --all-kernels) says which; each is run with 4
and, where it knows them, with 5 levels of page tables.
"""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from physview import kernels, module, vm
from physview.vm import initramfs

LONG = "PHYSVIEW_KERNELS" in os.environ
KERNELS = os.environ.get("PHYSVIEW_KERNELS", "6.1,7.3").split(",")
ONLY_4_LEVELS = ("5.10",)  # Debian's was built without the fifth

# What looks at memory. What starts many processes would take minutes in an emulator.
GUEST_TESTS = ("kmod", "addresses", "pagemap", "privilege", "probes")
if LONG:
    GUEST_TESTS += ("process", "procfs")
GUEST_HAS = "root,pfn,kpage,kmod,swap,hugetlb,thp,kthread"


def guest_command(*tests):
    files = [f"tests/test_{name}.py" for name in tests]
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return ["tests/vm/guest.sh", *pytest_command, *files]


@pytest.fixture
def run_in_vm(tmp_path):
    """Runs a command in a VM with the module, and swap, huge pages and the tests' needs."""

    def run(kernel, command, la57, **options):
        modules = []
        for name, content in initramfs.load_order(kernel.modules, ["lzo_rle", "zram"]):
            path = tmp_path / f"{name}.ko"
            path.write_bytes(content)
            modules.append(path)
        modules.append(kernels.build_module(kernel, module.source_dir()))
        with open(tmp_path / "stdout", "wb") as stdout:
            outcome = vm.run(
                kernel,
                command,
                modules=modules,
                la57=la57,
                memory_mib=3072,
                append="hugepages=16",
                cwd=ROOT,
                env=os.environ | {"PHYSVIEW_REQUIRE": GUEST_HAS},
                stdout=stdout,
                stderr=stdout,
                timeout=1200,
                say=print,
                **options,
            )
        print(f"{kernel.release}: {outcome}")
        return outcome, (tmp_path / "stdout").read_text()

    return run


@pytest.mark.needs("vm", "index", "cc")
@pytest.mark.parametrize(
    ("series", "la57"),
    [(s, la57) for s in KERNELS for la57 in (False, True) if s not in ONLY_4_LEVELS or not la57],
    ids=str,
)
def test_the_tests_pass_in_a_vm(run_in_vm, series, la57):
    outcome, output = run_in_vm(kernels.find_kernel(series), guest_command(*GUEST_TESTS), la57)
    assert outcome.exit_code == 0, output
    assert " passed" in output


@pytest.fixture
def programs(tmp_path):
    """Compiles the fuzzer and the race where the guest finds them."""

    def compile_program(name):
        program = tmp_path / name
        source = ROOT / "tests" / "vm" / f"{name}.c"
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source]
        subprocess.run(command, check=True)
        return str(program)

    return compile_program


@pytest.mark.needs("vm", "index", "cc")
@pytest.mark.parametrize("series", KERNELS)
def test_a_race_and_a_fuzzer_leave_the_log_clean(run_in_vm, programs, series):
    nr_calls, seconds = (10_000_000, 60) if LONG else (1_000_000, 15)
    shell = f"{programs('race')} {seconds} && {programs('fuzz')} {nr_calls} 20261122"
    command = ["tests/vm/guest.sh", "sh", "-c", shell]
    outcome, output = run_in_vm(kernels.find_kernel(series), command, None)
    assert outcome.exit_code == 0, output
    assert re.search(r"[1-9][0-9]* walked, 0 bad", output)
    assert re.search(r"fine [1-9]", output)
