# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests run in parallel: scripts/test runs pytest twice.

Most tests use processes of their own, and are independent of other tests. The first run executes
them in several workers of pytest-xdist, more than there are processors: many tests wait. Tests that
other processes disturb are marked `alone`, with the reason. The second run executes them without
workers: even an idle worker would map physview's library, which a lab evicts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

# The tests of each of these files run in one worker, in their order. They share something that
# takes long to make (a wheel, a VM, a built module, the output of many commands, a fixture of the
# module), or they would see each other's traces. The names are prefixes of file names.
ONE_WORKER = (
    "test_fleet",
    "test_hostile_names.py",
    "test_packaging.py",
    "test_trace",
    "test_picture.py",
    "test_kernels.py",
    "test_exporter_prometheus.py",
    "test_picture_page.py",
    "test_picture_page_look.py",
    "test_guest.py",
    "test_child_python.py",
    "test_snapshot_check.py",
    "test_resource_limits.py",
    "test_zipapp.py",
    "test_vm.py",
)
# Of the tests without VMs, these come first. Else the last worker would still be busy with one of
# them for long when the others have no more tests.
LONG = ("test_setup.py::test_nothing_of_a_folder_full_of_traps_runs", *ONE_WORKER)

# So many workers may have VMs. With more, VMs and tests that fill memory would disturb each other.
NR_WITH_VMS = 2
# The files with tests that boot VMs. They take minutes, so they come first, the longest before all.
WITH_VMS = (
    *("matrix", "debug_kernel", "vm_ci", "kmod_arm64", "vm_documented", "vm", "vm_devices"),
    *("vm_nested", "vm_bpf_refusals", "entry_macros"),
)

# The third worker takes these while the first two have VMs. They look at no memory whose pages the
# kernel may move to make room for a VM.
BESIDE_VMS = (
    *("apt", "architecture", "atomic_file", "child_python", "ci", "completion", "core", "course"),
    *("fleet", "fleet_dataset", "fleet_options", "fleet_page", "hostile_names", "install_advice"),
    *("invocation", "kernels", "kmod_makefile", "kmod_style", "main", "needs", "notebook"),
    *("outside_text", "output", "own_image", "packaging", "resource_limits", "setup"),
    *("snapshot_check", "vm_runner", "vm_sessions", "workflow", "zipapp"),
)
BESIDE_VMS_WORKER = f"gw{NR_WITH_VMS}"

# These tests share a VM if they run one after the other: guests.run_in_guest().
SAME_VM = re.compile(
    r"test_matrix\.py::test_(?:the_tests_pass_in_a_vm\[(.*)-False|a_race_and_a_fuzzer.*\[(.*))\]"
)


def has_no_test(config: pytest.Config, path: Path) -> bool:
    """Whether a file has no test of this run: most files have none that runs alone."""
    if config.getini("part") != "alone" or path.suffix != ".py":
        return False
    return "mark.alone(" not in path.read_text(encoding="utf-8")


def choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of this run. Put those with VMs first, then what takes long."""
    for item in items:
        if _needs_vm(item) and _place(item.nodeid) == len(WITH_VMS):
            raise pytest.UsageError(f"{item.nodeid} needs a VM: parallel.WITH_VMS names its file")
    part = config.getini("part")
    if not part:
        return
    alone = [item for item in items if item.get_closest_marker("alone")]
    together = [item for item in items if not item.get_closest_marker("alone")]
    kept, left = {"alone": (alone, together), "together": (together, alone)}[part]
    items[:] = sorted(kept, key=lambda item: (_place(item.nodeid), _turn(item.nodeid)))
    config.hook.pytest_deselected(items=left)


def _turn(nodeid: str) -> int:
    """The place of a test in LONG; the number of its entries for all others."""
    places = (at for at, name in enumerate(LONG) if nodeid.startswith(f"tests/{name}"))
    return next(places, len(LONG))


def _may_run_beside_vms(nodeid: str) -> bool:
    file = re.match(r"tests/test_(\w+)\.py::", nodeid)
    return file is not None and file[1] in BESIDE_VMS


def _place(nodeid: str) -> int:
    """The place of a test's file in WITH_VMS; the number of those files for all others."""
    file = re.match(r"tests/test_(\w+)\.py::", nodeid)
    return WITH_VMS.index(file[1]) if file and file[1] in WITH_VMS else len(WITH_VMS)


def _needs_vm(item: pytest.Item) -> bool:
    needed = {name for marker in item.iter_markers("needs") for name in marker.args}
    return any(name == "vm" or name.startswith("arm64") for name in needed)


def scheduler(config: pytest.Config, log: Any) -> Any:
    """A scheduler that gives tests to the workers in order: one by one, or a file at once.

    Only the first NR_WITH_VMS workers get tests with VMs. Until each of these has been given to a
    worker, the next worker gets what may run beside VMs, and the others wait.
    """
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            for name in ONE_WORKER:
                if nodeid.startswith(f"tests/{name}"):
                    return name
            if same := SAME_VM.search(nodeid):
                return f"the VM with {same[1] or same[2]}"
            return nodeid

        def _is_next_with_vm(self) -> bool:
            first = next(iter(self.workqueue.values()), {})
            return any(_place(nodeid) < len(WITH_VMS) for nodeid in first)

        def _must_wait(self, node: Any) -> bool:
            may_have_vms = node.gateway.id in [f"gw{number}" for number in range(NR_WITH_VMS)]
            return self._is_next_with_vm() and not may_have_vms

        def _assign_work_unit(self, node: Any) -> None:
            if self._must_wait(node):
                units = self.workqueue.items()
                beside = (scope for scope, unit in units if _may_run_beside_vms(next(iter(unit))))
                scope = next(beside, None) if node.gateway.id == BESIDE_VMS_WORKER else None
                if scope is None:
                    return
                self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            if node.shutting_down:
                return
            # A worker runs a test only when it has the next one. A third saves it a wait, but a VM
            # should go to the worker that is free first.
            nr_left = -1
            while self.workqueue and nr_left != len(self.workqueue):
                nr_left = len(self.workqueue)
                work = self.assigned_work[node]
                if self._pending_of(work) >= (2 if self._is_next_with_vm() else 3):
                    return
                self._assign_work_unit(node)
            if not self.workqueue:
                node.shutdown()

        def mark_test_complete(self, node: Any, *args: Any, **options: Any) -> None:
            super().mark_test_complete(node, *args, **options)
            # What is done need not be counted again after each test.
            for scope, unit in list(self.assigned_work[node].items()):
                if all(unit.values()):
                    del self.assigned_work[node][scope]
            for other in self.nodes:
                self._reschedule(other)

    config.option.loadscopereorder = False
    return InOrder(config, log)
