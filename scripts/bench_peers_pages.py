# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of scripts/bench --peers about `pages` and `frames`. The peer is page-types."""

from __future__ import annotations

from collections.abc import Iterator

from bench_peers import Row
from measure import GIB, PHYSVIEW, c_program, start_target


def pages() -> Iterator[Row]:
    """A process with 2 GiB of small pages."""
    target, _ = start_target(2 * GIB, "write")
    pid = str(target.pid)
    pages_of, types_of = (PHYSVIEW, "pages", pid), ("page-types", "-p", pid)
    try:
        with c_program("readflags") as program:
            floor = (program, pid)
            each = (*types_of, "-N", "-L")
            yield Row("pages --each", 1.2, (*pages_of, "--each"), each, floor)
            yield Row(
                "pages --each, CSV", 1.2, (*pages_of, "--each", "--format", "csv"), each, floor
            )
            yield Row("pages, CSV", 1.2, (*pages_of, "--format", "csv"), each, floor)
            yield Row("pages", 1.2, pages_of, (*types_of, "-N", "-l"), floor)
            yield Row("pages --summary", 0.5, (*pages_of, "--summary"), types_of, floor)
    finally:
        target.kill()
        target.communicate()


def frames() -> Iterator[Row]:
    """All frames of the machine."""
    with c_program("readflags") as program:
        ours = (PHYSVIEW, "frames", "--all-flags")
        yield Row("frames", 0.7, ours, ("page-types",), (program,))
