# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the addresses that the course program memview2 prints, from this process.

memview2 prints its own addresses: argv, envp, lmsg, gmsg, main and buf.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from physview import _ffi
from physview.errors import PhysviewError
from physview.model import Probe

T = TypeVar("T")


def visit_probes(visit: Callable[[list[Probe]], T]) -> T:
    """Take the probes, and call `visit` with them while their memory exists.

    Some probes are local variables of a C function, and some are memory from malloc(). Their memory
    is gone after this function returns.

    Args:
        visit: Called once, with the 40 probes in memview2's order.

    Returns:
        What `visit` returns.

    Raises:
        CoreUnavailable: The compiled core is not built; `reference.visit_stand_ins()` does not
            need it.
        Exception: Any exception of `visit`.
    """
    ffi, lib = _ffi.load()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def visitor(array: Any, nr: int) -> int:
        try:
            outcome.append(
                visit([Probe(ffi.string(p.label).decode(), p.vaddr) for p in array[0:nr]])
            )
        except BaseException as error:  # a Python exception cannot pass through C
            failure.append(error)
        return 0

    result = lib.pv_visit_probes(lib.visit_probes, ffi.new_handle(visitor))
    if failure:
        raise failure[0]
    if result < 0:
        raise PhysviewError("cannot take the probes", os.strerror(-result))
    return outcome[0]
