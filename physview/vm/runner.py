# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command in a VM: builds the initramfs, boots, and returns the command's exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from physview.errors import PhysviewError
from physview.runtime import child_python, proc_mount
from physview.text import output
from physview.vm import guest, init, initramfs, qemu
from physview.vm.failures import VmLost, VmUnusable
from physview.vm.session import Session

BOOT_TIMEOUTS = {qemu.KVM: 30.0, qemu.TCG: 180.0}
"""The longest time until the guest is ready, in seconds. TCG is slow on a busy machine."""

SILENCE_TIMEOUTS = {qemu.KVM: 15.0, qemu.TCG: 60.0}
"""Seconds without a line in the kernel's log after which the kernel counts as hung.

The kernel logs nothing while it is decompressed.
"""


# zram does not always depend on the module of its default compressor (5.10, 6.1).
SWAP_MODULES = ("lzo_rle", "zram")


class Bootable(Protocol):
    """A kernel that `run()` can boot. physview.kernels.Kernel is one."""

    @property
    def image(self) -> Path:
        """The kernel's image, a bzImage."""

    @property
    def modules(self) -> Path:
        """The kernel's folder lib/modules/RELEASE, installed or unpacked anywhere."""


class VmResult(NamedTuple):
    """The result of a command in a VM.

    Args:
        exit_code: The command's exit code in the shell's convention: 128 + N if signal N killed
            the command, 126 or 127 if the command could not be started.
        accelerator: "kvm" or "tcg".
        boot_seconds: The time from QEMU's start until the guest was ready, in seconds.
        nr_lost: The number of VMs that were lost before this one.
    """

    exit_code: int
    accelerator: str
    boot_seconds: float
    nr_lost: int


def run(
    kernel: Bootable,
    command: Sequence[str],
    *,
    modules: Sequence[Path] = (),
    la57: bool = False,
    memory_mib: int = 1024,
    cpus: int = 2,
    nodes: int = 1,
    timeout: float | None = None,
    boot_timeout: float | None = None,
    append: str = "",
    swap_mib: int = 0,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    console: BinaryIO | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> VmResult:
    """Run a command as root in a throwaway VM over this machine's root folder.

    The guest sees every file that the caller may read. Its writes are lost when the VM ends.

    Args:
        kernel: The kernel to boot.
        command: The program and its arguments. The program is searched in the guest's PATH. Its
            stdin is empty.
        modules: Modules (.ko) to load before the command. They get their parameters from the
            kernel's command line, NAME.PARAMETER=VALUE, as with modprobe.
        la57: Whether page tables have five levels instead of four.
        memory_mib: The size of the VM's RAM in MiB.
        cpus: The number of the VM's CPUs.
        nodes: The number of NUMA nodes. Memory and CPUs are divided among them.
        timeout: The longest duration of the command in seconds; None for no limit.
        boot_timeout: The longest duration of the boot in seconds; BOOT_TIMEOUTS by default.
        append: Further words for the kernel's command line, such as "hugepages=8".
        swap_mib: The size of the swap area in MiB. It is in the guest's RAM, compressed (zram).
        cwd: The command's working folder; the caller's by default.
        env: The command's environment; the caller's by default. PATH also gets the folder of the
            running physview, /usr/sbin and /sbin. HOME is replaced if it can't be written.
        stdout, stderr: The files that receive the command's output while it runs; the caller's by
            default.
        console: The file that receives the kernel's log; none by default.
        say: Called with a message if a VM was lost and another is started.

    Raises:
        KernelCrashed: The guest's kernel oopsed or panicked.
        VmLost: Two VMs died or did not boot.
        VmTimeout: The command took longer than its timeout.
        VmUnusable: QEMU is missing, or the guest can't load a module or enter the folder.
        Unsupported: The kernel lacks a required driver.
    """
    missing = proc_mount.why_no_file("/proc/self/fd")
    if missing:  # QEMU opens the initramfs as /dev/fd/N
        raise VmUnusable("no VM can be started", *missing)
    vm = qemu.QemuMachine(Path(kernel.image), memory_mib, cpus, la57, append, nodes)
    process_1 = child_python.script(guest.__file__, "-S")
    archive = initramfs.make(Path(kernel.modules), process_1, SWAP_MODULES if swap_mib else ())
    request = {
        "command": list(command),
        "modules": [os.path.abspath(path) for path in modules],
        "kernel_modules": os.path.abspath(kernel.modules),
        "finit_module": init.SYS_FINIT_MODULE,
        "swap_mib": swap_mib,
        "cwd": os.path.abspath(cwd or "."),
        "env": _environment(os.environ if env is None else env),
    }
    outputs = {
        guest.STDOUT: stdout or output.unfiltered(sys.stdout),
        guest.STDERR: stderr or output.unfiltered(sys.stderr),
    }
    accelerators = list(vm.accelerators())
    for nr_lost, accelerator in enumerate(accelerators):
        with Session(vm, accelerator, archive, outputs, console) as session:
            try:
                session.boot(
                    request,
                    boot_timeout or BOOT_TIMEOUTS[accelerator],
                    SILENCE_TIMEOUTS[accelerator],
                )
                if accelerator == qemu.TCG and qemu.KVM in accelerators:
                    qemu.remember_that_kvm_fails()
                return VmResult(session.wait(timeout), accelerator, session.boot_seconds, nr_lost)
            except VmLost as lost:
                if session.has_output or nr_lost == len(accelerators) - 1:
                    raise
                following = accelerators[nr_lost + 1]
                how = f"with {following}" if following != accelerator else "once more"
                say(str(lost))
                say(f"trying {how}")
    raise AssertionError("the last accelerator returns or raises")


def why_unbootable(kernel: Bootable) -> str:
    """Return why `run()` can't boot a kernel, judged by its modules; "" if it can."""
    try:
        initramfs.make(Path(kernel.modules), ["/"])
    except PhysviewError as error:
        return str(error)
    return ""


def _environment(caller: Mapping[str, str]) -> dict[str, str]:
    environment = dict(caller)
    folders = [*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/sbin"]
    scripts = os.path.dirname(sys.executable)
    if os.path.exists(f"{scripts}/physview"):
        folders.insert(0, scripts)
    environment["PATH"] = ":".join(dict.fromkeys(filter(None, folders)))
    return environment
