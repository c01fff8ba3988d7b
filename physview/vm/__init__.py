# SPDX-License-Identifier: GPL-2.0-or-later
"""Throwaway virtual machines: they run a command on a chosen kernel, with the host's root folder.

The guest reads the host's files, and its writes go into a temporary layer over them. Only QEMU is
needed. virtme-ng does the same and was tried: it needs udev, depmod and modprobe on the host, takes
twice as long to boot, and its exit code 255 can mean a crashed kernel, a lost VM or a wrong option.
"""

from physview.vm.attachment import has_terminal
from physview.vm.failures import KernelCrashed, VmLost, VmTimeout, VmUnusable
from physview.vm.runner import Bootable, ForeignRoot, VmResult, plan, run, why_unbootable

__all__ = [
    "Bootable",
    "ForeignRoot",
    "KernelCrashed",
    "VmLost",
    "VmResult",
    "VmTimeout",
    "VmUnusable",
    "has_terminal",
    "plan",
    "run",
    "why_unbootable",
]
