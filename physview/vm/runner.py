# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command in a VM, from the boot to the exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from physview.errors import PhysviewError
from physview.runtime import child_python, proc_mount
from physview.text import output
from physview.vm import guest, initramfs, machine
from physview.vm.failures import VmLost, VmUnusable
from physview.vm.session import Session

BOOT_TIMEOUTS = {machine.KVM: 30.0, machine.TCG: 180.0}
"""Seconds until the guest must have answered. TCG on a busy machine is slow."""

SILENCES = {machine.KVM: 15.0, machine.TCG: 60.0}
"""Seconds without a word from the kernel after which it hangs. It is unpacked in silence."""


# zram's default compressor is not always among what it depends on (5.10, 6.1).
SWAP_MODULES = ("lzo_rle", "zram")


class Bootable(Protocol):
    """What `run()` needs to know of a kernel; physview.kernels.Kernel is one."""

    @property
    def image(self) -> Path:
        """The bzImage."""

    @property
    def modules(self) -> Path:
        """Its lib/modules/RELEASE, installed or unpacked anywhere."""


class Outcome(NamedTuple):
    """How a command ended that ran in a VM.

    Args:
        exit_code: The command's, as a shell counts it: 128 + N when signal N killed it, 126 and
            127 when it could not be started.
        accelerator: "kvm" or "tcg".
        boot_seconds: From QEMU's start until the guest was ready for the command.
        nr_lost: VMs that were lost before this one.
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
) -> Outcome:
    """Run a command as root in a throwaway VM over this machine's root, and pass its output on.

    The guest sees every file that the caller may read. What it writes is gone with it.

    Args:
        kernel: The kernel to boot.
        command: Program and arguments; looked up in the guest's PATH. Its stdin is empty.
        modules: Modules (.ko) to load before it. As modprobe would, they get the parameters that
            the kernel's command line has for them: NAME.PARAMETER=VALUE.
        la57: Page tables with five levels, not four.
        memory_mib: The VM's RAM.
        cpus: The VM's CPUs.
        nodes: Its NUMA nodes, among which memory and CPUs are dealt out.
        timeout: Seconds that the command may take; None for any time.
        boot_timeout: Seconds until it must be there; BOOT_TIMEOUTS by default.
        append: Further words for the kernel's command line, as "hugepages=8".
        swap_mib: How much can be swapped out; it goes into compressed RAM of the guest's (zram).
        cwd: Where the command starts; here by default.
        env: Its environment; ours by default. PATH also gets the folder of the running physview,
            and those of the system's administrator; HOME is replaced where it can't be written.
        stdout, stderr: Where its output goes as it comes; ours by default.
        console: Where the kernel's log goes as it comes; nowhere by default.
        say: Told when a VM was lost and is tried again.

    Raises:
        KernelCrashed: The guest's kernel oopsed or panicked.
        VmLost: The VM died or did not boot, twice.
        VmTimeout: The command took too long.
        VmUnusable: QEMU is missing, or a module or the folder cannot be had in the guest.
        Unsupported: The kernel lacks a driver that is needed.
    """
    missing = proc_mount.why_no_file("/proc/self/fd")
    if missing:  # QEMU gets the initramfs as /dev/fd/N
        raise VmUnusable("no VM can be started", *missing)
    vm = machine.Machine(Path(kernel.image), memory_mib, cpus, la57, append, nodes)
    first = child_python.script(guest.__file__, "-S")
    archive = initramfs.make(Path(kernel.modules), first, SWAP_MODULES if swap_mib else ())
    request = {
        "command": list(command),
        "modules": [os.path.abspath(path) for path in modules],
        "kernel_modules": os.path.abspath(kernel.modules),
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
                    request, boot_timeout or BOOT_TIMEOUTS[accelerator], SILENCES[accelerator]
                )
                if accelerator == machine.TCG and machine.KVM in accelerators:
                    machine.remember_that_kvm_fails()
                return Outcome(session.wait(timeout), accelerator, session.boot_seconds, nr_lost)
            except VmLost as lost:
                if session.has_output or nr_lost == len(accelerators) - 1:
                    raise
                then = accelerators[nr_lost + 1]
                with_what = f"with {then}" if then != accelerator else "once more"
                say(str(lost))
                say(f"trying {with_what}")
    raise AssertionError("there is always a last accelerator")


def why_unbootable(kernel: Bootable) -> str:
    """What keeps a kernel from `run()`, as far as its modules tell; empty where nothing does."""
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
