# SPDX-License-Identifier: GPL-2.0-or-later
"""Device mappings that only a VM has: persistent memory with DAX, udmabuf, PCI devices."""

import pytest
from guests import disk_modules, guest_tests, run_in_guest
from kernel_series import SERIES, by_kernel

from physview import kernels

# Before 6.12 Debian's kernel has no udmabuf. From 6.16 on, smaps counts the memory of DAX.
NEWER = ("6.12", "7.3")

pytestmark = pytest.mark.needs("vm", "index", "cc")


@pytest.mark.parametrize("series", by_kernel([each for each in NEWER if each in SERIES]))
def test_device_mappings_in_a_vm(tmp_path, series):
    has = "root,pfn,kpage,pci,udmabuf,pmem,bpf"
    kernel = kernels.find_kernel(series)
    outcome, output = run_in_guest(
        kernel,
        tmp_path,
        guest_tests("device_mappings"),
        has=has,
        drivers=("nd_e820", "nd_pmem", *disk_modules(kernel)),
        append="memmap=256M!1G",
    )
    assert outcome.exit_code == 0, output
    assert " passed" in output
