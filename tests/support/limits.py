# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a test may take: every wait in it ends then, and the stacks are shown.

pytest-timeout interrupts the wait itself, whatever is waited for: a pipe, a child, a thread.
"""

from __future__ import annotations

import os

import pytest

# The slowest of the host's tests take a minute beside VMs that take both processors.
SECONDS = 900
# The longest VM is given up after 50 minutes, and started once more where it was lost.
SECONDS_WITH_VM = 3 * 3600
LONG = ("vm", "debug-kernel", "arm64", "kernel")

# What a shell with nohup, or that runs a command in the background, has its children ignore.
# A test that sends one of these signals starts its program with this.
DEFAULT_SIGNALS = ["env", "--default-signal=INT,QUIT,HUP,TERM"]


def seconds_of(item: pytest.Item) -> int:
    """The time that a test may take: those that boot VMs, or build modules, have more."""
    needed = [name for marker in item.iter_markers("needs") for name in marker.args]
    if any(name.startswith(LONG) for name in needed) or "PHYSVIEW_KMOD" in os.environ:
        return SECONDS_WITH_VM
    return SECONDS


def set_limits(items: list[pytest.Item]) -> None:
    """Give every test a limit that has none of its own."""
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds_of(item)))
