# SPDX-License-Identifier: GPL-2.0-or-later
"""physview shows where in physical memory a process's memory is.

>>> import physview
>>> with physview.Process("self") as process:
...     translation = process.translate(id(physview))
>>> translation.cause in (None, physview.Cause.HIDDEN)  # hidden from all but root
True
"""

from typing import TYPE_CHECKING, Any

from physview.errors import (
    AccessDenied,
    CoreUnavailable,
    NoUserMemory,
    PhysviewError,
    ProcessGone,
    Unsupported,
    UsageError,
)
from physview.memory.translations import Translations
from physview.model import (
    NO_ENTRY,
    NO_PADDR,
    PAGE_SHIFT,
    PAGE_SIZE,
    Cause,
    Gap,
    PagemapEntry,
    Probe,
    Translation,
    Vma,
)
from physview.process import Process
from physview.runtime.version import __version__ as __version__
from physview.sources.probes import visit_probes

if TYPE_CHECKING:
    from physview.analysis.changes import diff
    from physview.analysis.shared_tables import read_tables
    from physview.frames.machine import read_machine
    from physview.frames.owners import find_owners
    from physview.memory.snapshot import Snapshot
    from physview.parquet.snapshot_file import SnapshotFile, write_snapshot
    from physview.sources.page_cache import PageCache
    from physview.sources.page_flags import FlagFilter
    from physview.tracing import Tracer

__all__ = [
    "NO_ENTRY",
    "NO_PADDR",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "AccessDenied",
    "Cause",
    "CoreUnavailable",
    "FlagFilter",
    "Gap",
    "NoUserMemory",
    "PageCache",
    "PagemapEntry",
    "PhysviewError",
    "Probe",
    "Process",
    "ProcessGone",
    "Snapshot",
    "SnapshotFile",
    "Tracer",
    "Translation",
    "Translations",
    "Unsupported",
    "UsageError",
    "Vma",
    "diff",
    "find_owners",
    "read_machine",
    "read_tables",
    "visit_probes",
    "write_snapshot",
]


# These names are imported only when they are used, so that physview starts fast.
_LAZY = {
    "FlagFilter": "sources.page_flags",
    "PageCache": "sources.page_cache",
    "Snapshot": "memory.snapshot",
    "SnapshotFile": "parquet.snapshot_file",
    "Tracer": "tracing",
    "diff": "analysis.changes",
    "find_owners": "frames.owners",
    "read_machine": "frames.machine",
    "read_tables": "analysis.shared_tables",
    "write_snapshot": "parquet.snapshot_file",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'physview' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"physview.{_LAZY[name]}"), name)
