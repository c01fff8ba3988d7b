# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels on which no BPF program can walk page tables, and what physview says there."""

import pytest
from kernel_series import SERIES, by_kernel


def refusal_in_vm(physview, kernel, append=""):
    """The line of a walk in a VM without the module."""
    vm = ("vm", "--kernel", kernel, "--module", "none", "--append", append)
    result = physview(*vm, "--", "physview", "walk", "self", "0", "--source", "bpf")
    assert result.returncode == 1
    return result.stderr


@pytest.mark.needs("root", "vm", "kernel-6.1")
def test_lockdown(physview):
    told = refusal_in_vm(physview, "6.1", "lockdown=confidentiality")
    assert "the kernel is locked down (confidentiality)" in told
    assert "boot without lockdown" in told


@pytest.mark.needs("root", "vm")
@pytest.mark.parametrize("kernel", by_kernel([s for s in ("5.10",) if s in SERIES]))
def test_a_kernel_that_is_too_old(physview, kernel):
    told = refusal_in_vm(physview, kernel)
    assert "this kernel has no bpf_loop(), which came with Linux 5.17" in told
