# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses the source that walks page tables: the kernel module if it is loaded, or else BPF."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from physview.errors import UsageError

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
    from physview.sources.kmod import DEVICE

    return open_kmod(proc) if os.access(DEVICE, os.R_OK) else open_bpf(proc)


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
            may use it, or else BPF.

    Raises:
        UsageError: There is no such source.
        PhysviewError: The source is not available, with the cause and a remedy.
    """
    if source not in WALKERS:
        raise UsageError(f"unknown source '{source}'", "", f"choose one of {', '.join(WALKERS)}")
    return WALKERS[source](proc)
