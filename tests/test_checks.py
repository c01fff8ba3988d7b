# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of physview doctor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

from physview import Process
from physview.model import PAGE_SIZE
from physview.runtime import invocation
from physview.runtime.packages import install_line
from physview.sources.table_geometry import nr_levels_of
from physview.system import checks
from physview.vm import qemu


def test_levels_agree_with_where_the_address_space_ends():
    with Process() as process:
        levels = nr_levels_of(process.user_end())
    assert checks.check_paging_levels().details == {"levels": levels}


def test_levels_are_found_where_pagemap_ends_on_other_machines(monkeypatch):
    class Arm64(NamedTuple):
        machine: str = "aarch64"

    with Process() as process:
        end = process.user_end()
    monkeypatch.setattr(checks.os, "uname", Arm64)
    found = checks.check_paging_levels()
    assert found.state == checks.YES
    assert found.value.endswith(
        f"user addresses of {(end - 1).bit_length()} bits and pages of {PAGE_SIZE // 1024} KiB"
    )


@pytest.mark.needs("root")
def test_root_has_the_capabilities_that_physview_needs():
    assert checks.check_user().details["capabilities"] == [
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_SYS_MODULE",
    ]


@pytest.mark.needs("scan")
def test_the_categories_of_every_scanning_kernel_are_found():
    found = set(checks.check_scan().details["categories"])
    assert found >= {"wpallowed", "written", "file", "present", "swapped", "pfnzero", "huge"}


def test_thp_is_as_sysfs_has_it():
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    finding = checks.check_thp()
    if path.exists():
        assert f"[{finding.details['enabled']}]" in path.read_text()
    else:
        assert finding.state == checks.NO


@pytest.mark.needs("mountns")
def test_tracefs_is_found_once_it_is_mounted():
    program = (
        "from physview.system import checks; f = checks.check_tracefs();"
        "print(f.state, f.details and f.details['path'])"
    )
    mount = 'umount -a -t tracefs; mount -t tracefs t /mnt && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", program]
    state, path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert state in ("yes", "part")
    assert path == "/mnt"


def test_qemu_is_looked_for_on_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_qemu().state == checks.NO
    program = tmp_path / f"qemu-system-{os.uname().machine}"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert str(program) in checks.check_qemu().value


@pytest.mark.parametrize(
    ("os_release", "line"),
    [
        ("ID=debian\n", "apt-get install linux-headers-6.1"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install kernel-devel-6.1"),
        ("ID=arch\n", "pacman -S linux-headers"),
    ],
)
def test_packages_are_named_as_the_distribution_does(os_release, line):
    assert install_line("headers", os_release, release="6.1") == invocation.as_root(line)


@pytest.mark.parametrize(
    ("os_release", "machine", "line"),
    [
        ("ID=debian\n", "x86_64", "apt-get install qemu-system-x86"),
        ("ID=debian\n", "aarch64", "apt-get install qemu-system-arm"),
        ("ID=fedora\n", "aarch64", "dnf install qemu-system-aarch64"),
        ("ID=arch\n", "aarch64", "pacman -S qemu-system-aarch64"),
        ('ID="opensuse-leap"\nID_LIKE="suse"\n', "aarch64", "zypper install qemu-arm"),
    ],
)
def test_qemu_is_named_for_the_architecture_of_the_vm(os_release, machine, line):
    assert install_line("qemu", os_release, machine=machine) == invocation.as_root(line)


def test_qemu_for_an_unknown_architecture_is_named_in_words():
    words = "install the qemu package of your distribution"
    assert install_line("qemu", "ID=debian\n", machine="riscv64") == words


def test_a_package_of_an_unknown_distribution_is_named_in_words():
    words = "install the headers package of your distribution"
    assert install_line("headers", "", release="6.1") == words


def test_a_missing_package_is_named_with_what_needs_it():
    program = (
        "import sys; root, *others = sys.path[1:];"
        "std = [p for p in others if p.startswith(sys.base_prefix) and '-packages' not in p];"
        "sys.path[:] = [root, *std];"
        "from physview.system import checks; f = checks.check_extras();"
        "print(f.state, f.value, f.remedy, sep='\\n')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    state, value, remedy = result.stdout.splitlines()
    assert (state, value) == (
        "part",
        "no pyarrow, for snapshot, diff and record; no pillow, for PNG pictures;"
        " no prometheus-client, for exporter; no duckdb, for fleet;"
        " no ibis-framework, for fleet; no fsspec, for fleet with an object store",
    )
    packages = "pyarrow pillow prometheus-client duckdb ibis-framework fsspec"
    assert remedy.endswith(f"{sys.executable} -I -m pip install {packages}")
    assert checks.check_extras().state == checks.YES


def test_a_process_name_cannot_forge_capabilities(tests_on_path):
    program = (
        "from memory import libc; libc.prctl(15, b'\\rCapEff:\\tff', 0, 0, 0);"
        "from physview.runtime.privileges import effective_capabilities;"
        "print(effective_capabilities())"
    )
    run = [sys.executable, "-c", program]
    told = subprocess.run(run, check=True, capture_output=True, text=True, env=tests_on_path)
    with open("/proc/self/status", "rb") as file:
        (line,) = (line for line in file.read().split(b"\n") if line.startswith(b"CapEff:"))
    assert int(told.stdout) == int(line[8:], 16)


@pytest.mark.needs("qemu")
def test_kvm_that_failed_before_is_not_praised(monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(qemu, "can_open_kvm", lambda: True)
    assert checks.check_qemu().value.endswith("; /dev/kvm can be opened")
    qemu.remember_that_kvm_fails()
    finding = checks.check_qemu()
    assert finding.state == checks.PART
    assert "KVM failed before: slow, but it works" in finding.value
    assert finding.details["kvm_failed"] is True
    # A note of an earlier boot does not count: the machine may be another one now.
    (tmp_path / "cache/kvm-fails").write_text("another boot\n")
    assert checks.check_qemu().state == checks.YES
