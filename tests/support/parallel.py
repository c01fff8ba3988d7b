# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests run side by side: scripts/test runs pytest twice.

Most tests look at processes of their own, and do not mind others: two workers of pytest-xdist run
them at once. Those that do mind are marked `alone`, with the reason, and run after them, when no
worker is left: one that only waits would still map physview's library, which a lab evicts.
"""

from __future__ import annotations

from typing import Any

import pytest

# Files whose tests go to one worker, in their order: they share a wheel, a VM, a built module or
# what many commands printed, which take long to make, or they see each other's traces.
ONE_WORKER = (
    "test_hostile_names.py",
    "test_kernels.py",
    "test_packaging.py",
    "test_trace",
    "test_vm.py",
)


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep those of this part, and bring VMs to the front: they take minutes each."""
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
    """Hands out the tests in their order, one by one, or those at once that go to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for name in ONE_WORKER:
                if nodeid.startswith(f"tests/{name}"):
                    return name
            return nodeid

    config.option.loadscopereorder = False
    return InOrder(config, log)
