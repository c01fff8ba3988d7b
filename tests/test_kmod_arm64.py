# SPDX-License-Identifier: GPL-2.0-or-later
"""The module builds for Debian's arm64 kernels. It and BPF agree with pagemap in an arm64 VM."""

import subprocess

import pytest
from kernel_series import by_kernel
from paths import ROOT

from physview import kernels
from physview.system import module
from physview.vm import initramfs

# One with 4 levels of page tables, and one that finds out at boot whether there are 5.
VERSIONS = ("6.1", "7.3")

# Processors that know addresses of 48 bits, and of 52 (LPA2).
MACHINES = [("6.1", "cortex-a57", 4), ("7.3", "cortex-a57", 4), ("7.3", "max", 5)]

NR_CHECKS = 30


def built(version):
    kernel = kernels.find_kernel(version, architecture="arm64")
    return kernel, kernels.build_module(kernel, module.source_dir())


@pytest.mark.parametrize("version", by_kernel(VERSIONS, "arm64"))
def test_it_builds_without_a_warning(version):
    kernel, path = built(version)
    content = path.read_bytes()
    assert content[:20].endswith(b"\xb7\0")  # EM_AARCH64
    assert f"vermagic={kernel.release} ".encode() in content
    log = (path.parent / "build.log").read_text()
    assert "CC [M]" in log
    assert "warning" not in log.lower()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The first process of the VM."""
    path = tmp_path_factory.mktemp("arm64") / "init"
    core = sorted((ROOT / "csrc").glob("*.c"))
    compiler = ["aarch64-linux-gnu-gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static"]
    options = ["-std=gnu11", f"-I{ROOT}/csrc", "-o", path]
    sources = [ROOT / f"tests/vm/{name}.c" for name in ("arm64", "arm64_agree")]
    subprocess.run([*compiler, *options, *sources, *core], check=True)
    return path.read_bytes()


@pytest.mark.needs("arm64-vm")
@pytest.mark.parametrize(
    ("version", "cpu", "nr_levels"),
    [pytest.param(*each, marks=pytest.mark.needs(f"arm64-{each[0]}")) for each in MACHINES],
)
def test_it_agrees_with_pagemap(program, tmp_path, version, cpu, nr_levels):
    kernel, path = built(version)
    modules = [content for _, content in initramfs.load_order(kernel.modules, ["zram"])]
    files = {f"{i}.ko": content for i, content in enumerate([*modules, path.read_bytes()])}
    archive = tmp_path / "initramfs"
    archive.write_bytes(initramfs.cpio([], {"init": program, **files}))
    result = subprocess.run(
        [
            *("qemu-system-aarch64", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-machine", "virt", "-accel", "tcg", "-cpu", cpu, "-smp", "2", "-m", "2560"),
            *("-kernel", kernel.image, "-initrd", archive, "-serial", "stdio"),
            *("-append", "console=ttyAMA0 loglevel=4 oops=panic panic=-1 hugepagesz=1G hugepages=1"
              " hugepagesz=2M hugepages=4"),
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert "all agree" in lines, result
    levels = [line for line in lines if f": {nr_levels} levels, " in line]
    assert [line.split()[0] for line in levels] == ["BPF:", "Linux"], result.stdout
    assert sum(line.startswith("ok ") for line in lines) >= NR_CHECKS, result.stdout
    for name in ("swapped", "1 GiB hugetlb", "broken frame", "child", "all of user space"):
        assert any(line.startswith(f"ok {name}") for line in lines), result.stdout
