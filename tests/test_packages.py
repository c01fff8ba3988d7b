# SPDX-License-Identifier: GPL-2.0-or-later
"""Advice names packages only if apt has them, and the module only if the kernel can load it."""

import os
import re
import subprocess

import pytest
from repository import Repository, configure_apt, update_apt

from physview.runtime import packages
from physview.system import checks

RELEASE = os.uname().release
OTHERWISE = "do something else"


@pytest.fixture
def debian(tmp_path, monkeypatch, signer):
    """A repository of the test: the only source of apt on a Debian with loadable modules."""
    repository = Repository(tmp_path / "debian")
    repository.add("linux-libc-dev")
    repository.publish(signer)
    signer.export(tmp_path / "keyring.gpg")
    line = f"deb [signed-by={tmp_path}/keyring.gpg] {repository.site} bookworm main"
    monkeypatch.setenv("APT_CONFIG", str(configure_apt(tmp_path, [line])))
    monkeypatch.setattr(packages, "_read_os_release", lambda: "ID=debian\n")
    monkeypatch.setattr(packages, "_has_modules", lambda: True)
    return repository


FEDORA, DEBIAN = "ID=fedora-asahi-remix\nID_LIKE=fedora\n", "ID=debian\n"


@pytest.mark.parametrize(
    ("os_release", "what", "names", "line"),
    [
        (DEBIAN, "qemu", {"machine": "aarch64"}, "apt-get install qemu-system-arm"),
        (FEDORA, "qemu", {"machine": "aarch64"}, "dnf install qemu-system-aarch64"),
        (DEBIAN, "make", {"compiler": "gcc"}, "apt-get install make gcc"),
        (FEDORA, "make", {"compiler": "gcc"}, "dnf install make gcc"),
        (
            DEBIAN,
            "headers",
            {"release": "6.12.118+deb13-arm64-16k"},
            "apt-get install linux-headers-6.12.118+deb13-arm64-16k",
        ),
        (
            FEDORA,
            "headers",
            {"release": "6.14.2-400.asahi.fc42.aarch64+16k"},
            "dnf install kernel-16k-devel-6.14.2-400.asahi.fc42.aarch64",
        ),
        (
            FEDORA,
            "headers",
            {"release": "6.14.2-300.fc42.aarch64"},
            "dnf install kernel-devel-6.14.2-300.fc42.aarch64",
        ),
    ],
)
def test_packages_have_the_names_of_the_distribution(os_release, what, names, line):
    assert packages.install_line(what, os_release, **names).endswith(line)


@pytest.mark.needs("apt")
def test_headers_that_apt_has_are_named(debian, signer):
    debian.add(f"linux-headers-{RELEASE}")
    debian.publish(signer)
    update_apt()
    why, remedy = packages.why_no_headers(RELEASE, OTHERWISE)
    assert why == f"there are no headers of kernel {RELEASE}"
    assert remedy.endswith(f"apt-get install linux-headers-{RELEASE}")


@pytest.mark.needs("apt")
def test_headers_that_no_package_has_are_not(debian):
    update_apt()
    assert packages.why_no_headers(RELEASE, OTHERWISE) == (
        f"there are no headers of kernel {RELEASE}, nor has apt linux-headers-{RELEASE}",
        OTHERWISE,
    )


@pytest.mark.needs("apt")
def test_before_apt_has_fetched_its_lists_it_is_not_known(debian):
    _, remedy = packages.why_no_headers(RELEASE, OTHERWISE)
    assert remedy.startswith(f"{OTHERWISE}; or ")
    assert f"apt-get update, which tells whether apt has linux-headers-{RELEASE}" in remedy


def test_where_apt_is_not_the_package_manager_it_is_not_asked(monkeypatch):
    monkeypatch.setattr(packages, "_read_os_release", lambda: 'ID=nobara\nID_LIKE="rhel fedora"\n')
    monkeypatch.setattr(packages, "_has_modules", lambda: True)
    monkeypatch.setenv("PATH", "/nowhere")
    _, remedy = packages.why_no_headers("6.9", OTHERWISE)
    line = f"dnf install kernel-devel-6.9, if there is such a package; or {OTHERWISE}"
    assert remedy.endswith(line)


@pytest.mark.needs("no-modules")
def test_where_no_module_can_be_none_is_offered(physview):
    for command in ("build", "load"):
        result = physview("module", command)
        assert result.returncode == 1
        assert "this kernel was built without loadable modules; " in result.stderr
        assert "linux-headers" not in result.stderr
        assert " vm -- " in result.stderr
        if checks.check_bpf().state == checks.YES:
            (line,) = re.findall(r"; or use BPF, which needs no module: (.*)\n", result.stderr)
            assert line.endswith(" walk PID ADDRESS --source bpf")
    for command in (("walk", "self", "0x0", "--source", "kmod"), ("memview", "--source", "kmod")):
        result = physview(*command)
        assert "; in a throwaway VM: " in result.stderr
        assert "module load" not in result.stderr
    assert "linux-headers" not in checks.check_headers().value
    assert not checks.check_headers().remedy


@pytest.mark.needs("debian")
def test_this_machines_own_remedy_is_one_that_works(physview):
    remedy = checks.check_headers().remedy or ""
    for word in remedy.split(" "):
        if word.startswith("linux-headers-") and "which tells whether" not in remedy:
            shown = subprocess.run(["apt-cache", "policy", word], capture_output=True, check=True)
            assert b"Candidate: " in shown.stdout
            assert b"Candidate: (none)" not in shown.stdout
