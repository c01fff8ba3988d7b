# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel module on this machine: its source, whether it is loaded, and how it gets there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from physview.errors import AccessDenied, ModuleUnavailable, Unsupported
from physview.runtime import invocation, proc_mount
from physview.sources.kmod import DEVICE, NAME
from physview.text import proctext


class Status(NamedTuple):
    """How things stand with the module.

    Args:
        loaded: Whether the kernel has it.
        device: Whether its device is there.
        version: Of physview's own module; empty for another of that name, such as the course's.
        users: How many open descriptors and the like keep it from being unloaded.
        insecure: Whether every user may look at memory of their own.
    """

    loaded: bool
    device: bool
    version: str
    users: int
    insecure: bool


def source_dir() -> Path:
    """The folder of the module's source: beside the package in a checkout, in it in a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "csrc" / "kmod", package / "kmod_source"):
        if (folder / "Kbuild").exists():
            return folder
    raise ModuleUnavailable(
        "the module's source is not there",
        "this physview was installed without it",
        "install the wheel, or use a checkout",
    )


def status() -> Status:
    """How things stand. Source: /sys/module"""
    folder = Path("/sys/module") / NAME
    version = _read(folder / "version")
    # What is not ours has no such parameter: its device's mode tells.
    insecure = _read(folder / "parameters" / "insecure") == "Y" if version else _is_open_to_all()
    return Status(
        folder.is_dir(),
        os.path.exists(DEVICE),
        version,
        int(_read(folder / "refcnt") or 0),
        insecure,
    )


def load(module: Path, *, insecure: bool = False) -> None:
    """Load a built module into the running kernel.

    Args:
        module: The .ko file.
        insecure: Let every user look at memory of their own, as the course's module does.

    Raises:
        AccessDenied: The user may not.
        Unsupported: The kernel cannot load modules, or not this one.
    """
    if not os.path.exists("/proc/modules"):
        missing = proc_mount.why_no_file("/proc/modules")
        if missing:
            raise Unsupported("cannot load the module", *missing)
        raise Unsupported(
            "cannot load the module",
            "this kernel was built without loadable modules",
            f"use a throwaway VM: {invocation.in_vm('…')}",
        )
    fd = os.open(module, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("finit_module", "load", fd, f"insecure={int(insecure)}".encode(), 0)
    finally:
        os.close(fd)


def unload() -> None:
    """Take the module out of the running kernel.

    Raises:
        AccessDenied: The user may not.
        ModuleUnavailable: It is not loaded.
        Unsupported: It is in use.
    """
    if not status().loaded:
        raise ModuleUnavailable("cannot unload the module", "it is not loaded")
    _call("delete_module", "unload", NAME.encode(), os.O_NONBLOCK)


# The system calls themselves: insmod and rmmod are in a package that small systems lack.
# Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_SYSCALLS = {
    "x86_64": {"finit_module": 313, "delete_module": 176},
    "aarch64": {"finit_module": 273, "delete_module": 106},
}


def _call(name: str, verb: str, *args: int | bytes) -> None:
    import ctypes

    number = _SYSCALLS.get(os.uname().machine, {}).get(name)
    if number is None:
        raise Unsupported(f"cannot {verb} the module", f"not known how on {os.uname().machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *args) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM and os.geteuid() != 0:
        raise AccessDenied(f"cannot {verb} the module", "it takes CAP_SYS_MODULE", "run as root")
    why, remedy = _reasons().get(code, (os.strerror(code), f"see {invocation.as_root('dmesg')}"))
    raise Unsupported(f"cannot {verb} the module", why, remedy)


def _reasons() -> dict[int, tuple[str, str]]:
    """Why the kernel refuses, by errno, and what to do."""
    vm = f"use a throwaway VM: {invocation.in_vm('…')}"
    in_use = ("it is in use", f"end what holds {DEVICE} open: {_who_holds()}")
    return {
        errno.EPERM: (
            "the kernel is locked down, or this is a container",
            f"see /sys/kernel/security/lockdown; {vm}",
        ),
        errno.EKEYREJECTED: (
            "Secure Boot wants it signed with a key that the kernel knows",
            f"sign it with a key of yours (mokutil), or {vm}",
        ),
        errno.ENOKEY: (
            "the kernel loads only modules that are signed",
            f"sign it with a key that it knows, or {vm}",
        ),
        errno.ENOEXEC: (
            "it was built for another kernel",
            f"build it again: {invocation.physview('module build')}",
        ),
        errno.EEXIST: ("it is loaded already", f"see {invocation.physview('module status')}"),
        errno.EAGAIN: in_use,
        errno.EBUSY: in_use,
    }


def _who_holds() -> str:
    """How to find who has the device open: fuser is in a package that small systems lack."""
    import shutil

    if shutil.which("fuser"):
        return invocation.as_root(f"fuser {DEVICE}")
    return invocation.as_root(f"ls -l /proc/[0-9]*/fd 2>/dev/null | grep {DEVICE}")


def _is_open_to_all() -> bool:
    try:
        return bool(os.stat(DEVICE).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _read(path: Path) -> str:
    try:
        return proctext.value(path.read_bytes()).decode()
    except OSError:
        return ""
