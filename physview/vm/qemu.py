# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, and the choice of the accelerator: KVM or TCG."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import PhysviewError, UsageError
from physview.runtime import packages
from physview.vm import initramfs
from physview.vm.failures import VmUnusable

QEMU = "qemu-system-x86_64"
ACCELERATOR_VARIABLE = "PHYSVIEW_VM_ACCEL"
KVM, TCG = "kvm", "tcg"
_KVM_NOTE = "kvm-fails"

# Every oops ends the VM at once (oops=panic panic=-1). mitigations=off: page table isolation
# doubles the cost of each system call in an emulator.
_KERNEL_OPTIONS = "console=ttyS0 oops=panic panic=-1 mitigations=off random.trust_cpu=on audit=0"
# The kernel patches the code of a static key while other CPUs run it. On emulated CPUs the patching
# can crash the kernel: int3 in sched_clock_cpu(), seen with QEMU 7.2 on a busy machine. With
# tsc=unstable this static key never changes.
_KERNEL_OPTIONS_OF = {KVM: "", TCG: "tsc=unstable"}

# CPU flags that an emulated CPU must not have. QEMU emulates "rep movsb" and "rep stosb" byte by
# byte, and kernels use these instructions if the CPU has these flags. Without the flags, memory
# copies are five times as fast. All of them must be off: up to 6.1 the kernel's memmove() assumes
# that FSRM implies ERMS, and hangs if only ERMS is off (QEMU 10.0 has FSRM, 7.2 does not). fsrs,
# fzrm and fsrc are flags of the same kind.
_SLOW_STRINGS = ("erms", "fsrm", "fsrs", "fzrm", "fsrc")
# QEMU 7.2 emulates AVX2 wrongly: NumPy's argsort() failed to sort 73 of 100 arrays.
_WRONG = ("avx2",)


class QemuMachine(NamedTuple):
    """The configuration of a virtual machine.

    Args:
        image: The kernel's image, a bzImage.
        memory_mib: The size of RAM in MiB.
        nr_cpus: The number of CPUs.
        nr_nodes: The number of NUMA nodes. Memory and CPUs are divided among them.
        la57: Whether page tables have five levels instead of four.
        append: Further words for the kernel's command line.
        qmp_fd: A connected socket for QMP; None for no QMP.
    """

    image: Path
    memory_mib: int = 1024
    nr_cpus: int = 2
    la57: bool = False
    append: str = ""
    nr_nodes: int = 1
    qmp_fd: int | None = None

    def command(
        self, accelerator: str, initramfs_fd: int, console_fd: int, port_fd: int
    ) -> list[str]:
        """Return QEMU's command line.

        Args:
            accelerator: KVM or TCG.
            initramfs_fd: The descriptor of the initramfs.
            console_fd: A connected socket for the kernel's log.
            port_fd: A connected socket for the messages of guest.py.

        Raises:
            VmUnusable: QEMU is not installed.
        """
        if not shutil.which(QEMU):
            remedy = packages.install_line("qemu")
            raise VmUnusable("cannot start a VM", "QEMU is not installed", remedy)
        cpu = ",".join(("max", f"la57={'on' if self.la57 else 'off'}", *_flags_off(accelerator)))
        # The kernel warns if the CPUs of one socket are in different nodes.
        sockets = f",sockets={self.nr_cpus}" if self.nr_nodes > 1 else ""
        options = f"{_KERNEL_OPTIONS} {_KERNEL_OPTIONS_OF[accelerator]} {self.append}"
        return [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", f"q35,accel={accelerator}", "-cpu", cpu),
            *("-smp", f"{self.nr_cpus}{sockets}", "-m", str(self.memory_mib)),
            *self._node_options(),
            *self._qmp_options(),
            *("-kernel", str(self.image), "-initrd", f"/dev/fd/{initramfs_fd}"),
            *("-append", " ".join(filter(None, options.split(" ")))),
            *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port_fd}"),
            *("-device", "virtserialport,chardev=port,name=physview"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", f"virtio-9p-pci,fsdev=root,mount_tag={initramfs.ROOT_TAG}"),
        ]

    def _qmp_options(self) -> Iterator[str]:
        if self.qmp_fd is not None:
            yield from ("-chardev", f"socket,id=qmp,fd={self.qmp_fd}")
            yield from ("-mon", "chardev=qmp,mode=control")

    def _node_options(self) -> Iterator[str]:
        if self.nr_nodes == 1:
            return
        for node in range(self.nr_nodes):
            # The first node gets the remainder of the division.
            rest = self.memory_mib % self.nr_nodes if node == 0 else 0
            size = self.memory_mib // self.nr_nodes + rest
            cpus = (f",cpus={cpu}" for cpu in range(node, self.nr_cpus, self.nr_nodes))
            yield from ("-object", f"memory-backend-ram,id=node{node},size={size}M")
            yield from ("-numa", f"node,nodeid={node},memdev=node{node}{''.join(cpus)}")

    def accelerators(self) -> Iterator[str]:
        """Yield the accelerators to try, in order. The last one comes twice: a lost VM is retried.

        Raises:
            UsageError: PHYSVIEW_VM_ACCEL names no accelerator.
        """
        wanted = os.environ.get(ACCELERATOR_VARIABLE, "auto")
        if wanted not in (KVM, TCG, "auto"):
            what = f"{ACCELERATOR_VARIABLE}={wanted} names no accelerator"
            raise UsageError(what, "", f"use {KVM}, {TCG} or auto")
        if wanted == "auto" and self._kvm_may_work():
            yield KVM
        last = KVM if wanted == KVM else TCG
        yield from (last, last)

    def _kvm_may_work(self) -> bool:
        if not can_open_kvm() or kvm_has_failed():
            return False
        # TCG emulates five levels on any machine. KVM needs a real CPU with five levels.
        return not self.la57 or "la57" in re.split("[ \n]", _read(Path("/proc/cpuinfo")))


def _flags_off(accelerator: str) -> list[str]:
    """Return the QEMU options that turn CPU flags off; none for KVM, which has a real CPU.

    QEMU refuses a flag that it does not know. Only known flags are turned off.
    """
    if accelerator != TCG:
        return []
    known = _known_flags(shutil.which(QEMU) or QEMU)
    return [f"{flag}=off" for flag in (*_SLOW_STRINGS, *_WRONG) if flag in known]


@functools.cache
def _known_flags(qemu: str) -> frozenset[str]:
    """Return the CPU flags that this QEMU knows."""
    result = subprocess.run(
        [qemu, "-cpu", "help"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return frozenset(result.stdout.decode("ascii", "replace").split())


def can_open_kvm() -> bool:
    """Whether this user may open /dev/kvm. KVM can still fail."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def remember_that_kvm_fails() -> bool:
    """Write a note to the cache that KVM fails. Until the next boot of the host, TCG is used.

    Returns:
        Whether the note was written. If the cache can't be written safely, there is no note, and
        KVM is tried each time.
    """
    from physview.kernels import make_cache_dir

    try:
        (make_cache_dir() / _KVM_NOTE).write_text(_boot_id())
    except (OSError, PhysviewError):
        return False
    return True


def kvm_has_failed() -> bool:
    """Whether KVM failed since this machine booted, by the note in the cache."""
    note = _kvm_note()
    return note != "" and note == _boot_id()


def _kvm_note() -> str:
    from physview.kernels import cache_dir

    try:
        return _read(cache_dir(_KVM_NOTE))
    except PhysviewError:
        return ""


def _boot_id() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("ascii", "replace")
    except OSError:
        return ""
