# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs some of the tests on arm64 with pages of 4 and of 16 KiB, in emulated VMs.

    ./scripts/test --arm64 [pytest's arguments]

Without arguments: TESTS, which tell most about arm64. The VMs have the root folder and the kernels
of `physview vm --arch`. pytest's wheels for arm64 are put into the cache once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from physview import kernels, vm
from physview.kernels import foreign_package, foreign_root
from physview.kernels.cache import locked
from physview.system import module

ROOT = Path(__file__).resolve().parents[1]
FLAVOURS = ("arm64", "arm64-16k")
SERIES = "6.12"
WHEELS = ("pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.7", "hypothesis>=6.100", "pyte>=0.8")
# The labs come first: a heap without holes is part of what they show.
TESTS = (
    "tests/test_labs.py::test_heap",
    "tests/test_labs.py::test_huge",
    "tests/test_labs.py::test_levels",
    "tests/test_labs.py::test_levels_are_walked",
    "tests/test_labs.py::test_witnesses",
    *("tests/test_tagged_pointers.py", "tests/test_process.py", "tests/test_pagemap.py"),
    *("tests/test_kmod_calls.py", "tests/test_walked_addresses.py"),
    "tests/test_checks.py::test_levels_agree_with_where_the_address_space_ends",
)
# What the tests need here: without it they would be skipped unseen.
REQUIRED = "root,pfn,scan,kpage,kmod,aarch64"


def main(arguments: list[str]) -> int:
    """Run the tests on each flavour, and return 1 if one fails."""
    target = foreign_root.ARM64
    root = foreign_root.root_folder(target, say)
    package = foreign_package.package_folder(target, root, say)
    wheels = test_wheels(target)
    failed = []
    with tempfile.TemporaryDirectory(prefix="physview-arm64-") as folder:
        checkout = Path(folder, "checkout")
        copy_checkout(checkout, package)
        foreign = vm.ForeignRoot(target.machine, root, "/usr/bin/python3", package)
        for flavour in FLAVOURS:
            say(f"tests on {flavour}")
            kernel = kernels.find_kernel(SERIES, say, architecture=flavour)
            built = kernels.build_module(kernel, module.source_dir())
            result = vm.run(
                kernel,
                ["sh", "-c", IN_GUEST, str(checkout), str(wheels), *(arguments or TESTS)],
                modules=[built],
                foreign=foreign,
                shares=[built.parent, checkout, wheels],
                memory_mib=1536,
                append="hugepages=4",
                say=say,
            )
            if result.exit_code:
                failed.append(flavour)
    if failed:
        say(f"tests failed on {' and '.join(failed)}")
    return int(bool(failed))


# $0 is the checkout, $1 the folder of the wheels.
IN_GUEST = f"""
printf '%s\\n' "$0" "$1" >/usr/lib/python3/dist-packages/tests.pth
mkdir -p /root/.cache && cd "$0" && shift &&
PHYSVIEW_REQUIRE={REQUIRED} PYTHONPYCACHEPREFIX=/var/cache/physview HYPOTHESIS_MAX_EXAMPLES=20 \\
    exec python3 -X pycache_prefix=/var/cache/physview -m pytest -p no:cacheprovider -q -n 0 "$@"
"""


def test_wheels(target: foreign_root.Target) -> Path:
    """Return the folder of pytest for arm64; fetch it if it is missing."""
    name = f"tests-{target.debian}"
    with locked(name, "roots") as folder:
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as work:
                foreign_root.install_wheels(target, Path(work, name), WHEELS)
                os.rename(Path(work, name), folder / name)
        return folder / name


def copy_checkout(target: Path, package: Path) -> None:
    """Copy the files of the repository, with the core that is compiled for arm64."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "physview", "tests", "csrc",
         "scripts", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    shutil.copy(package / "physview/_native.abi3.so", target / "physview")


def say(message: str) -> None:
    """Print a message."""
    print(f"test: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
