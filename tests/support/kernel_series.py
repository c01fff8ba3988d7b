# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels that the tests boot or build the module for."""

import os
from typing import Any

import pytest

# Of Debian's kernels, those that tests boot or build the module for.
SERIES = sorted({"6.1", "7.3", *os.environ.get("PHYSVIEW_KERNELS", "6.1").split(",")})


def by_kernel(series: list[str], architecture: str = "kernel") -> list[Any]:
    """Parameters, one a series of Debian's kernels, each with the need for its kernel."""
    return [
        pytest.param(each, marks=pytest.mark.needs(f"{architecture}-{each}")) for each in series
    ]
