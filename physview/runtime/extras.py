# SPDX-License-Identifier: GPL-2.0-or-later
"""Optional Python packages: imports them, and advises how to install one that is missing."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.runtime import install_advice, resource_limits


class Extra(NamedTuple):
    """An optional package.

    Args:
        module: The module that is imported, such as "PIL".
        package: The name of the package on PyPI, such as "pillow".
        name: The extra of physview that installs the package, such as "picture".
        commands: What needs the package, for messages.
        is_advised: Whether doctor advises to install it. It does not if few users want the package
            and it is very large.
    """

    module: str
    package: str
    name: str
    commands: str
    is_advised: bool = True


EXTRAS = (
    Extra("pyarrow", "pyarrow", "parquet", "snapshot, diff and record"),
    Extra("PIL", "pillow", "picture", "PNG pictures"),
    Extra("prometheus_client", "prometheus-client", "exporter", "exporter"),
    Extra("duckdb", "duckdb", "fleet", "fleet"),
    Extra("ibis", "ibis-framework", "fleet", "fleet"),
    Extra("fsspec", "fsspec", "fleet", "fleet with an object store"),
    Extra("pyspark", "pyspark", "spark", "fleet --engine spark", is_advised=False),
)


def missing() -> list[Extra]:
    """The optional packages that are advised and not installed. None is imported to find out."""
    return [extra for extra in EXTRAS if extra.is_advised and not _is_installed(extra)]


def _is_installed(extra: Extra) -> bool:
    return find_spec(extra.module) is not None


def install_line(*extras: Extra) -> str:
    """The command line that installs optional packages for this interpreter."""
    names = [extra.name for extra in EXTRAS if extra in extras or _is_installed(extra)]
    packages = [extra.package for extra in extras]
    return install_advice.install_line(packages, list(dict.fromkeys(names)))


def need(name: str, what: str) -> Any:
    """Import a module of an optional package.

    Args:
        name: The module, such as "pyarrow.parquet".
        what: What fails without the module, for the message.

    Raises:
        Unsupported: The package is not installed, or does not load.
        PhysviewError: A limit of this process was reached during the import.
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
