# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages that only some commands need, and the line that installs one which is missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.runtime import install_advice, resource_limits


class Extra(NamedTuple):
    """A package that physview can do without.

    Args:
        module: What is imported of it.
        package: Its name where packages are had.
        name: The extra of physview's that brings it.
        commands: What needs it.
    """

    module: str
    package: str
    name: str
    commands: str


EXTRAS = (
    Extra("pyarrow", "pyarrow", "parquet", "snapshot and diff"),
    Extra("PIL", "pillow", "picture", "PNG pictures"),
)


def missing() -> list[Extra]:
    """Those that are not installed; none is imported."""
    return [extra for extra in EXTRAS if find_spec(extra.module) is None]


def install_line(*extras: Extra) -> str:
    """The command that installs them for this interpreter."""
    absent = missing()
    names = [extra.name for extra in EXTRAS if extra in extras or extra not in absent]
    return install_advice.install_line([extra.package for extra in extras], names)


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
    except (ImportError, MemoryError) as error:
        (extra,) = (extra for extra in EXTRAS if extra.module == name.partition(".")[0])
        why = f"the Python package {extra.package} (extra '{extra.name}') is missing"
        limit = resource_limits.reached(error)
        if limit:
            raise PhysviewError(what, *limit) from None
        if getattr(error, "name", None) != extra.module:
            why = f"the Python package {extra.package} does not load: {error}"
        raise Unsupported(what, why, install_line(extra)) from None
