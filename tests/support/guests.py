# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands of the tests in VMs, with the kernel module and all that the tests need there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paths import ROOT

from physview import kernels, vm
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


def guest_tests(*tests: str) -> list[str]:
    """The command that runs test files in the guest. FILE::TEST is one test of a file."""
    names = (name.partition("::") for name in tests)
    files = [f"tests/test_{file}.py{separator}{test}" for file, separator, test in names]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]


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


def run_in_guest(
    kernel: kernels.Kernel,
    folder: Path,
    command: list[str],
    *,
    has: str,
    drivers: Sequence[str] = (),
    **options: Any,
) -> tuple[vm.VmResult, str]:
    """Run a command through guest.sh, which also checks the kernel's log.

    Args:
        kernel: The kernel to boot.
        folder: A folder for files that the guest needs.
        command: The command.
        has: The capabilities that the guest must have, as in PHYSVIEW_REQUIRE.
        drivers: Further modules of the kernel to load.
        options: Further options of vm.run().

    Returns:
        How the VM ended, and the output of the command.
    """
    wanted = ["lzo_rle", "zram"]  # swap
    wants_disk = "evicts" in has.split(",")
    if wants_disk:  # see guest.sh
        wanted += [*disk_modules(kernel)]
    wanted += drivers
    modules = []
    if kernel.modules.exists():  # else all drivers are built in
        for name, content in initramfs.load_order(kernel.modules, wanted):
            (folder / f"{name}.ko").write_bytes(content)
            modules.append(folder / f"{name}.ko")
    modules.append(kernels.build_module(kernel, module.source_dir()))
    env = os.environ | modules_by_turns(kernel) | {"PHYSVIEW_REQUIRE": has}
    if wants_disk:
        env["PHYSVIEW_TEST_DISK"] = "512M"
    # Four times the duration beside another VM.
    defaults = {"memory_mib": MEMORY_MIB, "append": HUGE_PAGES, "timeout": 2400}
    with open(folder / "stdout", "wb") as stdout:
        outcome = vm.run(
            kernel,
            ["tests/vm/guest.sh", *command],
            modules=modules,
            cwd=ROOT,
            env=env,
            stdout=stdout,
            stderr=stdout,
            say=print,
            **defaults | options,
        )
    print(f"{kernel.release}: {outcome}")
    return outcome, (folder / "stdout").read_text()


def compile_program(folder: Path, name: str) -> str:
    """Compile a program of tests/vm into a folder that the guest sees; return its path."""
    program, source = folder / name, ROOT / "tests" / "vm" / f"{name}.c"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source]
    subprocess.run(command, check=True)
    return str(program)
