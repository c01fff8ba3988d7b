# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in VMs on other kernels: those of the module, of its comparison with pagemap and more.

PHYSVIEW_KERNELS=5.10,6.1,6.12,7.2,7.3 (scripts/test --all-kernels) names the kernels. Each runs
with 4 levels of page tables and, if it supports them, with 5.
"""

import os
import re
import shutil

import pytest
from guests import KMOD_TESTS, compile_program, guest_tests, run_in_guest
from kernel_series import by_kernel

from physview import kernels

LONG = "PHYSVIEW_KERNELS" in os.environ
KERNELS = os.environ.get("PHYSVIEW_KERNELS", "6.1,7.3").split(",")
ONLY_4_LEVELS = ("5.10",)  # Debian's was built without the fifth

# Tests that read memory. Tests that start many processes would take minutes in an emulator.
GUEST_TESTS = (
    *KMOD_TESTS,
    "bpf",
    "tables",
    "shared_tables",
    "frame_source",
    "process_addresses",
    "soft_dirty",
    "labs",
    "pagemap",
    "pagemap_privilege",
    "probes",
    "trace_probes",
)
# Permissions and tracing do not depend on the levels, and their tests take the longest. Extents by
# BPF are tested once on each kernel.
GUEST_TESTS_OF_5_LEVELS = (
    *sorted(
        {*GUEST_TESTS}
        - {
            *("kmod_access", "kmod_descriptors", "labs", "pagemap_privilege", "probes"),
            *("soft_dirty", "trace_probes"),
        }
    ),
    "labs::test_levels_are_walked",
)
GUEST_TESTS = tuple(sorted({*GUEST_TESTS} - {"frame_source"}))
if LONG:
    GUEST_TESTS = GUEST_TESTS_OF_5_LEVELS = (*GUEST_TESTS, "frame_source", "process", "procfs")
GUEST_HAS = (
    "root,pfn,kpage,kthread,kmod,kmods,swap,zram,hugetlb,gigantic,thp,ksm,compaction,hwpoison,"
    "tracefs,kprobes,kcore,memcg,ia32,soft-dirty"
)

# Whole processes and the machine, compared with smaps, numa_maps, page-types and thpmaps.
WHOLE_TESTS = ("rare_memory", "maps")
if LONG:
    WHOLE_TESTS = (
        *WHOLE_TESTS,
        "extents",
        "kpage",
        "snapshot",
        "diff",
        "owners",
        "frames",
        "file",
        "agreement_pass",
    )
WHOLE_HAS = "root,pfn,kpage,swap,hugetlb,gigantic,thp,nodes"
NEWER = ("6.12", "7.2", "7.3")
BEFORE_BPF_LOOP = ("5.10",)  # bpf_loop() came with 5.17
BEFORE_COLLAPSE = ("5.10",)  # MADV_COLLAPSE came with 6.1

pytestmark = pytest.mark.needs("vm", "index", "cc")


@pytest.mark.parametrize(
    ("series", "la57"),
    [
        pytest.param(s, la57, marks=pytest.mark.needs(f"kernel-{s}"))
        for s in KERNELS
        for la57 in (False, True)
        if s not in ONLY_4_LEVELS or not la57
    ],
    ids=str,
)
def test_the_tests_pass_in_a_vm(tmp_path, series, la57):
    tests = GUEST_TESTS_OF_5_LEVELS if la57 else GUEST_TESTS
    if series == "6.1" and not la57:  # of which the documentation's transcripts are
        tests = (*tests, "documented::test_documented_commands_that_need_a_vm_run_there")
    has = GUEST_HAS if series in BEFORE_BPF_LOOP else f"{GUEST_HAS},bpf"
    outcome, output = run_in_guest(
        kernels.find_kernel(series), tmp_path, guest_tests(*tests), has=has, la57=la57
    )
    assert outcome.exit_code == 0, output
    assert " passed" in output
    print(output.splitlines()[-1])


@pytest.mark.parametrize("series", by_kernel(KERNELS))
def test_whole_processes_in_a_vm_with_two_nodes(tmp_path, series):
    peers = [name for name in ("page-types", "thpmaps") if shutil.which(name)]
    newer = ["scan", "mthp"] if series in NEWER else []
    collapse = [] if series in BEFORE_COLLAPSE else ["collapse"]
    has = ",".join([WHOLE_HAS, *peers, *newer, *collapse, "evicts"])
    outcome, output = run_in_guest(
        kernels.find_kernel(series), tmp_path, guest_tests(*WHOLE_TESTS), has=has, nodes=2
    )
    assert outcome.exit_code == 0, output
    assert " passed" in output
    print(output.splitlines()[-1])


@pytest.mark.parametrize("series", by_kernel(KERNELS))
def test_a_race_and_a_fuzzer_leave_the_log_clean(tmp_path, series):
    nr_calls, seconds = (10_000_000, 60) if LONG else (1_000_000, 15)
    race, fuzz = (compile_program(tmp_path, name) for name in ("race", "fuzz"))
    shell = f"{race} {seconds} && {fuzz} {nr_calls} 20261122"
    outcome, output = run_in_guest(
        kernels.find_kernel(series), tmp_path, ["sh", "-c", shell], has=GUEST_HAS, timeout=2400
    )
    assert outcome.exit_code == 0, output
    assert re.search(r"[1-9][0-9]* walked, 0 bad", output)
    assert re.search(r"fine [1-9]", output)
    print(output)
