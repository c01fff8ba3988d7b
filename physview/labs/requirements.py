# SPDX-License-Identifier: GPL-2.0-or-later
"""The labs' requirements: checks whether this machine and this user can run a lab.

Each check takes the lab's name. It returns None if the requirement is met; otherwise it returns an
error that names the missing thing and the remedy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.runtime import invocation, packages, proc_mount
from physview.text import proctext

Requirement = Callable[[str], PhysviewError | None]

PAGEMAP = "/proc/self/pagemap"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def checker(lab: str, *requirements: Requirement) -> Callable[[], PhysviewError | None]:
    """Make a lab's `why_not`: it returns the error of the first requirement that is not met."""

    def why_not() -> PhysviewError | None:
        return next((error for check in requirements if (error := check(lab))), None)

    return why_not


def in_vm(lab: str, options: str = "") -> str:
    """Return the remedy that every lab has: the command that runs the lab in a throwaway VM."""
    return f"or in a throwaway VM: {invocation.in_vm(f'lab {lab}', options)}"


def frame_numbers(lab: str) -> PhysviewError | None:
    """Require that the kernel shows frame numbers to this user."""
    from physview.system import checks

    if checks.can_show_frames():
        return None
    missing = proc_mount.why_no_file(PAGEMAP) if not os.path.exists(PAGEMAP) else None
    if missing:
        return Unsupported(f"cannot do the lab {lab}", *missing)
    if os.geteuid() == 0:
        remedy = f"give root CAP_SYS_ADMIN, which a container lacks, {in_vm(lab)}"
    else:
        remedy = f"run as root, {in_vm(lab)}"
    return AccessDenied(
        f"cannot do the lab {lab}", "the kernel hides frame numbers from this user", remedy
    )


def compiled_core(lab: str) -> PhysviewError | None:
    """Require that physview's compiled core is built."""
    from physview import _ffi

    why = _ffi.why_unavailable()
    if not why:
        return None
    return Unsupported(
        f"cannot do the lab {lab}",
        f"the compiled core is not there: {why}",
        invocation.build_core(),
    )


def page_tables(lab: str, vm_options: str = "") -> PhysviewError | None:
    """Require a source that walks page tables: the kernel module or a BPF program."""
    from physview.sources.choice import open_page_tables
    from physview.sources.procfs import ProcDir

    try:
        with ProcDir() as proc, open_page_tables(proc):
            return None
    except PhysviewError as error:
        remedy = ", ".join(filter(None, [error.remedy, in_vm(lab, vm_options)]))
        why = f"no page table can be walked: {error.why}"
        return type(error)(f"cannot do the lab {lab}", why, remedy)


def tracing(lab: str) -> PhysviewError | None:
    """Require tracefs, with which the kernel traces events."""
    from physview.tracing import tracefs

    try:
        tracefs.find_tracefs().close()
    except PhysviewError as error:
        remedy = error.remedy.partition(", or trace in a ")[0]
        what = f"cannot do the lab {lab}"
        return type(error)(what, error.why, f"{remedy}, {in_vm(lab, '--kernel 6.1')}")
    return None


def kernel_functions(lab: str) -> PhysviewError | None:
    """Require that functions of the kernel can be traced, not only tracepoints."""
    from physview.tracing import tracefs

    missing = tracing(lab)
    if missing:
        return missing
    with tracefs.find_tracefs() as fs:
        if fs.has("kprobe_events"):
            return None
    remedy = in_vm(lab, "--kernel 6.1").removeprefix("or ")
    return Unsupported(f"cannot do the lab {lab}", "this kernel has no kprobes", remedy)


def module(lab: str) -> PhysviewError | None:
    """Require that the kernel module is loaded, and that this user may open its device."""
    from physview.sources.kmod import DEVICE

    if os.access(DEVICE, os.R_OK):
        return None
    remedy = invocation.module_or_vm(f"lab {lab}")
    return Unsupported(f"cannot do the lab {lab}", "the kernel module is not loaded", remedy)


def swap_area(lab: str) -> PhysviewError | None:
    """Require that the machine has an active swap area."""
    missing = proc_mount.why_no_file("/proc/swaps") if not os.path.exists("/proc/swaps") else None
    if missing:
        return Unsupported(f"cannot do the lab {lab}", *missing)
    with open("/proc/swaps", "rb") as file:
        if len(proctext.lines(file.read())) > 1:  # the first line is the heading
            return None
    return Unsupported(
        f"cannot do the lab {lab}",
        "this machine has no swap area",
        f"add a swap area with mkswap and swapon, {in_vm(lab, '--swap 64')}",
    )


def frame_numbers_of_host(lab: str) -> PhysviewError | None:
    """Require frame numbers as `frame_numbers()` does, for a lab that a VM would not help."""
    error = frame_numbers(lab)
    if error is None:
        return None
    if os.geteuid() == 0:
        remedy = "give root CAP_SYS_ADMIN, which a container lacks"
    else:
        remedy = invocation.physview_as_root(f"lab {lab}")
    return type(error)(f"cannot do the lab {lab}", error.why, remedy)


def virtual_machine(lab: str) -> PhysviewError | None:
    """Require QEMU, a processor for which physview vm makes VMs, and that it is not emulated."""
    from physview.system import hypervisor

    what = f"cannot do the lab {lab}"
    below = hypervisor.detect()
    if below and below.name == hypervisor.EMULATED:
        why = "this machine is an emulated VM, and a VM in it would take too long"
        return Unsupported(what, why, "run it on the machine that runs this VM")
    if os.uname().machine not in packages.QEMU_PACKAGES:
        why = "physview boots VMs on x86-64 and arm64 only"
        return Unsupported(what, why, "use such a machine")
    if not shutil.which(packages.qemu_program()):
        return Unsupported(what, "QEMU is not installed", packages.install_line("qemu"))
    return None


def huge_pages(lab: str) -> PhysviewError | None:
    """Require that transparent huge pages are enabled, at least for madvise()."""
    what = f"cannot do the lab {lab}"
    try:
        with open(THP, "rb") as file:
            if b"[never]" not in file.read():
                return _room_for_huge_page(what)
    except FileNotFoundError:
        why = "this kernel has no transparent huge pages"
        return Unsupported(what, why, in_vm(lab, "--kernel 6.1").removeprefix("or "))
    remedy = f"{invocation.write_as_root('madvise', THP)}, {in_vm(lab, '--kernel 6.1')}"
    return Unsupported(what, "transparent huge pages are set to never", remedy)


def _room_for_huge_page(what: str) -> PhysviewError | None:
    """Require memory for a huge page. With pages of 64 KiB a huge page has 512 MiB."""
    from physview.sources.folio_sizes import huge_page_size
    from physview.units import size_words

    size = huge_page_size()
    with open("/proc/meminfo", "rb") as file:
        pairs = (line.partition(b":") for line in proctext.lines(file.read()))
        available = next((int(v.split(b" ")[-2]) for n, _, v in pairs if n == b"MemAvailable"), 0)
    if available << 10 > size + size // 4:
        return None
    why = f"a huge page has {size_words(size)} here, and {available >> 10} MiB are available"
    return Unsupported(what, why, "end other programs, or give the machine more memory")


def migration(lab: str) -> PhysviewError | None:
    """Require a way to migrate pages: a second NUMA node, or compaction."""
    from physview.sources.numa import node_map

    path = "/proc/sys/vm/compact_memory"
    if len(node_map().nodes) > 1 or os.access(path, os.W_OK):
        return None
    what = f"cannot do the lab {lab}"
    if not os.path.exists(path):
        why = "this kernel was built without compaction, and the machine has only one NUMA node"
        return Unsupported(what, why, in_vm(lab, "--kernel 6.1").removeprefix("or "))
    why = (
        "the machine has only one NUMA node, and this user (or container) may not start compaction"
    )
    return AccessDenied(what, why, f"run as root, {in_vm(lab, '--append numa=fake=2')}")
