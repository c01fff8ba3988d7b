# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lab may need of a machine, each with one line that says what is missing and the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable

from physview.errors import AccessDenied, ModuleUnavailable, PhysviewError, Unsupported
from physview.runtime import invocation, proc_mount
from physview.sources.kmod import DEVICE
from physview.text import proctext

Need = Callable[[str], PhysviewError | None]

PAGEMAP = "/proc/self/pagemap"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def needs(lab: str, *wanted: Need) -> Callable[[], PhysviewError | None]:
    """Make a lab's `why_not`: the first of its needs that is not met."""

    def why_not() -> PhysviewError | None:
        return next((error for need in wanted if (error := need(lab))), None)

    return why_not


def in_vm(lab: str, options: str = "") -> str:
    """The line that does the lab in a VM."""
    return f"or in a throwaway VM: {invocation.in_vm(f'lab {lab}', options)}"


def frames(lab: str) -> PhysviewError | None:
    """Frame numbers are shown to us."""
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


def core(lab: str) -> PhysviewError | None:
    """The compiled core is built."""
    from physview import _ffi

    why = _ffi.why_unavailable()
    if not why:
        return None
    return Unsupported(
        f"cannot do the lab {lab}",
        f"the compiled core is not there: {why}",
        invocation.build_core(),
    )


def module(lab: str) -> PhysviewError | None:
    """The kernel module is loaded, and is ours to use."""
    if os.access(DEVICE, os.R_OK):
        return None
    if os.path.exists(DEVICE):
        return AccessDenied(
            f"cannot do the lab {lab}", "the kernel module lets only root in", "run as root"
        )
    remedy = invocation.module_or_vm(f"lab {lab}")
    return ModuleUnavailable(f"cannot do the lab {lab}", "the kernel module is not loaded", remedy)


def swap(lab: str) -> PhysviewError | None:
    """There is somewhere to swap to."""
    missing = proc_mount.why_no_file("/proc/swaps") if not os.path.exists("/proc/swaps") else None
    if missing:
        return Unsupported(f"cannot do the lab {lab}", *missing)
    with open("/proc/swaps", "rb") as file:
        if len(proctext.lines(file.read())) > 1:  # the first is the head
            return None
    return Unsupported(
        f"cannot do the lab {lab}",
        "this machine has no swap area",
        f"swapon one, {in_vm(lab, '--swap 64')}",
    )


def huge_pages(lab: str) -> PhysviewError | None:
    """Who asks for transparent huge pages gets them."""
    what = f"cannot do the lab {lab}"
    try:
        with open(THP, "rb") as file:
            if b"[never]" not in file.read():
                return None
    except FileNotFoundError:
        why = "this kernel has no transparent huge pages"
        return Unsupported(what, why, in_vm(lab, "--kernel 6.1").removeprefix("or "))
    remedy = f"{invocation.write_as_root('madvise', THP)}, {in_vm(lab, '--kernel 6.1')}"
    return Unsupported(what, "transparent huge pages are set to never", remedy)


def migration(lab: str) -> PhysviewError | None:
    """Pages can be made to move: to another node, or by compaction."""
    from physview.sources.numa import node_map

    path = "/proc/sys/vm/compact_memory"
    if len(node_map().nodes) > 1 or os.access(path, os.W_OK):
        return None
    what = f"cannot do the lab {lab}"
    if not os.path.exists(path):
        why = "this kernel was built without compaction, and there is one NUMA node only"
        return Unsupported(what, why, in_vm(lab, "--kernel 6.1").removeprefix("or "))
    why = "there is one NUMA node only, and this user may not start compaction, as in a container"
    return AccessDenied(what, why, f"run as root, {in_vm(lab, '--append numa=fake=2')}")
