# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests what this machine can do, for those entries of CAPABILITIES that take several lines."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import access_lists
import repository
from memory import PAGE, Region, resident

from physview import _native
from physview.errors import PhysviewError
from physview.sources.bpf import Bpf
from physview.sources.procfs import ProcDir
from physview.system import checks


def succeeds(*command: str) -> bool:
    """Whether a command exits with 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def has_loopback() -> bool:
    """Whether a program here can reach another by a port of 127.0.0.1."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        try:
            socket.create_connection(server.getsockname(), timeout=5).close()
        except OSError:
            return False
    return True


def has_guard_regions() -> bool:
    """Whether madvise() can install guard pages."""
    return Region(1).madvise(Region.MADV_GUARD_INSTALL, check=False)


def can_walk_by_bpf() -> bool:
    """Whether the BPF program can be loaded and finds what it needs."""
    try:
        with ProcDir("self") as proc:
            Bpf(proc).close()
    except PhysviewError:
        return False
    return True


def has_perl() -> bool:
    """Whether perl has its modules. perl-base, which every Debian has, lacks most of them."""
    command = ["perl", "-MPod::Usage", "-MTerm::ANSIColor", "-e", "1"]
    return shutil.which("perl") is not None and succeeds(*command)


def has_thp() -> bool:
    """Whether the kernel gives a transparent huge page when asked."""
    with Region.huge(1) as region:
        return region.touch().is_huge()


def can_collapse() -> bool:
    """Whether MADV_COLLAPSE works."""
    madv_collapse = 25
    with Region.huge(1) as region:
        return region.touch().madvise(madv_collapse, check=False)


def temporary_files_are_evicted() -> bool:
    """Whether pages of temporary files can leave the page cache. In a tmpfs they cannot."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(64 * PAGE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return len(resident(file.name)) < 64


def has_hugetlb(size_kib: int) -> bool:
    """Whether a hugetlb page of this size is free."""
    pools = checks.check_hugetlb().details["pools"]
    return any(pool["free"] for pool in pools if pool["size_kib"] == size_kib)


def has_kernel(series: str, architecture: str = "amd64") -> bool:
    """Whether Debian's kernel can be fetched. The first call fetches it into the cache."""
    from physview import kernels
    from physview.errors import PhysviewError

    try:
        kernels.find_kernel(series, architecture=architecture)
    except PhysviewError:  # apt's mirror lacks it, or the cache belongs to another user
        return False
    return shutil.which("make") is not None


def has_arm64(series: str) -> bool:
    """Whether the module can be built for Debian's arm64 kernel."""
    return shutil.which("aarch64-linux-gnu-gcc") is not None and has_kernel(series, "arm64")


def is_emulated() -> bool:
    """Whether the processor is QEMU's own, as without KVM. On arm64 it has no implementer."""
    about = Path("/proc/cpuinfo").read_text()
    return "QEMU TCG" in about or re.search("^CPU implementer\t: 0x00$", about, re.M) is not None


def has_tracefs(file: str = "instances") -> bool:
    """Whether a tracefs can be mounted and has the file. Existing mounts do not matter."""
    mount = f"mount -t tracefs t /mnt && test -e /mnt/{file}"
    return os.geteuid() == 0 and succeeds("unshare", "-m", "sh", "-c", mount)


def evicts_core() -> bool:
    """Whether the kernel can evict the pages of physview's library. In a tmpfs it cannot."""
    command = ["stat", "-f", "-c", "%T", _native.__file__]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return kind.strip() not in ("tmpfs", "ramfs")


def runs_32_bit_programs() -> bool:
    """Whether cc builds 32-bit programs and the kernel runs them."""
    code = 'void _start(void) { __asm__("mov $1, %eax; xor %ebx, %ebx; int $0x80"); }'
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/exit"
        options = ["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-x", "c", "-"]
        command = ["cc", *options, "-o", program]
        made = subprocess.run(command, input=code.encode(), capture_output=True, check=False)
        try:
            return made.returncode == 0 and succeeds(program)
        except OSError:  # ENOEXEC
            return False


def counts_memory() -> bool:
    """Whether new cgroups (version 2) can be made that account memory."""
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    has_it = controllers.exists() and "memory" in controllers.read_text().split()
    return has_it and os.access(controllers.parent / "cgroup.subtree_control", os.W_OK)


def has_vm() -> bool:
    """Whether QEMU is here."""
    return checks.check_qemu().state != checks.NO


def has_apt() -> bool:
    """Whether all programs are here that make and read a package repository."""
    return all(map(shutil.which, repository.PROGRAMS))


def forbids_pip() -> bool:
    """Whether the system's Python refuses installs by pip (PEP 668)."""
    code = (
        "import os, sys, sysconfig; marker = sysconfig.get_path('stdlib') + '/EXTERNALLY-MANAGED';"
        "sys.exit(sys.version_info < (3, 10) or not os.path.exists(marker))"
    )
    python = "/usr/bin/python3"
    return os.path.exists(python) and succeeds(python, "-I", "-c", code)


def mappable_pci_resource() -> str:
    """The file in /sys of a PCI device's memory, at least a page of it; empty if there is none."""
    for path in sorted(Path("/sys/bus/pci/devices").glob("*/resource[0-5]")):
        try:
            if path.stat().st_size < PAGE:
                continue
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), PAGE):
                return str(path.resolve())
        except (OSError, ValueError):  # ports, which cannot be mapped
            continue
    return ""


def has_spark() -> bool:
    """Whether PySpark is installed, and a Java that it can start."""
    return find_spec("pyspark") is not None and shutil.which("java") is not None


def has_acls() -> bool:
    """Whether the file system of temporary files keeps access control lists."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            access_lists.give(folder, 65534)
        except OSError:
            return False
    return True
