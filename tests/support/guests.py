# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands of the tests in VMs, with the kernel module and all that the tests need there."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import command_server
import second_try
from paths import ROOT

from physview import kernels
from physview.errors import Unsupported
from physview.system import module
from physview.vm import initramfs

KMOD_TESTS = (
    *("compare", "kmod", "kmod_access", "kmod_calls", "kmod_compat", "kmod_descriptors"),
    "kmod_processes",
)
COURSE_MODULE = ROOT / "tests/vm/course_module"
# The free memory for a contiguous GiB: 2 GiB lie below 4 GiB, apart from the rest.
MEMORY_MIB = 4096
HUGE_PAGES = "hugepages=16 hugepagesz=1G hugepages=1"
USUAL = {"memory_mib": MEMORY_MIB, "append": HUGE_PAGES, "la57": False, "nodes": 1}


def guest_tests(*tests: str) -> list[str]:
    """The command that runs test files in the guest. FILE::TEST is one test of a file."""
    names = (name.partition("::") for name in tests)
    files = [f"tests/test_{file}.py{separator}{test}" for file, separator, test in names]
    # The plugin would import hypothesis, which takes seconds in an emulator. Tests do without it.
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "xdist")]
    return [sys.executable, "-m", "pytest", "-q", *plugins, *second_try.OPTIONS, *files]


def modules_by_turns(kernel: kernels.Kernel) -> dict[str, str]:
    """Environment variables that name the two modules which the guest's tests may load."""
    course = kernels.build_module(kernel, COURSE_MODULE)
    assert "warning" not in (course.parent / "build.log").read_text().lower()
    own = kernels.build_module(kernel, module.source_dir())
    return {"PHYSVIEW_KMOD": str(own), "PHYSVIEW_COURSE_KMOD": str(course)}


def disk_modules(kernel: kernels.Kernel) -> Iterator[str]:
    """The modules for ext4. The checksum driver is left out where it is built in."""
    with contextlib.suppress(Unsupported):
        list(initramfs.load_order(kernel.modules, ["crc32c_generic"]))
        yield "crc32c_generic"
    yield "ext4"


class Outcome(NamedTuple):
    """How a command in a guest ended: its exit code, or one of `physview vm`."""

    exit_code: int


class _Running:
    """The VM of this process, which its tests share as long as they ask for the same machine."""

    name = "guest"
    machine: str | None = None
    folder: str
    programs: Path

    def use(self, machine: dict[str, Any]) -> None:
        """Let the VM be the machine that start_vm.py describes."""
        wanted = json.dumps(machine)
        if self.machine is None:
            # Apart from those of the user, who may stop them.
            self.folder = tempfile.mkdtemp(prefix="physview-vms-")
            atexit.register(self.end)
            self.programs = Path(self.folder, "programs")
            self.programs.mkdir()
            for name in ("race", "fuzz"):
                compile_program(self.programs, name)
            client = self.programs / "client"
            client.mkdir()
            source = ROOT / "tests/support/command_client.c"
            subprocess.run(
                ["cc", "-O2", "-Wall", "-Werror", "-o", client / "physview", source], check=True
            )
            if "PHYSVIEW_KERNELS" not in os.environ:
                shutil.copy(ROOT / "tests/vm/make.sh", client / "make")
        elif self.machine == wanted and f"{self.name} " in self.vm("list").stdout:
            return
        else:
            self.vm("stop", self.name)
        command = [sys.executable, ROOT / "tests/support/start_vm.py", self.name]
        started = subprocess.run(
            command, input=wanted, text=True, check=True, stdout=PIPE, env=self.environment()
        )
        print(started.stdout)
        self.machine = wanted

    def end(self) -> None:
        """Stop the VM if it runs."""
        self.vm("stop", self.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """This process's environment, with the places of its VM and of compiled programs."""
        return os.environ | {
            "PHYSVIEW_VMS": self.folder,
            "PHYSVIEW_TEST_PROGRAMS": str(self.programs),
            command_server.CLIENT_VARIABLE: str(self.programs / "client"),
        }

    def vm(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `physview vm`."""
        command = [sys.executable, "-m", "physview", "vm", *words]
        return subprocess.run(
            command, text=True, check=False, capture_output=True, cwd="/", env=self.environment()
        )


_running = _Running()


def run_in_guest(
    kernel: kernels.Kernel,
    folder: Path,
    command: list[str],
    *,
    has: str,
    drivers: Sequence[str] = (),
    timeout: float = 2400,  # four times the duration beside another VM
    silence: float | None = None,
    boot_timeout: float | None = None,
    **options: Any,
) -> tuple[Outcome, str]:
    """Run a command through guest.sh, which also checks the kernel's log.

    The VM is booted if the test before has not used the same machine.

    Args:
        kernel: The kernel to boot.
        folder: A folder for files that the guest needs.
        command: The command.
        has: The capabilities that the guest must have, as in PHYSVIEW_REQUIRE.
        drivers: Further modules of the kernel to load.
        timeout: The longest duration of the command in seconds.
        silence: The longest time without output in seconds, after which the VM is taken to hang.
            It is stopped then, and the command starts once more in a new one. QEMU 7.2 hangs now
            and then: both CPUs trap at one address again and again (int3), because the kernel
            patches its code while they run it. None: only the timeout ends a hang, as befits a
            command that looks for hangs.
        boot_timeout: The longest duration of the boot; that of `physview vm` by default.
        options: Further options of vm.plan().

    Returns:
        How the command ended, and its output.
    """
    wants_disk = "evicts" in has.split(",")  # see guest.sh
    wanted = ["lzo_rle", "zram", *(disk_modules(kernel) if wants_disk else ()), *drivers]
    environment = {"PHYSVIEW_REQUIRE": has} | modules_by_turns(kernel)
    if wants_disk:
        environment["PHYSVIEW_TEST_DISK"] = "512M"
    machine = {
        "kernel": [None if part is None else str(part) for part in kernel],
        "drivers": wanted,
        "own_module": environment["PHYSVIEW_KMOD"],
        "boot_timeout": boot_timeout,
        "options": USUAL | options,
    }
    words = ["vm", "exec", "--timeout", str(timeout), _running.name, "--", "tests/vm/guest.sh"]
    for limit in (silence, None):
        _running.use(machine)
        there = _running.environment() | environment | {command_server.VARIABLE: "1"}
        code = run_and_watch([*words, *command], there, folder / "stdout", limit)
        if code is not None:
            break
        print(f"the VM hung: nothing came from it for {limit} s. It is started once more. Before:")
        print((folder / "stdout").read_text()[-2000:])
        _running.vm("stop", _running.name)
    printed = (folder / "stdout").read_text()
    if said := second_try.reported(printed):
        warnings.warn(f"in the guest {kernel.release}:\n{said}", stacklevel=2)
    return Outcome(code or 0), printed


def run_and_watch(
    words: list[str], environment: dict[str, str], output: Path, silence: float | None
) -> int | None:
    """Run a command of physview, and return its exit code; None if it was silent for too long."""
    with open(output, "wb") as stdout:
        running = subprocess.Popen(
            [sys.executable, "-m", "physview", *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stdout,
        )
    while True:
        size = output.stat().st_size
        try:
            return running.wait(silence)
        except subprocess.TimeoutExpired:
            if output.stat().st_size == size:
                running.kill()
                running.wait()
                return None


def compile_program(folder: Path, name: str) -> str:
    """Compile a program of tests/vm into a folder that the guest sees; return its path.

    In a guest, the program is there: the compiler takes half a minute in an emulator.
    """
    if programs := os.environ.get("PHYSVIEW_TEST_PROGRAMS"):
        return f"{programs}/{name}"
    program, source = folder / name, ROOT / "tests" / "vm" / f"{name}.c"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source]
    subprocess.run(command, check=True)
    return str(program)
