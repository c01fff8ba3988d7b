# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of the VM: the kernel modules that mount the host's root, and the init program.

The dependencies of a module come from its own .modinfo section. Kernels are unpacked, not
installed, so there is no modules.dep, and the machine need not have depmod.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from physview.errors import PhysviewError, Unsupported
from physview.vm import init

ROOT_TAG = "physviewroot"
"""The mount tag of the host's root folder in QEMU."""

# Modules for PCI devices, for the port to the host, for mounting the host's root, and for the
# temporary layer over it.
MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
_SUFFIXES = ("", ".xz", ".gz", ".zst")
_9P_OPTIONS = "trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any"
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_ROOT = "/root"

# Mounts below the new root: file system, mount point, whether a failure ends the VM.
_MOUNTS = (
    ("proc", "/proc", True),
    ("sysfs", "/sys", True),
    ("devtmpfs", "/dev", True),
    ("devpts", "/dev/pts", True),
    ("tmpfs", "/dev/shm", True),
    ("debugfs", "/sys/kernel/debug", False),
    ("tracefs", "/sys/kernel/tracing", False),
    ("securityfs", "/sys/kernel/security", False),
    ("cgroup2", "/sys/fs/cgroup", False),
)


def make(
    modules: Path,
    command: Sequence[str],
    extra: Iterable[str] = (),
    *,
    machine: str = "",
    shares: Iterable[Path] = (),
) -> bytes:
    """Make an initramfs that mounts the host's root, with a temporary layer, and runs a command.

    Args:
        modules: The kernel's folder lib/modules/RELEASE.
        command: The command to run as process 1 in the host's root, with absolute paths.
        extra: The names of additional modules to load.
        machine: The kernel's architecture as in `uname -m`; by default this machine's.
        shares: Folders of the host that the guest sees at the same paths, where its root is not
            that of the host.

    Returns:
        An uncompressed cpio archive.

    Raises:
        Unsupported: The kernel lacks a required driver.
    """
    files = {f"{name}.ko": content for name, content in load_order(modules, [*MODULES, *extra])}
    steps = [step for name in files for step in init.load_module(f"/{name}")]
    steps += _root_steps(shares)
    steps.append(init.execute(command, ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]))
    program = init.make_elf(steps, machine)
    return cpio(["lower", "over", _ROOT.strip("/")], files | {"init": program})


def _root_steps(shares: Iterable[Path]) -> Iterator[init.Step]:
    yield init.mount("9p", "/lower", _9P_OPTIONS, init.MS_RDONLY, source=ROOT_TAG, needed=True)
    yield init.mount("tmpfs", "/over", needed=True)
    yield init.make_directory("/over/upper")
    yield init.make_directory("/over/work")
    layers = "lowerdir=/lower,upperdir=/over/upper,workdir=/over/work"
    yield init.mount("overlay", _ROOT, layers, needed=True)
    for kind, target, needed in _MOUNTS:
        yield init.make_directory(_ROOT + target)
        options = "mode=0666,ptmxmode=0666" if kind == "devpts" else ""
        yield init.mount(kind, _ROOT + target, options, needed=needed)
    for number, share in enumerate(shares):
        target = f"{_ROOT}{share}"
        for folder in (*reversed(share.parents[:-1]), share):
            yield init.make_directory(f"{_ROOT}{folder}")
        source = share_tag(number)
        yield init.mount("9p", target, _9P_OPTIONS, init.MS_RDONLY, source=source, needed=True)
    yield from init.switch_root(_ROOT)


def share_tag(number: int) -> str:
    """The mount tag of a shared folder in QEMU."""
    return f"physview{number}"


def load_order(modules: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield modules and their dependencies as names and contents.

    A module follows its dependencies. Modules that are built into the kernel are left out.

    Args:
        modules: The kernel's folder lib/modules/RELEASE. If it has no list of built-in modules, as
            with a self-built kernel without modules, all missing modules count as built in.
        names: The names of the modules; _ and - are equivalent.

    Raises:
        Unsupported: The kernel lacks one of the modules.
    """
    built_in = _paths_by_name(modules / "modules.builtin")
    available = _paths_by_name(modules / "modules.order")
    seen: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        name = name.replace("-", "_")
        if name in seen or name in built_in:
            return
        seen.add(name)
        if name not in available:
            if built_in:
                what = f"cannot boot the kernel of {modules}"
                remedy = f"choose a kernel with {name}, such as Debian's (not cloud)"
                raise Unsupported(what, f"it has no {name}", remedy, path=str(modules))
            return
        content = read_module(modules / available[name])
        found = _DEPENDS.search(content)
        for needed in found[1].decode().split(",") if found and found[1] else ():
            yield from visit(needed)
        yield name, content

    for name in names:
        yield from visit(name)


def _paths_by_name(listing: Path) -> dict[str, str]:
    try:
        paths = os.fsdecode(listing.read_bytes()).split("\n")
    except FileNotFoundError:
        return {}
    return {Path(path).name.partition(".ko")[0].replace("-", "_"): path for path in paths}


def read_module(path: Path) -> bytes:
    """Read a module, and decompress it if the file's name has the suffix of a compression.

    Args:
        path: The module's path without the suffix of the compression.

    Raises:
        PhysviewError: The file is missing, or this machine can't decompress it.
    """
    for suffix in _SUFFIXES:
        try:
            content = Path(f"{path}{suffix}").read_bytes()
        except FileNotFoundError:
            continue
        if suffix == ".xz":
            return lzma.decompress(content)
        if suffix == ".gz":
            return zlib.decompress(content, wbits=31)
        return _unzstd(path, content) if suffix == ".zst" else content
    raise PhysviewError(f"cannot read {path}", "there is no such module", path=str(path))


def _unzstd(path: Path, content: bytes) -> bytes:
    if not shutil.which("zstd"):  # Python's own zstd module needs Python 3.14
        why, remedy = "it is compressed with zstd, which is not installed", "install zstd"
        raise PhysviewError(f"cannot read {path}.zst", why, remedy, path=str(path))
    return subprocess.run(["zstd", "-dcq"], input=content, capture_output=True, check=True).stdout


def cpio(directories: Iterable[str], files: dict[str, bytes]) -> bytes:
    """Make a cpio archive. Source: Documentation/driver-api/early-userspace/buffer-format.rst."""
    parts = [_member(name, 0o040755, b"") for name in directories]
    parts += [_member(name, 0o100755, content) for name, content in files.items()]
    return b"".join([*parts, _member("TRAILER!!!", 0, b"")])


def _member(name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
