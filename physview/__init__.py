# SPDX-License-Identifier: GPL-2.0-or-later
"""physview shows where in physical memory a process's memory is.

Functions such as `extents()` and `maps()` answer with a `Table`, which pandas, polars, DuckDB and
pyarrow take as it is. Classes such as `Process` and `Snapshot` read a process piece by piece.

>>> import physview
>>> with physview.Process("self") as process:
...     translation = process.translate(id(physview))
>>> translation.cause in (None, physview.Cause.HIDDEN)  # hidden from all but root
True
>>> physview.extents("self").column_names[:3]
['vaddr', 'nr_pages', 'pfn']
"""

import sys
from types import ModuleType
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
from physview.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from physview import pictures
    from physview.analysis.shared_tables import read_tables
    from physview.api.changes import DiffTable, changes, diff, snapshot
    from physview.api.groups import groups
    from physview.api.machine import file, frames, owners, select_frames
    from physview.api.memory import extents, maps
    from physview.api.page_tables import compare, tables, walk
    from physview.api.processes import processes
    from physview.api.touched import touched
    from physview.api.watch import watch, watch_processes
    from physview.frames.machine import read_machine
    from physview.frames.owners import find_owners
    from physview.memory.columnar import Columnar
    from physview.memory.columns import Column, Table
    from physview.memory.snapshot import Snapshot
    from physview.memory.translations import Translations
    from physview.parquet.snapshot_file import SnapshotFile, write_snapshot
    from physview.process import Process
    from physview.sources.page_cache import PageCache
    from physview.sources.page_flags import FlagFilter
    from physview.sources.probes import visit_probes
    from physview.tracing import Tracer

__all__ = [
    "NO_ENTRY",
    "NO_PADDR",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "AccessDenied",
    "Cause",
    "Column",
    "Columnar",
    "CoreUnavailable",
    "DiffTable",
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
    "Table",
    "Tracer",
    "Translation",
    "Translations",
    "Unsupported",
    "UsageError",
    "Vma",
    "changes",
    "compare",
    "diff",
    "extents",
    "file",
    "find_owners",
    "frames",
    "groups",
    "maps",
    "owners",
    "pictures",
    "processes",
    "read_machine",
    "read_tables",
    "select_frames",
    "snapshot",
    "tables",
    "touched",
    "visit_probes",
    "walk",
    "watch",
    "watch_processes",
    "write_snapshot",
]


# These names are imported only when they are used, so that physview starts fast.
_LAZY = {
    "Column": "memory.columns",
    "Columnar": "memory.columnar",
    "DiffTable": "api.changes",
    "FlagFilter": "sources.page_flags",
    "PageCache": "sources.page_cache",
    "Process": "process",
    "Snapshot": "memory.snapshot",
    "SnapshotFile": "parquet.snapshot_file",
    "Table": "memory.columns",
    "Tracer": "tracing",
    "Translations": "memory.translations",
    "changes": "api.changes",
    "compare": "api.page_tables",
    "diff": "api.changes",
    "extents": "api.memory",
    "file": "api.machine",
    "find_owners": "frames.owners",
    "frames": "api.machine",
    "groups": "api.groups",
    "maps": "api.memory",
    "owners": "api.machine",
    "pictures": "",
    "processes": "api.processes",
    "read_machine": "frames.machine",
    "read_tables": "analysis.shared_tables",
    "select_frames": "api.machine",
    "snapshot": "api.changes",
    "tables": "api.page_tables",
    "touched": "api.touched",
    "visit_probes": "sources.probes",
    "walk": "api.page_tables",
    "watch": "api.watch",
    "watch_processes": "api.watch",
    "write_snapshot": "parquet.snapshot_file",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'physview' has no attribute '{name}'")
    from importlib import import_module

    if not _LAZY[name]:
        return import_module(f"physview.{name}")
    return getattr(import_module(f"physview.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps `physview.frames` a function: a folder of modules has this name, too.

    When a module of the folder is imported, Python sets the attribute to the folder. `from
    physview.frames.machine import …` does not need the attribute.
    """

    @property
    def frames(self) -> Any:
        return __getattr__("frames")

    @frames.setter
    def frames(self, folder: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
