# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian root folder of another architecture, in the cache: for VMs of that architecture.

No program of that architecture is run to make it. apt chooses and fetches the packages, dpkg-deb
unpacks them, and the little that their installation scripts would do for a VM is done here. pip
fetches wheels for that architecture. Nothing is installed on this machine, and no root privileges
are needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.kernels import mirrors
from physview.kernels.apt import PrivateApt, missing_program
from physview.kernels.cache import cache_dir, locked, mark_used
from physview.kernels.mirrors import DEBIAN

SUITE = "trixie"
PYTHON = "3.13"
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils", "grep"),
    "gzip",
    *("iproute2", "kmod", "less", "libc-bin", "libpython3-dev", "libstdc++6", "mawk", "mount"),
    *("ncurses-base", "procps", "python3", "sed", "strace", "tar", "util-linux"),
)
WHEELS = ("cffi>=1.17", "psutil>=5.9", "numpy>=1.26", "rich>=13", "pyarrow>=14")
# The C library of the suite runs the wheels of all these platforms.
_PLATFORMS = ("2_39", "2_34", "2_28", "2_27", "2_26", "2_24", "2_17")

# What a machine's installation writes, and commands read: `vm` gives every guest this name.
FILES = {"etc/hosts": "127.0.0.1 localhost\n", "etc/hostname": "physview-vm\n"}

# What only the installation, the documentation or a compiler on the target itself needs.
_LEFT_OUT = re.compile(r"(debconf|perl|dpkg|gcc|g\+\+|cpp|binutils|systemd|init|libgcc-\d+-dev)\b")
_DOCUMENTS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")


class Target(NamedTuple):
    """An architecture for which a root folder can be made.

    Args:
        debian: Its name in Debian's terms.
        machine: Its name in `uname -m`.
    """

    debian: str
    machine: str

    @property
    def triplet(self) -> str:
        """The prefix of the names of its compiler and tools."""
        return f"{self.machine}-linux-gnu"


ARM64 = Target("arm64", "aarch64")


def root_folder(target: Target, tell: Callable[[str], object] | None = None) -> Path:
    """Return the root folder of an architecture. It is made if the cache does not have it.

    Args:
        target: The architecture.
        tell: Called with a message before a step that takes long.

    Raises:
        Unsupported: This machine cannot fetch the packages or the wheels.
        PhysviewError: The cache cannot be used.
    """
    # Another list of packages, or another file, makes another root.
    version = zlib.crc32(repr((PACKAGES, WHEELS, FILES)).encode())
    name = f"{SUITE}-{target.debian}-{version:08x}"
    with locked(name, "roots") as folder:
        if not (folder / name).exists():
            if tell:
                tell(f"making a Debian {target.debian} root in {folder / name}; this takes minutes")
            staging = folder / f".{name}.new"
            shutil.rmtree(staging, ignore_errors=True)
            try:
                root = staging / name
                root.mkdir(parents=True)
                _unpack(target, staging / "apt", root)
                _configure(root)
                _install_wheels(target, root)
                os.rename(root, folder / name)
            except OSError as error:
                if isinstance(error, PhysviewError):
                    raise
                what = f"cannot make a root folder in {folder}"
                why = error.strerror or str(error)
                raise PhysviewError(what, why, path=str(folder)) from None
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        mark_used(folder / name)
    return cache_dir("roots", name)


def _unpack(target: Target, apt_folder: Path, root: Path) -> None:
    what = f"cannot make a root folder of {target.debian}"
    if program := missing_program():
        remedy = "use Debian or Ubuntu, also in a container"
        raise Unsupported(what, f"this machine has no {program}", remedy)
    archive = mirrors.archives().get(DEBIAN)
    if archive is None:
        remedy = "add one to /etc/apt/sources.list.d"
        raise Unsupported(what, "apt has no Debian mirror", remedy)
    lines = archive.source_lines([SUITE], [target.debian])
    apt = PrivateApt(apt_folder, lines, DEBIAN.name, own=target.debian)
    wanted = re.compile(rf"(?!{_LEFT_OUT.pattern})")
    names = apt.with_dependencies(PACKAGES, wanted)
    if set(PACKAGES) - set(names):
        raise apt.cannot_fetch(apt.update_errors or f"the mirror has no {SUITE} of {target.debian}")
    # Since /bin is a link to /usr/bin, these must exist before the packages are unpacked.
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    apt.unpack(names, root)


def _configure(root: Path) -> None:
    """Do what the packages' installation scripts would do, as far as a VM needs it."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for path, content in FILES.items():
        (root / path).write_text(content)
    for name, program in (("awk", "mawk"), ("sh", "dash")):
        if not (root / "usr/bin" / name).exists():
            (root / "usr/bin" / name).symlink_to(program)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "home", "mnt"):
        (root / name).mkdir(exist_ok=True)
    for name in _DOCUMENTS:
        shutil.rmtree(root / name, ignore_errors=True)
    # A folder that only root of this machine may read would be closed to the VM, too.
    (root / "root").chmod(0o755)


def _install_wheels(target: Target, root: Path) -> None:
    install_wheels(target, root / "usr/lib/python3/dist-packages", WHEELS)


def install_wheels(target: Target, folder: Path, names: Iterable[str]) -> None:
    """Install Python packages of an architecture into a folder, from wheels only.

    Raises:
        Unsupported: pip is missing, or cannot fetch the wheels.
    """
    platforms = [f"--platform=manylinux_{each}_{target.machine}" for each in _PLATFORMS]
    command = [
        *(sys.executable, "-I", "-m", "pip", "install", "-q", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--no-compile", f"--target={folder}", *platforms),
        *(f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp313", "--abi=abi3"),
        *("--abi=none", *names),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.split("\n") if line.startswith("ERROR: ")]
        last = done.stderr.strip("\n").rpartition("\n")[2]
        why = lines[0].removeprefix("ERROR: ") if lines else last
        remedy = "connect this machine to its package index, and give this Python pip"
        raise Unsupported(f"cannot fetch wheels for {target.machine}", why, remedy)
