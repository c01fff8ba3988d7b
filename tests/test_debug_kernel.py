# SPDX-License-Identifier: GPL-2.0-or-later
"""The module in a kernel that checks: KASAN, lockdep, kmemleak, fault injection.

scripts/test --debug-kernel builds that kernel and names its folder in PHYSVIEW_DEBUG_KERNEL.
"""

import os
import re
from pathlib import Path

import pytest
from conftest import ROOT
from test_matrix import guest_command, programs  # noqa: F401 - a fixture

from physview import kernels, module, vm

BUILD = Path(os.environ.get("PHYSVIEW_DEBUG_KERNEL", "/nonexistent"))

pytestmark = pytest.mark.skipif(
    not BUILD.exists(), reason="the kernel that checks is built by scripts/test --debug-kernel"
)


def run_there(tmp_path, command):
    kernel = kernels.Kernel("debug", BUILD / "arch/x86/boot/bzImage", BUILD / "no-modules", BUILD)
    with open(tmp_path / "stdout", "wb") as stdout:
        outcome = vm.run(
            kernel,
            ["tests/vm/guest.sh", *command],
            modules=[kernels.build_module(kernel, module.source_dir())],
            memory_mib=3072,
            append="hugepages=16 kmemleak=on",
            cwd=ROOT,
            env=os.environ | {"PHYSVIEW_REQUIRE": "root,pfn,kmod,swap,hugetlb"},
            stdout=stdout,
            stderr=stdout,
            boot_timeout=400,
            timeout=2400,
            say=print,
        )
    print(outcome)
    return outcome, (tmp_path / "stdout").read_text()


def test_the_modules_tests_pass_and_the_log_is_clean(tmp_path):
    outcome, output = run_there(tmp_path, guest_command("kmod")[1:])
    assert outcome.exit_code == 0, output
    assert " passed" in output


def test_a_race_a_fuzzer_and_injected_faults_leave_the_log_clean(tmp_path, programs):  # noqa: F811
    race, fuzz = programs("race"), programs("fuzz")
    shell = f"{race} 20 && {fuzz} 200000 7 && tests/vm/inject.sh {fuzz} 100000 8"
    outcome, output = run_there(tmp_path, ["sh", "-c", shell])
    assert outcome.exit_code == 0, output
    assert re.search(r"[1-9][0-9]* walked, 0 bad", output)


def test_a_third_witness_agrees(tmp_path):
    """The kernel's own dump of the page tables: /sys/kernel/debug/page_tables/current_user."""
    outcome, output = run_there(tmp_path, guest_command("page_tables")[1:])
    assert outcome.exit_code == 0, output
    assert "1 passed" in output
