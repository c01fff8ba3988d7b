# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests in VMs on other kernels: those of the module, of its comparison with pagemap and more.

PHYSVIEW_KERNELS=5.10,6.1,6.12,7.2,7.3 (scripts/test --all-kernels) names the kernels. Each runs
with 4 levels of page tables and, if it supports them, with 5.
"""

import os
import re
import shutil

import pytest
from guests import compile_program, guest_tests, run_in_guest
from kernel_series import by_kernel

from physview import kernels

LONG = "PHYSVIEW_KERNELS" in os.environ
KERNELS = os.environ.get("PHYSVIEW_KERNELS", "6.1,7.3").split(",")
ONLY_4_LEVELS = ("5.10",)  # Debian's was built without the fifth

# Tests of what a walk finds, by all sources. Tests that start many processes would take minutes in
# an emulator.
LEVEL_TESTS = (
    *("compare", "kmod", "kmod_processes", "bpf", "tables", "shared_tables", "frame_source"),
    *("process_addresses", "walked_addresses"),
)
# Calls, permissions, flags and tracing do not depend on the number of levels.
OTHER_TESTS = (
    "course::test_it_reports_the_addresses_that_pagemap_has",
    "course::test_a_module_that_is_loaded_is_not_loaded_again",
    *("frame_flags", "kmod_access", "kmod_calls", "kmod_compat", "kmod_descriptors", "labs"),
    *("pagemap", "pagemap_privilege", "probes", "soft_dirty", "trace_probes"),
    # What the machine's kernel may lack: soft-dirty bits, the module.
    "touched_ways::test_soft_dirty_bits_tell_the_writes",
    "touched_ways::test_track_writes_tells_every_write_and_flushes",
    "touched_ways::test_the_core_reads_the_bits_that_walks_to_each_page_read",
)
# The slowest test takes two minutes beside another VM.
SILENCE = 600
ALL_TESTS = (*LEVEL_TESTS, *OTHER_TESTS)


def chosen_tests(series: str, *, la57: bool) -> tuple[str, ...]:
    """The tests of a kernel with 4 levels or 5.

    The oldest kernel of CI has all with 4 levels. With 5, and on the newest, each test runs once.
    """
    if LONG:
        return (*ALL_TESTS, "page_flags", "process", "procfs")
    if la57:
        return (*LEVEL_TESTS, "labs::test_levels_are_walked")
    if series == "6.1":  # of which the documentation's transcripts are
        documented = (
            "documented::test_documented_commands_that_need_a_vm_run_there",
            "documented::test_the_experiments_that_need_a_vm_run_in_a_checkout_there",
        )
        return (*ALL_TESTS, *documented)
    return OTHER_TESTS


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
        "recording",
    )
WHOLE_HAS = "root,pfn,kpage,swap,hugetlb,gigantic,thp,nodes"
NEWER = ("6.12", "7.2", "7.3")
BEFORE_BPF_LOOP = ("5.10",)  # bpf_loop() came with 5.17
BEFORE_COLLAPSE = ("5.10",)  # MADV_COLLAPSE came with 6.1

pytestmark = [
    pytest.mark.needs("vm", "index", "cc"),
    pytest.mark.once("the tests in the guest are run again there"),
]


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
    tests = chosen_tests(series, la57=la57)
    has = GUEST_HAS if series in BEFORE_BPF_LOOP else f"{GUEST_HAS},bpf"
    outcome, output = run_in_guest(
        kernels.find_kernel(series),
        tmp_path,
        guest_tests(*tests),
        has=has,
        la57=la57,
        silence=SILENCE,
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
        kernels.find_kernel(series),
        tmp_path,
        guest_tests(*WHOLE_TESTS),
        has=has,
        nodes=2,
        silence=SILENCE,
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
