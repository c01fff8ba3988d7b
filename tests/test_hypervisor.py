# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this machine is a VM: real files of this one, and what other machines' files say."""

import subprocess

import pytest

from physview.system import checks, hypervisor
from physview.system.hypervisor import MachineFiles

REAL, VIRTUAL = b"flags\t\t: fpu vme lm\n", b"flags\t\t: fpu hypervisor lm\n"


@pytest.mark.needs("detect-virt")
def test_systemd_finds_the_same_on_this_machine():
    words = ["systemd-detect-virt", "--vm"]
    kind = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    found = hypervisor.detect()
    assert (found is None) == (kind == "none")
    if found and kind in ("kvm", "qemu", "xen"):
        assert found.name.lower().startswith(kind)


def test_doctor_names_it():
    finding, found = checks.check_machine(), hypervisor.detect()
    assert finding.details == {"vm": found is not None, "hypervisor": found and found.name}
    assert ("guest-physical" in finding.value) == (found is not None)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (MachineFiles("x86_64", REAL), None),
        (MachineFiles("x86_64", VIRTUAL), ""),
        (MachineFiles("x86_64", VIRTUAL, clocksources=b"tsc kvm-clock acpi_pm \n"), "KVM"),
        (MachineFiles("x86_64", VIRTUAL, (b"Standard PC (Q35 + ICH9, 2009)", b"QEMU")), "QEMU"),
        (
            MachineFiles("x86_64", VIRTUAL, (b"Virtual Machine", b"", b"", b"", b"Hyper-V")),
            "Hyper-V",
        ),
        (MachineFiles("x86_64", VIRTUAL, (b"VMware7,1", b"VMware, Inc.")), "VMware"),
        # A cloud's machine without a hypervisor has the cloud's name in DMI.
        (MachineFiles("x86_64", REAL, (b"m5.metal", b"Amazon EC2")), None),
        # A user with a program called hypervisor, or a CPU's model name, is no flag.
        (MachineFiles("x86_64", b"model name\t: hypervisor\n" + REAL), None),
        (MachineFiles("x86_64", REAL, hypervisor_type=b"xen"), "Xen"),
        (MachineFiles("aarch64", b"Features\t: fp asimd\n"), None),
        (MachineFiles("aarch64", b"", (b"KVM Virtual Machine", b"QEMU")), "KVM"),
        (MachineFiles("aarch64", b"", (b"t4g.micro", b"Amazon EC2")), "Amazon EC2"),
        (MachineFiles("aarch64", b"", (b"m6g.metal", b"Amazon EC2")), None),
        (MachineFiles("aarch64", b"", tree=b"linux,dummy-virt\0"), "QEMU or another with"),
        (MachineFiles("aarch64", b"", tree=b"linux,kvm\0"), "KVM"),
        (MachineFiles("aarch64", b"", tree=b"raspberrypi,4-model-b\0brcm,bcm2711\0"), None),
        (MachineFiles("aarch64", b"", has_fw_cfg=True), "QEMU"),
    ],
)
def test_the_files_of_other_machines(files, name):
    found = hypervisor.find(files)
    assert (found is None) == (name is None)
    if found:
        assert found.name.startswith(name)
        assert str(found).startswith("a VM")
        assert found.sign
