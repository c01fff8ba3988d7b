# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out whether this machine is a VM. Its physical addresses are guest-physical then.

A VM is what runs a kernel of its own below a hypervisor. A container is none: it shares the kernel,
and these files are the kernel's. Every user may read them.

Source: systemd's src/basic/virt.c has most of the same signs
"""

from __future__ import annotations

import os
from typing import NamedTuple

from physview.text import proctext

CPUINFO_BYTES = 8192
"""How much of /proc/cpuinfo is read: a processor's part. With hundreds, all of it takes long."""

DMI = "/sys/class/dmi/id"
DMI_FIELDS = ("product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version")
DEVICE_TREE = "/proc/device-tree"
CLOCKSOURCES = "/sys/devices/system/clocksource/clocksource0/available_clocksource"

EMULATED = "QEMU"
"""The name of a hypervisor that emulates the processor: QEMU without KVM."""

# What a field of DMI begins with, and the hypervisor. The order counts: QEMU's own name comes last,
# because it is there with KVM, too. "Virtual Machine" alone is Microsoft's product name.
_DMI_NAMES = (
    (b"KVM", "KVM"),
    (b"OpenStack", "KVM"),
    (b"KubeVirt", "KVM"),
    (b"Amazon EC2", "Amazon EC2"),
    (b"Google Compute Engine", "KVM, Google"),
    (b"DigitalOcean", "KVM"),
    (b"VMware", "VMware"),
    (b"VMW", "VMware"),
    (b"innotek GmbH", "VirtualBox"),
    (b"VirtualBox", "VirtualBox"),
    (b"Xen", "Xen"),
    (b"Bochs", "Bochs"),
    (b"Parallels", "Parallels"),
    (b"BHYVE", "bhyve"),
    (b"Hyper-V", "Hyper-V"),
    (b"Apple Virtualization", "Apple Virtualization"),
    (b"QEMU", EMULATED),
)
_CLOCKS = ((b"kvm-clock", "KVM"), (b"hyperv_clocksource", "Hyper-V"), (b"xen", "Xen"))
# "compatible" of a device tree's root, or of its node hypervisor.
_TREE_NAMES = (
    (b"linux,kvm", "KVM"),
    (b"xen,xen", "Xen"),
    (b"vmware", "VMware"),
    (b"linux,dummy-virt", "QEMU or another with a virtual board"),
)


MEANING = "its physical addresses are guest-physical, and its host keeps them elsewhere"
"""What follows for physical addresses, in words."""


class Hypervisor(NamedTuple):
    """What this machine runs on.

    Args:
        name: The hypervisor's name; "" if only its existence is known.
        sign: How it is known: the file and what it says.
    """

    name: str
    sign: str

    def __str__(self) -> str:
        return f"a VM ({self.name})" if self.name else "a VM"


class MachineFiles(NamedTuple):
    """What the kernel's files say of the machine. A file that is missing is empty.

    Args:
        machine: The architecture, as of uname: "x86_64", "aarch64".
        cpuinfo: The beginning of /proc/cpuinfo.
        dmi: The values of DMI_FIELDS in /sys/class/dmi/id.
        hypervisor_type: /sys/hypervisor/type.
        tree: "compatible" of the device tree's root and of its node hypervisor.
        clocksources: The clock sources that the kernel could use.
        has_fw_cfg: Whether the device tree has QEMU's node fw-cfg.
    """

    machine: str
    cpuinfo: bytes = b""
    dmi: tuple[bytes, ...] = ()
    hypervisor_type: bytes = b""
    tree: bytes = b""
    clocksources: bytes = b""
    has_fw_cfg: bool = False


def detect() -> Hypervisor | None:
    """Find the hypervisor below this machine; None if there is no sign of one."""
    return find(read_files())


def read_files() -> MachineFiles:
    """Read what the kernel says of the machine. No file needs privileges."""
    tree = [
        proctext.read_or_empty(f"{DEVICE_TREE}/{name}")
        for name in ("hypervisor/compatible", "compatible")
    ]
    return MachineFiles(
        os.uname().machine,
        _first_processor(),
        tuple(proctext.value(proctext.read_or_empty(f"{DMI}/{name}")) for name in DMI_FIELDS),
        proctext.value(proctext.read_or_empty("/sys/hypervisor/type")),
        b"\0".join(tree),
        proctext.read_or_empty(CLOCKSOURCES),
        any(name.startswith("fw-cfg@") for name in _names(DEVICE_TREE)),
    )


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _first_processor() -> bytes:
    try:
        fd = os.open("/proc/cpuinfo", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, CPUINFO_BYTES)
    finally:
        os.close(fd)


def find(files: MachineFiles) -> Hypervisor | None:
    """Judge what the kernel says of the machine.

    >>> find(MachineFiles("x86_64", b"flags\\t: fpu hypervisor\\n", clocksources=b"kvm-clock"))
    Hypervisor(name='KVM', sign='the flag hypervisor in /proc/cpuinfo')
    >>> find(MachineFiles("x86_64", b"flags\\t: fpu lm\\n", dmi=(b"m5.metal", b"Amazon EC2")))
    """
    if files.hypervisor_type:
        name = _of_type(files.hypervisor_type)
        return Hypervisor(name, "/sys/hypervisor/type")
    by_dmi = _name_by_dmi(files.dmi)
    if files.machine == "x86_64" and (flags := _flags(files.cpuinfo)):
        # The processor says it itself, so that DMI is only asked for the name: machines of a cloud
        # that are no VM have the cloud's name there, too.
        if b"hypervisor" not in flags:
            return None
        name = _name(_CLOCKS, files.clocksources) or by_dmi
        return Hypervisor(name, "the flag hypervisor in /proc/cpuinfo")
    if name := _name(_TREE_NAMES, files.tree):
        return Hypervisor(name, f"compatible in {DEVICE_TREE}")
    if files.has_fw_cfg:
        return Hypervisor("QEMU", f"{DEVICE_TREE}/fw-cfg")
    is_metal = bool(files.dmi) and files.dmi[0].endswith(b".metal")
    return Hypervisor(by_dmi, DMI) if by_dmi and not is_metal else None


def _of_type(kind: bytes) -> str:
    return {b"xen": "Xen"}.get(kind, os.fsdecode(kind))


def _flags(cpuinfo: bytes) -> list[bytes]:
    """The flags of the first processor; empty if there are none, as on arm64."""
    for line in proctext.lines(cpuinfo):
        name, colon, value = line.partition(b":")
        if colon and name.rstrip(b"\t ") == b"flags":
            return proctext.words(value)
    return []


def _name(known: tuple[tuple[bytes, str], ...], text: bytes) -> str:
    return next((name for sign, name in known if sign in text), "")


def _name_by_dmi(fields: tuple[bytes, ...]) -> str:
    for sign, name in _DMI_NAMES:
        if any(field.startswith(sign) for field in fields):
            return name
    return ""
