# SPDX-License-Identifier: GPL-2.0-or-later
"""The module in a debug kernel: KASAN, lockdep, kmemleak, fault injection.

scripts/test --debug-kernel builds that kernel and names its folder in PHYSVIEW_DEBUG_KERNEL.
"""

import os
import re
from pathlib import Path

import pytest
from guests import HUGE_PAGES, KMOD_TESTS, compile_program, guest_tests, run_in_guest

from physview import kernels

BUILD = Path(os.environ.get("PHYSVIEW_DEBUG_KERNEL", "/nonexistent"))

pytestmark = pytest.mark.needs("debug-kernel", "vm", "index", "cc")


def run_there(folder, command, has="root,pfn,kmod,kmods,swap,hugetlb,memcg,ia32"):
    kernel = kernels.Kernel("debug", BUILD / "arch/x86/boot/bzImage", BUILD / "no-modules", BUILD)
    append = f"{HUGE_PAGES} kmemleak=on"
    options = {"append": append, "boot_timeout": 600, "timeout": 3000}
    return run_in_guest(kernel, folder, command, has=has, **options)


@pytest.mark.parametrize("name", KMOD_TESTS)
def test_the_modules_tests_pass_and_the_log_is_clean(tmp_path, name):
    outcome, output = run_there(tmp_path, guest_tests(name))
    assert outcome.exit_code == 0, output
    assert " passed" in output
    print(output.splitlines()[-1])


def test_a_race_a_fuzzer_and_injected_faults_leave_the_log_clean(tmp_path):
    race, fuzz = (compile_program(tmp_path, name) for name in ("race", "fuzz"))
    with_faults = f"tests/vm/inject.sh sh -c '{race} 20 faults && {fuzz} 100000 8 faults'"
    shell = f"{race} 20 && {fuzz} 200000 7 && echo with faults: && {with_faults}"
    outcome, output = run_there(tmp_path, ["sh", "-c", shell])
    assert outcome.exit_code == 0, output
    without, _, with_faults = output.partition("with faults:")
    for part in (without, with_faults):
        assert re.search(r"[1-9][0-9]* walked, 0 bad", part)
        assert "one in four a 32-bit one" in part
    # Faults came, and not everything failed.
    assert "Cannot allocate memory" not in without
    assert re.search(r"^open: Cannot allocate memory [1-9]", with_faults, re.MULTILINE)
    assert re.search(r"^fine [1-9]", with_faults, re.MULTILINE)


def test_a_third_witness_agrees(tmp_path):
    """The walk agrees with the kernel's dump: /sys/kernel/debug/page_tables/current_user."""
    outcome, output = run_there(tmp_path, guest_tests("kmod_page_tables"), has="root,ptdump,kmod")
    assert outcome.exit_code == 0, output
    assert "1 passed" in output


def test_the_idle_bitmap_is_read(tmp_path):
    """Debian's kernels have none; this one was built with it."""
    name = "touched_ways::test_the_idle_bitmap_tells_frames_that_anybody_used"
    outcome, output = run_there(tmp_path, guest_tests(name), has="root,pfn,idle-bitmap")
    assert outcome.exit_code == 0, output
    assert "1 passed" in output
