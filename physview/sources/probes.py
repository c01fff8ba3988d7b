# SPDX-License-Identifier: GPL-2.0-or-later
"""memview2's own addresses, taken in this process: argv, envp, lmsg, gmsg, main, buf."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from physview import _ffi
from physview.errors import PhysviewError
from physview.model import Probe

T = TypeVar("T")


def visit_probes(visit: Callable[[list[Probe]], T]) -> T:
    """Take the probes and call `visit` with them while their memory is theirs.

    Some are locals of a C function and some are from malloc(): after this returns they are gone.

    Args:
        visit: Called once, with the 40 probes in memview2's order.

    Returns:
        What `visit` returns.

    Raises:
        CoreUnavailable: The compiled core is not built; `reference.visit_stand_ins()` needs none.
        Exception: What `visit` raises.
    """
    ffi, lib = _ffi.load()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def visitor(array: Any, nr: int) -> int:
        try:
            outcome.append(
                visit([Probe(ffi.string(p.label).decode(), p.vaddr) for p in array[0:nr]])
            )
        except BaseException as error:  # it must not unwind through C
            failure.append(error)
        return 0

    result = lib.pv_visit_probes(lib.visit_probes, ffi.new_handle(visitor))
    if failure:
        raise failure[0]
    if result < 0:
        raise PhysviewError("cannot take the probes", os.strerror(-result))
    return outcome[0]
