# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the tests' commands in VMs, with the module and what the tests there need."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
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
# A GiB in one piece takes more than 3 GiB of memory, of which the machine has 2 apart.
MEMORY_MIB = 4096
HUGE_PAGES = "hugepages=16 hugepagesz=1G hugepages=1"


def guest_tests(*tests: str) -> list[str]:
    """The command that runs test files in the guest, or one test of a file: FILE::TEST."""
    names = (name.partition("::") for name in tests)
    files = [f"tests/test_{file}.py{separator}{test}" for file, separator, test in names]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]


def modules_by_turns(kernel: kernels.Kernel) -> dict[str, str]:
    """The environment that tells the guest's tests which modules they may load."""
    course = kernels.build_module(kernel, COURSE_MODULE)
    assert "warning" not in (course.parent / "build.log").read_text().lower()
    own = kernels.build_module(kernel, module.source_dir())
    return {"PHYSVIEW_KMOD": str(own), "PHYSVIEW_COURSE_KMOD": str(course)}


def _disk_modules(kernel: kernels.Kernel) -> Iterator[str]:
    """What a file system on a disk takes; the checksum's driver, where it is a module."""
    with contextlib.suppress(Unsupported):
        list(initramfs.load_order(kernel.modules, ["crc32c_generic"]))
        yield "crc32c_generic"
    yield "ext4"


def run_in_guest(
    kernel: kernels.Kernel, folder: Path, command: list[str], *, has: str, **options: Any
) -> tuple[vm.VmResult, str]:
    """Run a command through guest.sh, which looks at the kernel's log; return what it printed.

    Args:
        kernel: The kernel.
        folder: Where files may be left that the guest needs.
        command: The command.
        has: What the tests must find there, as PHYSVIEW_REQUIRE.
        options: Further ones of vm.run().
    """
    wanted = ["lzo_rle", "zram"]  # swap
    wants_disk = "evicts" in has.split(",")
    if wants_disk:  # see guest.sh
        wanted += [*_disk_modules(kernel)]
    modules = []
    if kernel.modules.exists():  # those that are modules
        for name, content in initramfs.load_order(kernel.modules, wanted):
            (folder / f"{name}.ko").write_bytes(content)
            modules.append(folder / f"{name}.ko")
    modules.append(kernels.build_module(kernel, module.source_dir()))
    env = os.environ | modules_by_turns(kernel) | {"PHYSVIEW_REQUIRE": has}
    if wants_disk:
        env["PHYSVIEW_TEST_DISK"] = "512M"
    # Four times what it takes while another VM runs beside it.
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
    """Compile one of tests/vm's programs where the guest finds it."""
    program, source = folder / name, ROOT / "tests" / "vm" / f"{name}.c"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, source]
    subprocess.run(command, check=True)
    return str(program)
