# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels on which no BPF program can walk page tables, and what physview says there."""

import shlex
import sys

import pytest
from kernel_series import SERIES, by_kernel

from physview import kernels
from physview.system import module


def refusal_in_vm(physview, kernel, append=""):
    """The line of a walk in a VM without the module."""
    vm = ("vm", "--kernel", kernel, "--module", "none", "--append", append)
    result = physview(*vm, "--", "physview", "walk", "self", "0", "--source", "bpf")
    assert result.returncode == 1
    return result.stderr


LOAD = """
import sys
from pathlib import Path
from physview import errors
from physview.system import checks, module
try:
    module.load(Path(sys.argv[1]))
except errors.PhysviewError as error:
    print(error)
print(checks.check_module().value)
"""


@pytest.mark.needs("root", "vm", "kernel-6.1")
def test_lockdown(physview):
    """Secure Boot locks the kernel down (integrity): no module of ours, but a walk by BPF."""
    path = kernels.build_module(kernels.find_kernel("6.1"), module.source_dir())
    level = "echo {} >/sys/kernel/security/lockdown; physview walk self 0 --source bpf"
    load = shlex.join([sys.executable, "-I", "-c", LOAD, str(path)])
    script = f"{level.format('integrity')}; {load}; {level.format('confidentiality')}"
    vm = ("vm", "--kernel", "6.1", "--module", "none")
    result = physview(*vm, "--", "sh", "-c", script)
    assert result.returncode == 1
    walked, refused, found = result.stdout.rstrip("\n").rsplit("\n", 2)
    assert "pgd  at 0x" in walked
    assert "cannot load the module: the kernel is locked down (integrity)" in refused
    assert "as with Secure Boot" in refused
    assert "DKMS" in refused
    assert "or use BPF, which needs no module" in refused
    assert "loads only modules that are signed with a key that it trusts" in found
    assert "the kernel is locked down (confidentiality)" in result.stderr
    assert "boot without lockdown" in result.stderr


@pytest.mark.needs("root", "vm")
@pytest.mark.parametrize("kernel", by_kernel([s for s in ("5.10",) if s in SERIES]))
def test_a_kernel_that_is_too_old(physview, kernel):
    told = refusal_in_vm(physview, kernel)
    assert "this kernel has no bpf_loop(), which came with Linux 5.17" in told
