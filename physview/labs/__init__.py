# SPDX-License-Identifier: GPL-2.0-or-later
"""The labs: the course's experiments, each run on this machine with real processes.

>>> from physview import labs
>>> evidence = labs.run("heap")
>>> len(evidence.tables[0].rows)
30
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from physview.errors import UsageError
from physview.labs.model import Evidence, Lab
from physview.text.nearest import offer

NAMES = (
    "report",
    "heap",
    "runs",
    "cache",
    "copies",
    "kmalloc",
    "pages",
    "cow",
    "zero",
    "shared",
    "huge",
    "swap",
    "migrate",
    "levels",
    "witnesses",
    "hidden",
    "nested",
)
"""The labs in the order of the course. Each lab is a module of this package."""


def find(name: str) -> Lab:
    """Return the lab with this name.

    Raises:
        UsageError: No lab has this name.
    """
    if name not in NAMES:
        raise UsageError(f"there is no lab '{name}'", "", offer(name, NAMES))
    lab: Lab = import_module(f"physview.labs.{name}").LAB
    return lab


def run(name: str, **options: Any) -> Evidence:
    """Run a lab on this machine. The lab undoes every change that it made to the machine.

    Args:
        name: One of NAMES.
        options: The lab's own options: `machine` for cache, `nr_repetitions` for runs.

    Returns:
        The measurements and the conclusions from them.

    Raises:
        UsageError: There is no such lab, or the lab has no such option.
        PhysviewError: The lab can't run here. The error's text names the missing requirement.
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
