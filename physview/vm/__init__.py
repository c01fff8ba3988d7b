# SPDX-License-Identifier: GPL-2.0-or-later
"""A throwaway virtual machine: the kernel one wants, with this machine's own root below it.

virtme-ng does the same and was tried: it needs udev, depmod and modprobe on the host, takes twice
as long to boot, and its exit code 255 may be a kernel that crashed, a VM that was lost, or a wrong
option. This needs QEMU alone.
"""

from physview.vm.failures import KernelCrashed, VmLost, VmTimeout, VmUnusable
from physview.vm.runner import Bootable, Outcome, run, why_unbootable

__all__ = [
    "Bootable",
    "KernelCrashed",
    "Outcome",
    "VmLost",
    "VmTimeout",
    "VmUnusable",
    "run",
    "why_unbootable",
]
