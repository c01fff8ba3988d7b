# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses the source that walks page tables: the kernel module if it is loaded, or else BPF."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from physview.errors import AbiMismatch, AccessDenied, Unsupported, UsageError

if TYPE_CHECKING:
    from physview.sources.page_tables import PageTables
    from physview.sources.procfs import ProcDir


def open_kmod(proc: ProcDir) -> PageTables:
    """Open the page tables by the kernel module; see `kmod.Kmod`."""
    from physview.sources.kmod import Kmod

    return Kmod(proc)


def open_bpf(proc: ProcDir) -> PageTables:
    """Open the page tables by a BPF program; see `bpf.Bpf`."""
    from physview.sources.bpf import Bpf

    return Bpf(proc)


def _auto(proc: ProcDir) -> PageTables:
    try:
        return _open_kmod_if_loaded(proc) or open_bpf(proc)
    except AbiMismatch as error:
        return _open_bpf_instead(proc, error)


def _open_kmod_if_loaded(proc: ProcDir) -> PageTables | None:
    """Open the page tables by the module; None if it is not loaded or this user may not use it.

    Raises:
        AbiMismatch: The loaded module is the course's, or one with another ABI version.
    """
    from physview.sources.kmod import DEVICE

    if not os.access(DEVICE, os.R_OK):
        return None
    kmod = open_kmod(proc)
    try:
        kmod.user_end()
    except BaseException:
        kmod.close()
        raise
    return kmod


def _open_bpf_instead(proc: ProcDir, mismatch: AbiMismatch) -> PageTables:
    """Open the page tables by BPF, because the loaded module cannot walk all of a process."""
    try:
        return open_bpf(proc)
    except (AccessDenied, Unsupported):
        raise mismatch from None  # its remedy is the nearest


WALKERS: dict[str, Callable[[ProcDir], PageTables]] = {
    "auto": _auto,
    "kmod": open_kmod,
    "bpf": open_bpf,
}


def open_page_tables(proc: ProcDir, source: str = "auto") -> PageTables:
    """Open the page tables of a process.

    Args:
        proc: The process.
        source: "kmod" (the kernel module), "bpf" (a BPF program) or "auto": the module if this user
            may use it and it is not the course's, or else BPF.

    Raises:
        UsageError: There is no such source.
        PhysviewError: The source is not available, with the cause and a remedy.
    """
    if source not in WALKERS:
        raise UsageError(f"unknown source '{source}'", "", f"choose one of {', '.join(WALKERS)}")
    return WALKERS[source](proc)


def open_walkers(proc: ProcDir, source: str = "auto") -> list[PageTables]:
    """Open a process by each source that walks page tables: two of them check each other.

    Args:
        proc: The process.
        source: As for `open_page_tables()`; "auto" means each source that can walk whole processes
            here: the module if it is loaded and not the course's, and BPF.

    Raises:
        UsageError: There is no such source.
        PhysviewError: No source is available, with the cause and a remedy.
    """
    if source != "auto":
        return [open_page_tables(proc, source)]
    try:
        kmod = _open_kmod_if_loaded(proc)
    except AbiMismatch as error:
        return [_open_bpf_instead(proc, error)]
    if kmod is None:
        return [open_bpf(proc)]
    try:
        return [kmod, open_bpf(proc)]
    except (AccessDenied, Unsupported):
        return [kmod]
    except BaseException:
        kmod.close()
        raise
