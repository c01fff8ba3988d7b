# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks what physview can do on this machine for this user, and how to get what is missing.

Each check tries a feature instead of comparing versions. No check needs privileges or the compiled
core, because the checks are for the case that something does not work.
"""

from __future__ import annotations

import errno
import glob
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, CoreUnavailable, PhysviewError
from physview.model import PAGE_SIZE, PM_SOFT_DIRTY
from physview.runtime import extras, invocation, packages, privileges, proc_mount
from physview.sources import soft_dirty
from physview.sources.bpf import Bpf
from physview.sources.folio_sizes import THP
from physview.sources.kmod import DEVICE
from physview.sources.kmod import NAME as MODULE
from physview.sources.procfs import ProcDir
from physview.text.proctext import read_or_empty

if TYPE_CHECKING:
    from physview.tracing.tracefs import Tracefs

YES, PART, NO = "yes", "part", "no"

# The capabilities that physview uses, by bit. Source: include/uapi/linux/capability.h
CAPABILITIES = {
    21: ("CAP_SYS_ADMIN", "frame numbers"),
    19: ("CAP_SYS_PTRACE", "other users' processes"),
    16: ("CAP_SYS_MODULE", "loading a module"),
}


class CheckResult(NamedTuple):
    """The result of one check.

    Args:
        name: What was checked.
        state: "yes", "part" or "no".
        value: What was found, and what is missing.
        remedy: The command or the step that gets what is missing; may be empty.
        needs_root: Whether the remedy is to run physview as root.
        details: What was found, in a form for programs (JSON).
    """

    name: str
    state: str
    value: str
    remedy: str = ""
    needs_root: bool = False
    details: dict[str, Any] | None = None


def examine() -> Iterator[CheckResult]:
    """Run all checks, in the order in which the report shows them."""
    for check in CHECKS:
        yield check()


def can_show_frames() -> bool:
    """Whether this user can get physical addresses on this machine: physview's main purpose."""
    return check_pagemap().state == YES


def check_core() -> CheckResult:
    """Check whether the compiled core is built."""
    why = _ffi.why_unavailable()
    if why:
        return CheckResult(
            "compiled core",
            NO,
            f"{why}; physview uses the slower source reference",
            invocation.build_core(),
        )
    return CheckResult("compiled core", YES, "built")


def check_kernel() -> CheckResult:
    """Report the name, release and architecture of the kernel."""
    name = os.uname()
    details = {"release": name.release, "machine": name.machine}
    return CheckResult(
        "kernel", YES, f"{name.sysname} {name.release} {name.machine}", details=details
    )


def check_machine() -> CheckResult:
    """Find out whether this machine is a VM, whose physical addresses are guest-physical."""
    from physview.system import hypervisor

    files = hypervisor.read_files()
    found = hypervisor.find(files)
    if found is None and not files.cpuinfo:
        why = proc_mount.why_no_file("/proc/cpuinfo")
        value = "unknown: /proc/cpuinfo cannot be read"
        return CheckResult("machine", PART, *(why or (value,)))
    if found is None:
        details: dict[str, Any] = {"vm": False, "hypervisor": None}
        return CheckResult("machine", YES, "no sign of a hypervisor", details=details)
    details = {"vm": True, "hypervisor": found.name or None}
    value = f"{found}: {hypervisor.MEANING}; known by {found.sign}"
    return CheckResult("machine", YES, value, details=details)


def check_page_size() -> CheckResult:
    """Report the size of a base page."""
    size = f"{PAGE_SIZE // 1024} KiB"
    return CheckResult("page size", YES, size, details={"size_bytes": PAGE_SIZE})


def check_paging_levels() -> CheckResult:
    """Find the number of page table levels: with five, addresses above 47 bits can be mapped."""
    if os.uname().machine != "x86_64":
        return _levels_of_address_space()
    levels = 5 if _maps_above_47_bits() else 4
    why = "" if levels == 5 else " (no la57 in /proc/cpuinfo: the CPU has none, or this kernel)"
    cpuinfo = read_or_empty("/proc/cpuinfo").partition(b"\n\n")[0]
    if not cpuinfo:
        why = ""
    elif levels == 4 and b" la57" in cpuinfo:
        why = " (the CPU has a fifth level, but this kernel does not use it)"
    return CheckResult("paging levels", YES, f"{levels}{why}", details={"levels": levels})


def _levels_of_address_space() -> CheckResult:
    """Find the number of levels by the end of user addresses, where pagemap ends."""
    from physview.process import Process
    from physview.sources.table_geometry import nr_levels_of

    name = "paging levels"
    try:
        with Process("self", source="reference") as process:
            end = process.user_end()
    except PhysviewError as error:
        return CheckResult(name, PART, f"unknown: {error.why}", error.remedy)
    levels, bits = nr_levels_of(end), (end - 1).bit_length()
    value = f"{levels}, for user addresses of {bits} bits and pages of {PAGE_SIZE // 1024} KiB"
    return CheckResult(name, YES, value, details={"levels": levels})


def _maps_above_47_bits() -> bool:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    # Without a hint above 47 bits, the kernel always chooses an address below.
    where = libc.mmap(1 << 48, PAGE_SIZE, 0, flags, -1, 0)
    if where == ctypes.c_void_p(-1).value:
        return False
    libc.munmap(where, PAGE_SIZE)
    return bool(where >= 1 << 47)


def check_user() -> CheckResult:
    """Report the user, and which of the CAPABILITIES this process has."""
    has = privileges.effective_capabilities()
    uid = os.geteuid()
    if has is None:
        missing = proc_mount.why_no_file("/proc/self/status")
        why = missing.why if missing else "/proc/self/status cannot be read"
        value = f"uid {uid}; its capabilities are unknown: {why}"
        return CheckResult("user", PART, value, missing.remedy if missing else "")
    held = [name for bit, (name, _) in CAPABILITIES.items() if has >> bit & 1]
    lacking = [f"{n} ({use})" for b, (n, use) in CAPABILITIES.items() if not has >> b & 1]
    is_first = privileges.in_first_user_namespace()
    details = {"uid": uid, "capabilities": held, "first_user_namespace": is_first}
    who = f"uid {uid}" + (" (root)" if uid == 0 else "")
    if not is_first:
        who += ", in a user namespace, where capabilities do not give access to frame numbers"
    if lacking:
        value = f"{who}; without {', '.join(lacking)}"
        return CheckResult(
            "user", PART if held else NO, value, needs_root=uid != 0, details=details
        )
    return CheckResult("user", YES, f"{who}; {', '.join(held)}", details=details)


def check_pagemap() -> CheckResult:
    """Check whether /proc/PID/pagemap exists and shows frame numbers to this user."""
    name = "pagemap"
    try:
        entry = soft_dirty.own_entry()
    except FileNotFoundError:
        missing = proc_mount.why_no_file("/proc/self/pagemap")
        if missing:
            return CheckResult(name, NO, *missing)
        remedy = "a kernel with CONFIG_PROC_PAGE_MONITOR=y"
        return CheckResult(name, NO, "this kernel was built without it", remedy)
    except OSError as error:
        return CheckResult(name, NO, f"cannot be opened: {error.strerror}", needs_root=True)
    has_bits = bool(entry.raw & PM_SOFT_DIRTY)
    details = {"frames": entry.pfn is not None, "soft_dirty": has_bits}
    dirty = "" if has_bits else "; no soft-dirty bits in this kernel"
    if entry.pfn is None:
        value = f"readable, but frame numbers are hidden from this user{dirty}"
        return CheckResult(name, PART, value, needs_root=True, details=details)
    return CheckResult(name, YES, f"frame numbers are shown{dirty}", details=details)


def check_scan() -> CheckResult:
    """Check whether the kernel has PAGEMAP_SCAN, and try each category."""
    from physview.sources.pagemap import PAGE_IS, scan

    known = []
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        no_proc = proc_mount.why_no_file("/proc/self/pagemap")
        why = no_proc.why if no_proc else error.strerror
        return CheckResult("PAGEMAP_SCAN", NO, f"pagemap cannot be opened: {why}")
    try:
        for category, bit in PAGE_IS.items():
            try:
                scan(fd, 0, PAGE_SIZE, bit)
                known.append(category)
            except OSError as error:
                if error.errno == errno.ENOTTY:
                    value = "not in this kernel: empty address ranges are read, too"
                    return CheckResult("PAGEMAP_SCAN", NO, value, "Linux 6.7 or later")
                if error.errno != errno.EINVAL:
                    raise
    finally:
        os.close(fd)
    missing = [category for category in PAGE_IS if category not in known]
    details = {"categories": known}
    if missing:
        value = f"{', '.join(known)}; without {', '.join(missing)}"
        return CheckResult("PAGEMAP_SCAN", PART, value, "a later kernel", details=details)
    return CheckResult("PAGEMAP_SCAN", YES, f"all {len(known)} categories", details=details)


def check_kpage_files() -> CheckResult:
    """Check whether /proc/kpageflags, /proc/kpagecount and /proc/kpagecgroup can be read."""
    names = ["kpageflags", "kpagecount", "kpagecgroup"]
    states = {name: _try_to_read(f"/proc/{name}") for name in names}
    readable = [name for name in names if states[name] == ""]
    details: dict[str, Any] = {"readable": readable}
    if len(readable) == len(names):
        value = ", ".join(names)
        if _has_false_ksm():
            value += "; this kernel calls every anonymous page ksm, so physview ignores this flag"
            details["false_flags"] = ["ksm"]
        return CheckResult("kpage files", YES, value, details=details)
    bad = ", ".join(f"{name}: {why}" for name, why in states.items() if why)
    denied = any(why == os.strerror(errno.EACCES) for why in states.values())
    remedy = "" if denied else "a kernel with CONFIG_PROC_PAGE_MONITOR=y and CONFIG_MEMCG=y"
    missing = proc_mount.why_no_file("/proc/kpageflags") if not readable else None
    if missing:
        return CheckResult("kpage files", NO, *missing)
    state = PART if readable else NO
    return CheckResult("kpage files", state, bad, remedy, needs_root=denied, details=details)


def _has_false_ksm() -> bool:
    from physview.sources.kpage import false_flags

    try:
        return bool(false_flags())
    except CoreUnavailable:  # another check reports it
        return False


def _try_to_read(path: str) -> str:
    """Read eight bytes of a file. Return why the read failed; an empty text if it succeeded."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or str(error)
    try:
        return "" if len(os.read(fd, 8)) == 8 else "empty"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(fd)


def check_thp() -> CheckResult:
    """Check whether transparent huge pages are on, and report their sizes."""
    if not os.path.isdir(THP):
        remedy = "a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y"
        return CheckResult("transparent huge pages", NO, "not in this kernel", remedy)
    mode = _selected(f"{THP}/enabled")
    size_kib = int(read_or_empty(f"{THP}/hpage_pmd_size") or 0) // 1024
    mthp = {
        int(path.split("hugepages-")[1].split("kB")[0]): _selected(path)
        for path in glob.glob(f"{THP}/hugepages-*kB/enabled")
    }
    smaller = sorted(size for size, chosen in mthp.items() if size < size_kib and chosen != "never")
    details = {"enabled": mode, "pmd_size_bytes": size_kib * 1024, "mthp_kib": smaller}
    value = f"{mode}, {size_kib} KiB"
    if mthp:
        value += "; smaller sizes " + (", ".join(f"{s} KiB" for s in smaller) or "are off")
    if mode == "never":
        remedy = invocation.write_as_root("madvise", f"{THP}/enabled")
        return CheckResult("transparent huge pages", NO, value, remedy, details=details)
    return CheckResult("transparent huge pages", YES, value, details=details)


def _selected(path: str) -> str:
    """Read the selected word of a file such as "always [madvise] never": the one in brackets."""
    return read_or_empty(path).decode().partition("[")[2].partition("]")[0] or "unknown"


def check_hugetlb() -> CheckResult:
    """Check the pools of hugetlb pages, which are reserved in advance."""
    pools = {}
    for path in sorted(glob.glob("/sys/kernel/mm/hugepages/hugepages-*kB")):
        size_kib = int(path.split("hugepages-")[1].removesuffix("kB"))
        free, total = (int(read_or_empty(f"{path}/{n}_hugepages") or 0) for n in ("free", "nr"))
        pools[size_kib] = (free, total)
    if not pools:
        return CheckResult("hugetlb", NO, "not in this kernel", "a kernel with CONFIG_HUGETLBFS=y")
    value = ", ".join(f"{size} KiB: {free} of {nr} free" for size, (free, nr) in pools.items())
    details = {"pools": [{"size_kib": s, "free": f, "total": n} for s, (f, n) in pools.items()]}
    if any(total for _, total in pools.values()):
        return CheckResult("hugetlb", YES, value, details=details)
    remedy = invocation.write_as_root("16", "/proc/sys/vm/nr_hugepages")
    return CheckResult("hugetlb", PART, f"no pages set aside ({value})", remedy, details=details)


def check_bpf() -> CheckResult:
    """Check whether a BPF program can walk page tables: the source bpf."""
    try:
        with ProcDir("self") as proc, Bpf(proc) as walker:
            levels = walker.info.nr_levels
    except AccessDenied as error:
        needs_root = error.remedy == privileges.RUN_AS_ROOT
        remedy = "" if needs_root else error.remedy
        return CheckResult("BPF walk", NO, error.why, remedy, needs_root=needs_root)
    except PhysviewError as error:
        return CheckResult("BPF walk", NO, error.why, error.remedy)
    return CheckResult("BPF walk", YES, f"{levels} levels of page tables are walked")


def has_btf() -> bool:
    """Whether the kernel describes its types in BTF, without which there is no BPF walk."""
    return os.path.exists("/sys/kernel/btf/vmlinux")


def check_module() -> CheckResult:
    """Check whether the kernel module is loaded; it is the source kmod, which walks page tables."""
    loaded = os.path.isdir(f"/sys/module/{MODULE}")
    device = os.path.exists(DEVICE)
    details = {"loaded": loaded, "device": device, "loadable": os.path.exists("/proc/modules")}
    # Only physview's own has a version.
    if device and not os.path.exists(f"/sys/module/{MODULE}/version"):
        value = f"{DEVICE} belongs to another module, which translates only own addresses"
        return CheckResult("module", PART, value, invocation.load_own_module(), details=details)
    if device:
        return CheckResult("module", YES, f"{DEVICE} is there", details=details)
    if loaded:
        value = f"{MODULE} is loaded, but there is no {DEVICE}"
        return CheckResult("module", PART, value, details=details)
    no_proc = proc_mount.why_no_file("/proc/modules")
    if not details["loadable"] and no_proc:
        return CheckResult("module", NO, *no_proc, details=details)
    if not details["loadable"]:
        value = "this kernel cannot load modules; pagemap does not need the module"
        return CheckResult("module", NO, value, "a kernel with CONFIG_MODULES=y", details=details)
    value = f"{MODULE} is not loaded; pagemap does not need it"
    if signed_only := privileges.why_signed_modules():
        value += f"; {signed_only}"
    if not _has_kmod():
        value += "; lsmod and insmod are missing: the module's `make insert` needs them"
        return CheckResult("module", NO, value, packages.install_line("kmod"), details=details)
    return CheckResult("module", NO, value, details=details)


def _has_kmod() -> bool:
    """Whether lsmod and insmod are installed. Minimal systems lack them."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return all(shutil.which(name, path=path) for name in ("lsmod", "insmod", "rmmod"))


def check_headers() -> CheckResult:
    """Check whether the kernel headers are installed, which are needed to build the module."""
    release = os.uname().release
    build = f"/lib/modules/{release}/build"
    if os.path.exists(f"{build}/Makefile"):
        return CheckResult("kernel headers", YES, build)
    if not os.path.exists("/proc/modules") and not proc_mount.why_no_file("/proc/modules"):
        value = "none; this kernel could not load a module anyway"
        return CheckResult("kernel headers", NO, value)
    vm = f"{invocation.physview('vm')}, which brings a kernel with headers"
    _, remedy = packages.why_no_headers(release, vm)
    return CheckResult("kernel headers", NO, f"none for {release}", remedy)


def check_tracefs() -> CheckResult:
    """Check whether tracefs is mounted and readable, and whether the kernel has kprobes."""
    from physview.tracing import tracefs

    try:
        names = tracefs.mount_paths()
        mounted = next(tracefs.iter_tracefs(), None)
    except OSError as error:
        no_proc = proc_mount.why_no_file("/proc/self/mountinfo")
        why = no_proc or (f"cannot be found: {error.strerror}", "")
        return CheckResult("tracefs", NO, *why)
    if mounted is None:
        if names and os.geteuid() != 0:
            value, details = f"{names[0]}, which only root may read", {"path": names[0]}
            return CheckResult("tracefs", PART, value, needs_root=True, details=details)
        if not tracefs.is_supported():
            return CheckResult("tracefs", NO, "not in this kernel", "a kernel with CONFIG_FTRACE=y")
        return CheckResult("tracefs", NO, "not mounted", invocation.as_root(tracefs.MOUNT))
    try:
        return _check_mounted_tracefs(mounted)
    finally:
        mounted.close()


def _check_mounted_tracefs(tracefs: Tracefs) -> CheckResult:
    where = tracefs.path
    details: dict[str, Any] = {"path": where}
    if not tracefs.allows(".", os.R_OK | os.X_OK):
        value = f"{where}, which only root may read"
        return CheckResult("tracefs", PART, value, needs_root=True, details=details)
    details["kprobes"] = tracefs.has("kprobe_events")
    if not details["kprobes"]:
        value = f"{where}; events, but no kprobes in this kernel"
        remedy = "a kernel with CONFIG_KPROBE_EVENTS=y"
        return CheckResult("tracefs", PART, value, remedy, details=details)
    return CheckResult("tracefs", YES, f"{where}; events and kprobes", details=details)


def check_qemu() -> CheckResult:
    """Check for QEMU and KVM, which run throwaway VMs. KVM is not tried: this takes seconds."""
    from physview.vm import qemu

    name = packages.qemu_program()
    path = shutil.which(name)
    if path is None:
        return CheckResult("QEMU", NO, f"no {name}", packages.install_line("qemu"))
    details: dict[str, Any] = {"path": path, "kvm": qemu.can_open_kvm(), "kvm_failed": False}
    state, remedies = YES, []
    speed = "/dev/kvm can be opened"
    if not details["kvm"]:
        speed = "no /dev/kvm for this user: slow, but it works"
    elif qemu.kvm_has_failed():
        details["kvm_failed"] = True
        state, speed = PART, "/dev/kvm can be opened, but KVM failed before: slow, but it works"
        remedies.append(f"{qemu.ACCELERATOR_VARIABLE}=kvm in the environment tries it again")
    value = f"{path}; {speed}"
    if not _has_kmod():  # a VM has the programs of this machine
        state = PART
        value += "; lsmod and insmod are missing here, and therefore in a VM"
        remedies.append(packages.install_line("kmod"))
    return CheckResult("QEMU", state, value, "; ".join(remedies), details=details)


def check_extras() -> CheckResult:
    """Check for the Python packages that only some commands need."""
    missing = extras.missing()
    details = {"missing": [extra.package for extra in missing]}
    if not missing:
        value = ", ".join(extra.package for extra in extras.EXTRAS)
        return CheckResult("packages", YES, value, details=details)
    value = "; ".join(f"no {extra.package}, for {extra.commands}" for extra in missing)
    return CheckResult("packages", PART, value, extras.install_line(*missing), details=details)


CHECKS: tuple[Callable[[], CheckResult], ...] = (
    check_kernel,
    check_machine,
    check_page_size,
    check_paging_levels,
    check_user,
    check_core,
    check_pagemap,
    check_scan,
    check_kpage_files,
    check_thp,
    check_hugetlb,
    check_bpf,
    check_module,
    check_headers,
    check_tracefs,
    check_qemu,
    check_extras,
)
