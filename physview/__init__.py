# SPDX-License-Identifier: GPL-2.0-or-later
"""physview shows where a process's memory really is.

>>> import physview
>>> with physview.Process("self") as process:
...     translation = process.translate(id(physview))
>>> translation.cause in (None, physview.Cause.HIDDEN)  # hidden from all but root
True
"""

from physview.columns import Translations
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
from physview.probes import visit_probes
from physview.process import Process

__version__ = "0.1.0"

__all__ = [
    "NO_ENTRY",
    "NO_PADDR",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "AccessDenied",
    "Cause",
    "CoreUnavailable",
    "Gap",
    "NoUserMemory",
    "PagemapEntry",
    "PhysviewError",
    "Probe",
    "Process",
    "ProcessGone",
    "Translation",
    "Translations",
    "Unsupported",
    "UsageError",
    "Vma",
    "visit_probes",
]
