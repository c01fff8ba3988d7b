# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages that only some commands need, and the line that installs one which is missing."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from physview.errors import Unsupported

EXTRAS = {"pyarrow": "parquet"}
"""The package, and the extra of physview's that names it."""


def need(name: str, what: str) -> Any:
    """Import a module of an extra.

    Args:
        name: The module, as "pyarrow.parquet".
        what: What fails without it.

    Raises:
        Unsupported: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        why = f"the Python package {package} (extra '{EXTRAS[package]}') is missing"
        if error.name != package:
            why = f"the Python package {package} does not load: {error}"
        remedy = f"{sys.executable} -m pip install {package}"
        raise Unsupported(what, why, remedy) from None
