# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of the lab nested that runs in the guest: the report, and a page with a secret.

It prints one line of JSON and then waits until its VM ends, so that its pages stay where they are.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal

from physview.labs.memory import MappedPages
from physview.labs.observe import translate
from physview.model import PAGE_SIZE, Probe
from physview.sources.probes import visit_probes
from physview.text import proctext

SECRET = "a secret"
"""The label of the page whose first bytes only the guest chose."""
SECRET_BYTES = 16
SHARE_TOUCHED = 90
"""How much of the free memory is touched, in percent."""


def main() -> None:
    """Print the report as JSON, and wait."""
    _touch_free_memory()
    secret = os.urandom(SECRET_BYTES)
    with MappedPages(1) as memory:
        ctypes.memmove(memory.start, secret, SECRET_BYTES)

        def report(probes: list[Probe]) -> None:
            labelled = [*probes, Probe(SECRET, memory.start)]
            found = translate([probe.vaddr for probe in labelled])
            document = {
                "secret": secret.hex(),
                "page_size_bytes": PAGE_SIZE,
                "nr_levels": _nr_levels(),
                "entries": [
                    (probe.label, one.vaddr, one.paddr)
                    for probe, one in zip(labelled, found, strict=True)
                ],
            }
            os.write(1, f"{json.dumps(document)}\n".encode())
            while True:
                signal.pause()

        visit_probes(report)


def _touch_free_memory() -> None:
    """Write to most frames that are free, so that the host has a frame for them in each boot."""
    free = proctext.size_of(
        proctext.fields_by_name(proctext.read_or_empty("/proc/meminfo")), b"MemFree"
    )
    with MappedPages(max(1, (free or 0) * SHARE_TOUCHED // 100 // PAGE_SIZE)) as memory:
        ctypes.memset(memory.start, 1, memory.size)


def _nr_levels() -> int | None:
    from physview.system import checks

    details = checks.check_paging_levels().details
    return details["levels"] if details else None
