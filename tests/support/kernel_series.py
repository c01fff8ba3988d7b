# SPDX-License-Identifier: GPL-2.0-or-later
"""The series of Debian's kernels that the tests use."""

import os
from typing import Any

import pytest

# Tests boot these kernels, or build the module for them.
SERIES = sorted({"6.1", "7.3", *os.environ.get("PHYSVIEW_KERNELS", "6.1").split(",")})


def by_kernel(series: list[str], architecture: str = "kernel") -> list[Any]:
    """One parameter for each series, with a `needs` marker for its kernel."""
    return [
        pytest.param(each, marks=pytest.mark.needs(f"{architecture}-{each}")) for each in series
    ]
