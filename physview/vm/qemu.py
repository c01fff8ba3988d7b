# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, and the choice of the accelerator: KVM or TCG."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from physview.errors import PhysviewError, UsageError
from physview.runtime import packages
from physview.vm import initramfs
from physview.vm.failures import VmUnusable

ACCELERATOR_VARIABLE = "PHYSVIEW_VM_ACCEL"
KVM, TCG = "kvm", "tcg"
_KVM_NOTE = "kvm-fails"

# Every oops ends the VM at once (oops=panic panic=-1). mitigations=off: page table isolation
# doubles the cost of each system call in an emulator.
_KERNEL_OPTIONS = "oops=panic panic=-1 mitigations=off random.trust_cpu=on audit=0"


class Board(NamedTuple):
    """The machine that QEMU makes for an architecture.

    Args:
        machine: QEMU's name of it.
        console: The first serial port, as the kernel calls it.
        kernel_options: Words for the kernel's command line, by accelerator.
        cpu_options: Options of the CPU, by accelerator.
    """

    machine: str
    console: str
    kernel_options: Mapping[str, str]
    cpu_options: Mapping[str, tuple[str, ...]]


BOARDS = {
    # The kernel patches the code of a static key while other CPUs run it. On emulated CPUs the
    # patching can crash the kernel: int3 in sched_clock_cpu(), seen with QEMU 7.2 on a busy
    # machine. With tsc=unstable this static key never changes.
    "x86_64": Board("q35", "ttyS0", {KVM: "", TCG: "tsc=unstable"}, {KVM: (), TCG: ()}),
    # QEMU's own pointer authentication takes a hash that costs a third of all time.
    "aarch64": Board("virt", "ttyAMA0", {KVM: "", TCG: ""}, {KVM: (), TCG: ("pauth-impdef=on",)}),
}
"""By architecture, as `os.uname().machine` names it."""

# CPU flags that an emulated CPU must not have. QEMU emulates "rep movsb" and "rep stosb" byte by
# byte, and kernels use these instructions if the CPU has these flags. Without the flags, memory
# copies are five times as fast. All of them must be off: up to 6.1 the kernel's memmove() assumes
# that FSRM implies ERMS, and hangs if only ERMS is off (QEMU 10.0 has FSRM, 7.2 does not). fsrs,
# fzrm and fsrc are flags of the same kind.
_SLOW_STRINGS = ("erms", "fsrm", "fsrs", "fzrm", "fsrc")
_GICV2_CPUS = 8
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
        machine: The architecture, as in `uname -m`; "" for this machine's.
        root: The folder that the guest has as its root.
        shares: More folders of this machine that the guest sees.
    """

    image: Path
    memory_mib: int = 1024
    nr_cpus: int = 2
    la57: bool = False
    append: str = ""
    nr_nodes: int = 1
    qmp_fd: int | None = None
    machine: str = ""
    root: Path = Path("/")
    shares: tuple[Path, ...] = ()

    @property
    def architecture(self) -> str:
        """The architecture of the VM, as in `uname -m`."""
        return self.machine or os.uname().machine

    @property
    def qemu(self) -> str:
        """The name of the program QEMU for this VM."""
        return packages.qemu_program(self.architecture)

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
        check_installed(self.architecture)
        board = BOARDS[self.architecture]
        cpu = ",".join(("max", *self._cpu_options(accelerator)))
        # The kernel warns if the CPUs of one socket are in different nodes.
        sockets = f",sockets={self.nr_cpus}" if self.nr_nodes > 1 else ""
        options = " ".join(
            [
                f"console={board.console}",
                _KERNEL_OPTIONS,
                board.kernel_options[accelerator],
                self.append,
            ]
        )
        return [
            *(self.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", f"{self._board_options(board)},accel={accelerator}", "-cpu", cpu),
            *("-smp", f"{self.nr_cpus}{sockets}", "-m", str(self.memory_mib)),
            *self._node_options(),
            *self._qmp_options(),
            *("-kernel", str(self.image), "-initrd", f"/dev/fd/{initramfs_fd}"),
            *("-append", " ".join(filter(None, options.split(" ")))),
            *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,fd={port_fd}"),
            *("-device", "virtserialport,chardev=port,name=physview"),
            *self._folder_options("root", self.root, initramfs.ROOT_TAG),
            *(
                word
                for number, share in enumerate(self.shares)
                for word in self._folder_options(
                    f"share{number}", share, initramfs.share_tag(number)
                )
            ),
        ]

    def _board_options(self, board: Board) -> str:
        # The interrupt controller GICv2, which QEMU chooses if it can, has room for 8 CPUs.
        is_large = self.architecture == "aarch64" and self.nr_cpus > _GICV2_CPUS
        # By default QEMU lets the host merge guest frames (KSM). ksmd would then scan all of RAM,
        # and frames would move while something looks at them.
        return board.machine + ",mem-merge=off" + (",gic-version=max" if is_large else "")

    @staticmethod
    def _folder_options(name: str, path: Path, tag: str) -> Iterator[str]:
        where = str(path).replace(",", ",,")  # QEMU's options are separated by commas
        options = "security_model=none,readonly=on,multidevs=remap"
        yield from ("-fsdev", f"local,id={name},path={where},{options}")
        yield from ("-device", f"virtio-9p-pci,fsdev={name},mount_tag={tag}")

    def _cpu_options(self, accelerator: str) -> Iterator[str]:
        if self.architecture == "x86_64":
            yield f"la57={'on' if self.la57 else 'off'}"
            yield from _flags_off(accelerator, self.qemu)
        yield from BOARDS[self.architecture].cpu_options[accelerator]

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
        is_own = self.architecture == os.uname().machine
        if wanted == "auto" and is_own and self._kvm_may_work():
            yield KVM
        last = KVM if wanted == KVM and is_own else TCG
        yield from (last, last)

    def _kvm_may_work(self) -> bool:
        if not can_open_kvm() or kvm_has_failed():
            return False
        # TCG emulates five levels on any machine. KVM needs a real CPU with five levels.
        return not self.la57 or "la57" in re.split("[ \n]", _read(Path("/proc/cpuinfo")))


def check_installed(machine: str = "") -> None:
    """Check that QEMU is installed.

    Args:
        machine: The architecture of the VM, as in `uname -m`; by default this machine's.

    Raises:
        VmUnusable: QEMU is missing, or physview makes no VMs of this architecture.
    """
    machine = machine or os.uname().machine
    what = "cannot start a VM"
    if machine not in BOARDS:
        why = f"physview makes VMs of {' and '.join(BOARDS)} only, and this machine is {machine}"
        raise VmUnusable(what, why)
    if not shutil.which(packages.qemu_program(machine)):
        remedy = packages.install_line("qemu", machine=machine)
        raise VmUnusable(what, f"there is no {packages.qemu_program(machine)}", remedy)


def _flags_off(accelerator: str, qemu: str) -> list[str]:
    """Return the QEMU options that turn CPU flags off; none for KVM, which has a real CPU.

    QEMU refuses a flag that it does not know. Only known flags are turned off.
    """
    if accelerator != TCG:
        return []
    known = _known_flags(shutil.which(qemu) or qemu)
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
