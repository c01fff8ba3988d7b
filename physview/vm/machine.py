# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, and which accelerator it is given."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
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

# Every fault ends the VM, at once. PTI doubles the cost of each system call in an emulator.
_KERNEL_OPTIONS = "console=ttyS0 oops=panic panic=-1 mitigations=off random.trust_cpu=on audit=0"
# Code that is patched while another emulated CPU runs it can kill the kernel: int3 in
# sched_clock_cpu(), seen with 7.2 on a busy machine. With this its static key never changes.
_KERNEL_OPTIONS_OF = {KVM: "", TCG: "tsc=unstable"}

# What an emulated CPU must not have. QEMU emulates "rep movsb" and "rep stosb" byte by byte, and
# kernels choose them by these flags: without, memory is five times as fast. They go together: the
# kernel's memmove() up to 6.1 takes FSRM as a promise of ERMS, and never returns where only ERMS is
# off (QEMU 10.0 has FSRM, 7.2 has not). fsrs, fzrm and fsrc are of that kind.
_SLOW_STRINGS = ("erms", "fsrm", "fsrs", "fzrm", "fsrc")
# QEMU 7.2 emulates AVX2 such that NumPy's argsort() does not sort: 73 of 100 arrays, seen.
_WRONG = ("avx2",)


class Machine(NamedTuple):
    """What a VM is made of.

    Args:
        image: The kernel, a bzImage.
        memory_mib: RAM.
        nr_cpus: CPUs.
        nr_nodes: NUMA nodes, among which memory and CPUs are dealt out.
        la57: Whether its page tables have five levels, not four.
        append: Further words for the kernel's command line.
    """

    image: Path
    memory_mib: int = 1024
    nr_cpus: int = 2
    la57: bool = False
    append: str = ""
    nr_nodes: int = 1

    def command(
        self, accelerator: str, initramfs_fd: int, console_fd: int, port_fd: int
    ) -> list[str]:
        """The command line.

        Args:
            accelerator: KVM or TCG.
            initramfs_fd: A file.
            console_fd: A connected socket, for the kernel's log.
            port_fd: A connected socket, for what guest.py says and is told.

        Raises:
            VmUnusable: QEMU is not installed.
        """
        if not shutil.which(QEMU):
            remedy = packages.install_line("qemu")
            raise VmUnusable("cannot start a VM", "QEMU is not installed", remedy)
        cpu = ",".join(("max", f"la57={'on' if self.la57 else 'off'}", *_flags_off(accelerator)))
        # The CPUs of one package are of one node: of others the kernel complains.
        sockets = f",sockets={self.nr_cpus}" if self.nr_nodes > 1 else ""
        options = f"{_KERNEL_OPTIONS} {_KERNEL_OPTIONS_OF[accelerator]} {self.append}"
        return [
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", f"q35,accel={accelerator}", "-cpu", cpu),
            *("-smp", f"{self.nr_cpus}{sockets}", "-m", str(self.memory_mib)),
            *self._node_options(),
            *("-kernel", str(self.image), "-initrd", f"/dev/fd/{initramfs_fd}"),
            *("-append", " ".join(filter(None, options.split(" ")))),
            *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port_fd}"),
            *("-device", "virtserialport,chardev=port,name=physview"),
            *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", f"virtio-9p-pci,fsdev=root,mount_tag={initramfs.ROOT_TAG}"),
        ]

    def _node_options(self) -> Iterator[str]:
        if self.nr_nodes == 1:
            return
        for node in range(self.nr_nodes):
            # What cannot be divided is the first one's.
            rest = self.memory_mib % self.nr_nodes if node == 0 else 0
            size = self.memory_mib // self.nr_nodes + rest
            cpus = (f",cpus={cpu}" for cpu in range(node, self.nr_cpus, self.nr_nodes))
            yield from ("-object", f"memory-backend-ram,id=node{node},size={size}M")
            yield from ("-numa", f"node,nodeid={node},memdev=node{node}{''.join(cpus)}")

    def accelerators(self) -> Iterator[str]:
        """Yield what to try, in order: the last one comes twice, as a lost VM is tried again.

        Raises:
            UsageError: PHYSVIEW_VM_ACCEL holds what is none.
        """
        wanted = os.environ.get(ACCELERATOR_VARIABLE, "auto")
        if wanted not in (KVM, TCG, "auto"):
            what = f"{ACCELERATOR_VARIABLE}={wanted} is no accelerator"
            raise UsageError(what, "", f"use {KVM}, {TCG} or auto")
        if wanted == "auto" and self._kvm_may_work():
            yield KVM
        last = KVM if wanted == KVM else TCG
        yield from (last, last)

    def _kvm_may_work(self) -> bool:
        if not can_open_kvm() or _kvm_note() == _boot_id():
            return False
        # The emulated CPU has five levels on any machine, KVM's only where the real one has.
        return not self.la57 or "la57" in re.split("[ \n]", _read(Path("/proc/cpuinfo")))


def _flags_off(accelerator: str) -> list[str]:
    """The CPU's flags to take away: of a real CPU none, of an emulated one those QEMU knows."""
    if accelerator != TCG:
        return []
    known = _known_flags(shutil.which(QEMU) or QEMU)
    return [f"{flag}=off" for flag in (*_SLOW_STRINGS, *_WRONG) if flag in known]


@functools.cache
def _known_flags(qemu: str) -> frozenset[str]:
    """The CPU flags that this QEMU has a name for; it does not start with any other."""
    result = subprocess.run(
        [qemu, "-cpu", "help"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return frozenset(result.stdout.decode("ascii", "replace").split())


def can_open_kvm() -> bool:
    """Whether this user may; that it works is another thing."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def remember_that_kvm_fails() -> None:
    """Use TCG from now on, until this machine is booted again."""
    from physview.kernels import make_cache_dir

    # Without a cache that is safe to write to there is no note, and KVM is tried each time.
    with suppress(OSError, PhysviewError):
        (make_cache_dir() / _KVM_NOTE).write_text(_boot_id())


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
