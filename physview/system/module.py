# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the source of the kernel module, reads the module's state, loads and unloads it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from physview.errors import AccessDenied, ModuleUnavailable, Unsupported
from physview.runtime import invocation, privileges, proc_mount, syscalls
from physview.sources.kmod import DEVICE, NAME
from physview.text import proctext


class ModuleStatus(NamedTuple):
    """The state of the kernel module.

    Args:
        loaded: Whether the module is loaded.
        device: Whether its device exists.
        version: Version of physview's own module; empty for another module of this name, such as
            the course's.
        users: The reference count: the number of open descriptors and other users that prevent
            unloading.
        insecure: Whether every user may use the module for memory of their own.
    """

    loaded: bool
    device: bool
    version: str
    users: int
    insecure: bool


def source_dir() -> Path:
    """Find the folder of the module's source.

    In a checkout it is csrc/kmod beside the package. In a wheel it is inside the package.

    Raises:
        ModuleUnavailable: physview was installed without the source.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "csrc" / "kmod", package / "kmod_source"):
        if (folder / "Kbuild").exists():
            return folder
    raise ModuleUnavailable(
        "the module's source is missing",
        "this physview was installed without it",
        "install the wheel, or use a checkout",
    )


def status() -> ModuleStatus:
    """Read the state of the module. Source: /sys/module"""
    folder = Path("/sys/module") / NAME
    version = _read(folder / "version")
    # Another module has no such parameter. Then the mode of the device is decisive.
    insecure = _read(folder / "parameters" / "insecure") == "Y" if version else _is_open_to_all()
    return ModuleStatus(
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
        insecure: Let every user use the module for memory of their own, as the course's module
            does.

    Raises:
        AccessDenied: This user may not load modules.
        Unsupported: The kernel cannot load modules, or refuses this one.
        OSError: The file cannot be opened.
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
    """Unload the module from the running kernel.

    Raises:
        AccessDenied: This user may not unload modules.
        ModuleUnavailable: The module is not loaded.
        Unsupported: The module is in use, or the kernel refuses for another reason.
    """
    if not status().loaded:
        raise ModuleUnavailable("cannot unload the module", "it is not loaded")
    _call("delete_module", "unload", NAME.encode(), os.O_NONBLOCK)


# insmod and rmmod are not used, because minimal systems lack the package kmod.
def _call(name: str, verb: str, *args: int | bytes) -> None:
    import ctypes

    number = syscalls.NUMBERS.get(os.uname().machine, {}).get(name)
    if number is None:
        raise Unsupported(
            f"cannot {verb} the module", f"physview does not support this on {os.uname().machine}"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *args) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM and os.geteuid() != 0:
        raise AccessDenied(f"cannot {verb} the module", "it requires CAP_SYS_MODULE", "run as root")
    why, remedy = _reason(code)
    raise Unsupported(f"cannot {verb} the module", why, remedy)


def _reason(code: int) -> tuple[str, str]:
    """The reason and the remedy for an errno of the kernel."""
    if code == errno.EPERM:
        return _why_not_permitted()
    if code in (errno.EKEYREJECTED, errno.ENOKEY):
        why = f"the kernel wants a signature, as with Secure Boot: {privileges.SIGNED_ONLY}"
        return why, _with_signature()
    if code == errno.ENOEXEC:
        build = invocation.physview("module build")
        return "it was built for another kernel", f"build it again: {build}"
    if code == errno.EEXIST:
        return "it is loaded already", f"see {invocation.physview('module status')}"
    if code in (errno.EAGAIN, errno.EBUSY):
        return "it is in use", f"end the programs that have {DEVICE} open: {_who_holds()}"
    return os.strerror(code), f"see {invocation.as_root('dmesg')}"


def _why_not_permitted() -> tuple[str, str]:
    """Why root may not load a module. Source: kernel/module/signing.c, may_init_module()"""
    if why := privileges.why_signed_modules():
        return why, _with_signature()
    vm = f"use a throwaway VM: {invocation.in_vm('…')}"
    if _read(Path("/proc/sys/kernel/modules_disabled")) == "1":
        why = "kernel.modules_disabled forbids it until this machine is restarted"
        return why, f"restart without this setting, or {vm}"
    why = "the kernel is locked down, or this is a container"
    return why, f"see {privileges.LOCKDOWN}; {vm}"


def _with_signature() -> str:
    """The advice where only signed modules are loaded: DKMS, a VM, or no module at all."""
    advice = "let DKMS build and sign it (package physview-dkms)"
    if signed_by_dkms():
        modprobe = invocation.as_root(f"modprobe {NAME}")
        advice = f"if the key of DKMS is enrolled, load the one that DKMS signed: {modprobe}"
    return f"{advice}; or use a throwaway VM: {invocation.in_vm('…')}{or_bpf()}"


def or_bpf() -> str:
    """The advice to walk page tables by BPF, after another advice; "" where root cannot do it."""
    from physview.system import checks

    found = checks.check_bpf()
    if found.state != checks.YES and not (found.needs_root and checks.has_btf()):
        return ""
    walk = invocation.physview_as_root("walk PID ADDRESS --source bpf")
    return f"; or use BPF, which needs no module: {walk}"


def signed_by_dkms() -> bool:
    """Whether DKMS has installed the module for the running kernel.

    Source: the folders of Debian, openSUSE and Fedora in dkms(8), dest_module_location
    """
    folder = Path("/lib/modules") / os.uname().release
    places = ("updates/dkms", "updates", "extra")
    return any(next((folder / place).glob(f"{NAME}.ko*"), None) for place in places)


def _who_holds() -> str:
    """The command that finds who has the device open. The fallback is for systems without fuser."""
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
