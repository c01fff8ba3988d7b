# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a VM for the tests of the process that calls this program, and which the VM ends with.

    start_vm.py NAME

stdin has the machine as JSON: kernel (the members of kernels.Kernel), drivers (modules of the
kernel), own_module, boot_timeout, and options of vm.plan().
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from physview import kernels, vm
from physview.vm import initramfs, keeper


def main() -> None:
    """Start the VM, and return when it is ready."""
    machine = json.load(sys.stdin)
    release, *paths = machine["kernel"]
    kernel = kernels.Kernel(release, *(path and Path(path) for path in paths))
    with tempfile.TemporaryDirectory() as folder:
        modules = []
        if kernel.modules.exists():  # else all drivers are built in
            for name, content in initramfs.load_order(kernel.modules, machine["drivers"]):
                modules.append(Path(folder, f"{name}.ko"))
                modules[-1].write_bytes(content)
        planned = vm.plan(
            kernel, modules=[*modules, Path(machine["own_module"])], **machine["options"]
        )
        told = keeper.start(
            sys.argv[1],
            planned,
            {
                "name": sys.argv[1],
                "release": release,
                "cpus": planned.machine.nr_cpus,
                "memory_mib": planned.machine.memory_mib,
            },
            owner=os.getppid(),
            idle_seconds=600,
            boot_timeout=machine["boot_timeout"],
            say=print,
        )
    print(f"{release}: booted in {told['boot_seconds']} s ({told['accelerator']})")


if __name__ == "__main__":
    main()
