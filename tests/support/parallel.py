# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests run in parallel: scripts/test runs pytest twice.

Most tests use processes of their own, and are independent of other tests. The first run executes
them in two workers of pytest-xdist. Tests that other processes disturb are marked `alone`, with the
reason. The second run executes them without workers: even an idle worker would map physview's
library, which a lab evicts.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

# The tests of each of these files run in one worker, in their order. They share something that
# takes long to make (a wheel, a VM, a built module, the output of many commands), or they would see
# each other's traces. The names are prefixes of file names.
ONE_WORKER = (
    "test_hostile_names.py",
    "test_kernels.py",
    "test_packaging.py",
    "test_trace",
    "test_vm.py",
)

# These tests share a VM if they run one after the other: guests.run_in_guest().
SAME_VM = re.compile(
    r"test_matrix\.py::test_(?:the_tests_pass_in_a_vm\[(.*)-False|a_race_and_a_fuzzer.*\[(.*))\]"
)


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of this run. Put those with VMs first, because they take minutes each."""
    part = config.getini("part")
    if not part:
        return
    alone = [item for item in items if item.get_closest_marker("alone")]
    together = [item for item in items if not item.get_closest_marker("alone")]
    kept, left = {"alone": (alone, together), "together": (together, alone)}[part]
    items[:] = sorted(kept, key=lambda item: not _needs_vm(item))
    config.hook.pytest_deselected(items=left)


def _needs_vm(item: pytest.Item) -> bool:
    needed = {name for marker in item.iter_markers("needs") for name in marker.args}
    return any(name == "vm" or name.startswith("arm64") for name in needed)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """A scheduler that gives tests to the workers in order: one by one, or a file at once."""
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for name in ONE_WORKER:
                if nodeid.startswith(f"tests/{name}"):
                    return name
            if same := SAME_VM.search(nodeid):
                return f"the VM with {same[1] or same[2]}"
            return nodeid

    config.option.loadscopereorder = False
    return InOrder(config, log)
