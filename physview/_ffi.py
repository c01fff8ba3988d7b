# SPDX-License-Identifier: GPL-2.0-or-later
"""The only module that imports the compiled core, `physview._native`."""

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
        """Call a Python function from pv_visit_probes(). `arg` is the function's handle."""
        result: int = _native.ffi.from_handle(arg)(probes, nr)
        return result


def load() -> tuple[Any, _Lib]:
    """Return cffi's `ffi` and `lib` of the core.

    Raises:
        CoreUnavailable: The core is not built, or does not load.
    """
    if _why_not:
        raise CoreUnavailable("the compiled core is missing", _why_not, remedy())
    return _native.ffi, _native.lib


def nr_threads() -> int:
    """Return the number of threads that can usefully run in the core at the same time."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def why_unavailable() -> str:
    """Return why the core can't be used; "" if it can."""
    return _why_not


def remedy() -> str:
    """Return how to get the core.

    This is the command that builds it. If the core does not load because a limit on memory or on
    open files is reached, it is how to raise that limit.
    """
    return _limit.remedy if _limit else f"to build it: {invocation.build_core()}"


def check(result: int, path: str) -> int:
    """Return the result of a core function, or raise an OSError about `path` if it is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result
