# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots the disk of scripts/ci/secure-boot three times, and uses MokManager's menu.

secure_boot.py initramfs MODULES FILE   write an initramfs that runs /secure-boot-guest
secure_boot.py boot ROOT WORK           boot WORK/disk with the firmware WORK/code and its
                                        WORK/variables; ROOT is the root folder of the VM
"""

from __future__ import annotations

import codecs
import os
import re
import selectors
import subprocess
import sys
import time
from pathlib import Path

from physview.vm import initramfs

GUEST = "/secure-boot-guest"
PASSWORD = "physview"
DOWN, ENTER = "\x1b[B", "\r"
# How long the firmware, shim, GRUB and Linux may take together under emulation on a busy machine.
SECONDS = 600
ESCAPE = re.compile(r"\x1b(\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9])")

# What MokManager shows, and the keys that answer it: the way through its menus to the new key.
MENUS = (
    ("Press any key to perform MOK management", ENTER),
    ("Enroll MOK", DOWN + ENTER),
    ("View key 0", DOWN + ENTER),
    ("Enroll the key", DOWN + ENTER),
    ("Password:", PASSWORD + ENTER),
    ("Reboot", ENTER),
)


class Lost(Exception):
    """The VM did not show what it should."""


class Machine:
    """A VM with Secure Boot. Its serial port is the console of the firmware and of Linux.

    Args:
        root: The root folder of the VM.
        work: The folder with the disk and the firmware.
    """

    def __init__(self, root: Path, work: Path) -> None:
        self._process = subprocess.Popen(
            command(root, work), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = time.monotonic() + SECONDS
        self.text = ""
        self._seen = 0

    def read(self) -> bool:
        """Wait for more text. Return whether the VM still runs.

        Raises:
            Lost: The time is over.
        """
        if not self._selector.select(self._end - time.monotonic()):
            raise Lost(f"the VM said nothing more in {SECONDS} s")
        data = os.read(self._process.stdout.fileno(), 65536)
        self.text = ESCAPE.sub("", self.text + self._decoder.decode(data))
        return bool(data)

    def wait_for(self, text: str) -> None:
        """Wait until the VM shows a text, after the text that was waited for before."""
        while (found := self.text.find(text, self._seen)) < 0:
            if not self.read():
                raise Lost(f"the VM ended, and has not shown: {text}")
        self._seen = found + len(text)

    def press(self, keys: str) -> None:
        """Send keys, one by one: the firmware takes an arrow's escape sequence as one key."""
        for key in re.findall(r"\x1b\[.|.|\r", keys):
            time.sleep(1)
            self._process.stdin.write(key.encode())
            self._process.stdin.flush()

    def end(self) -> None:
        """End the VM, if it still runs."""
        self._process.kill()
        self._process.wait()


def command(root: Path, work: Path) -> list[str]:
    """The command line of QEMU. Only code in SMM may write the firmware's variables."""
    accelerator = os.environ.get("PHYSVIEW_VM_ACCEL", "tcg")
    return [
        *("qemu-system-x86_64", "-machine", f"q35,smm=on,accel={accelerator}", "-cpu", "max"),
        *("-m", "1024", "-no-reboot", "-nic", "none", "-display", "none", "-vga", "none"),
        *("-serial", "stdio", "-monitor", "none"),
        *("-global", "driver=cfi.pflash01,property=secure,value=on"),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={work}/code"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={work}/variables"),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={work}/disk"),
        *("-fsdev", f"local,id=root,path={root},security_model=none,readonly=on,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev=root,mount_tag={initramfs.ROOT_TAG}"),
    ]


def run_guest(machine: Machine, stage: str) -> None:
    """Wait until Linux has made its checks, and print what it said."""
    machine.wait_for("secure-boot: ")
    start = machine.text.index("secure-boot: ")
    ended = re.compile(r"^secure-boot: (done|failed)[^\n]*\n", re.MULTILINE)
    while not (found := ended.search(machine.text)) and machine.read():
        pass
    print(machine.text[start : found.end() if found else None].replace("\r", ""), flush=True)
    if not found or found[0].split()[1:] != ["done", stage]:
        raise Lost(f"the checks {stage} the key was enrolled have failed")


def enrol(machine: Machine) -> None:
    """Choose in MokManager what a user chooses: enrol the key, with the password."""
    for text, keys in MENUS:
        machine.wait_for(text)
        print(f"MokManager: {text}", flush=True)
        machine.press(keys)
    while machine.read():  # it restarts the machine, and -no-reboot ends QEMU
        pass


def boot(root: Path, work: Path) -> None:
    """Boot three times: without the key, with MokManager, with the key."""
    steps = (
        lambda machine: run_guest(machine, "before"),
        enrol,
        lambda machine: run_guest(machine, "after"),
    )
    for step in steps:
        machine = Machine(root, work)
        start = time.monotonic()
        try:
            step(machine)
        except Lost as error:
            sys.exit(f"{machine.text[-3000:]}\nsecure-boot: {error}")
        finally:
            machine.end()
        print(f"({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    action, first, second = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if action == "initramfs":
        second.write_bytes(initramfs.make(first, ["/bin/sh", GUEST]))
    else:
        boot(first, second)
