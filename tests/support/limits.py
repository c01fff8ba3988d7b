# SPDX-License-Identifier: GPL-2.0-or-later
"""The time limit of each test.

When a test reaches its limit, pytest-timeout interrupts it, also while it waits for a pipe, a child
or a thread, and shows the stacks.
"""

from __future__ import annotations

import os

import pytest

# The slowest tests without a VM take a minute while VMs use both processors.
SECONDS = 900
# The longest VM has a limit of 40 minutes. One that hangs is started a second time.
SECONDS_WITH_VM = 3 * 3600
LONG = ("vm", "debug-kernel", "arm64", "kernel")

# Under nohup or in the background, children ignore these signals. So a test that sends one of them
# starts its program with this command, which restores the default actions.
DEFAULT_SIGNALS = ["env", "--default-signal=INT,QUIT,HUP,TERM"]


def seconds_of(item: pytest.Item) -> int:
    """The limit of a test: longer if it boots a VM or builds the module."""
    needed = [name for marker in item.iter_markers("needs") for name in marker.args]
    if any(name.startswith(LONG) for name in needed) or "PHYSVIEW_KMOD" in os.environ:
        return SECONDS_WITH_VM
    return SECONDS


def set_limits(items: list[pytest.Item]) -> None:
    """Give a limit to every test that has no own `timeout` marker."""
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(seconds_of(item)))
