# SPDX-License-Identifier: GPL-2.0-or-later
"""The only door to the compiled core."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from physview.errors import CoreUnavailable
from physview.runtime import invocation, resource_limits

if TYPE_CHECKING:
    from physview._native import _Lib

MAX_THREADS = 4

try:
    from physview import _native
except ImportError as error:
    _why_not = str(error)
    _limit = resource_limits.reached(error)
else:
    _why_not = ""
    _limit = None

    @_native.ffi.def_extern()  # type: ignore[untyped-decorator]
    def visit_probes(arg: Any, probes: Any, nr: int) -> int:
        """Called by pv_visit_probes(): `arg` is the handle of the function to call."""
        result: int = _native.ffi.from_handle(arg)(probes, nr)
        return result


def load() -> tuple[Any, _Lib]:
    """Return cffi's `ffi` and `lib` of the core.

    Raises:
        CoreUnavailable: It is not built, or does not load.
    """
    if _why_not:
        raise CoreUnavailable("the compiled core is not there", _why_not, remedy())
    return _native.ffi, _native.lib


def nr_threads() -> int:
    """How many threads are worth having in the core at once."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def why_unavailable() -> str:
    """Why the core can't be used; empty when it can."""
    return _why_not


def remedy() -> str:
    """How the core gets there; where it does not load for want of memory or files, that."""
    return _limit.remedy if _limit else f"to build it: {invocation.build_core()}"


def check(result: int, path: str) -> int:
    """Turn the -errno of a core function into an OSError about `path`; hand on anything else."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result
