# SPDX-License-Identifier: GPL-2.0-or-later
"""The course's experiments, done for real.

>>> from physview import labs
>>> evidence = labs.run("heap")
>>> len(evidence.tables[0].rows)
30
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from physview.errors import UsageError
from physview.labs.base import Evidence, Lab
from physview.runtime import invocation

NAMES = (
    "report",
    "heap",
    "runs",
    "cache",
    "cow",
    "zero",
    "shared",
    "huge",
    "swap",
    "migrate",
    "levels",
    "witnesses",
    "hidden",
)
"""The labs, in the order in which to do them. Each is a module of this package."""


def find(name: str) -> Lab:
    """The lab of a name.

    Raises:
        UsageError: There is none.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4)
        remedy = f"choose of {', '.join(NAMES)}"
        if near:
            remedy = f"did you mean {' or '.join(near)}? {invocation.physview('lab')} lists all"
        raise UsageError(f"there is no lab '{name}'", "", remedy)
    lab: Lab = import_module(f"physview.labs.{name}").LAB
    return lab


def run(name: str, **options: Any) -> Evidence:
    """Do an experiment on this machine, and put back what it changed.

    Args:
        name: One of NAMES.
        options: What this lab lets one choose: `machine` of cache, `nr_runs` of runs.

    Returns:
        What was measured, and what follows from it.

    Raises:
        UsageError: There is no such lab, or it has no such option.
        PhysviewError: It can't be done here: its text says what it needs.
    """
    lab = find(name)
    for option in options:
        if option not in lab.options:
            has = f"it has {', '.join(lab.options)}" if lab.options else "it has none"
            raise UsageError(f"the lab {name} has no option {option}", has)
    why = lab.why_not()
    if why:
        raise why
    return lab.run(**options)
