# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors of a VM: it was lost, its kernel crashed, or its command took too long.

A command that fails is not an error of the VM: its exit code is returned.
"""

from __future__ import annotations

import re
from typing import Any

from physview.errors import PhysviewError
from physview.vm import init

NR_LINES_SHOWN = 30
NR_LAST_LINES_SHOWN = 10

_TIMESTAMP = re.compile(r"^\[ *[0-9.]+\](\[ *[TC]?[0-9]+\])? ")
# The first line of a crash's log. Source: arch/x86/kernel/{dumpstack,traps}.c,
# arch/arm64/{mm/fault,kernel/traps}.c, kernel/panic.c, mm/kasan.
_CRASH = re.compile(
    r"BUG: |Oops|general protection fault|kernel BUG at|invalid opcode|double fault"
    r"|Unable to handle kernel|Internal error: "
    r"|Kernel panic - not syncing|sysrq: Trigger a crash"
)
PANIC = "Kernel panic - not syncing"
"""The last line of every oops, because the kernel's command line has oops=panic."""


class VmUnusable(PhysviewError):
    """This machine can't run a VM, or not the VM that was asked for."""

    exit_code = 125


class VmLost(PhysviewError):
    """The VM died, or did not boot in time. The command is not the cause."""

    exit_code = 125


class VmTimeout(PhysviewError, TimeoutError):
    """The command took longer than its timeout."""

    exit_code = 124


class KernelCrashed(PhysviewError):
    """The VM's kernel oopsed or panicked while the command ran."""

    exit_code = 123


def as_document(error: PhysviewError) -> dict[str, Any]:
    """Return an error in a form that JSON can hold, for another process."""
    return {"kind": type(error).__name__, "parts": error.__reduce__()[1][1]}


def from_document(document: dict[str, Any]) -> PhysviewError:
    """Return the error that `as_document()` was given; as a VmLost if its kind is not of a VM."""
    kinds = (VmUnusable, VmLost, VmTimeout, KernelCrashed)
    kind = {kind.__name__: kind for kind in kinds}.get(document["kind"], VmLost)
    what, why, remedy, lines = document["parts"]
    return kind(what, why, remedy, tuple(lines))


def refused_error(content: bytes) -> VmUnusable:
    """Return the error for what the guest refuses, from its message."""
    why = content.decode("utf-8", "replace")
    return VmUnusable("the VM cannot be set up for the command", why)


def crash_error(log: str) -> KernelCrashed | None:
    """Return the error for a crash in a kernel's log; None if the log has no crash.

    >>> print(crash_error("[    1.0] Fine\\n[    2.5] Kernel panic - not syncing: x\\n"))
    the VM's kernel crashed: Kernel panic - not syncing: x; its log:
      [    2.5] Kernel panic - not syncing: x
    """
    lines = _crash_lines(log)
    if not lines:
        return None
    why = _TIMESTAMP.sub("", lines[0])
    return KernelCrashed("the VM's kernel crashed", why, "its log:", _shown(lines))


def lost_error(what: str, log: str, complaint: str = "") -> VmLost:
    """Return the error for a lost VM.

    Args:
        what: How the VM was lost.
        log: The kernel's log until then.
        complaint: QEMU's stderr.
    """
    lines = log.splitlines()
    crash = _crash_lines(log)
    failed_steps = [line for line in lines if line.startswith(init.FAILURE)]
    reasons = [*complaint.strip().splitlines(), *failed_steps, *crash]
    why = _TIMESTAMP.sub("", reasons[0]) if reasons else ""
    if crash and not failed_steps:
        return VmLost(what, why, "its log:", _shown(crash))
    if lines:
        return VmLost(what, why, "its log ends:", _shown(lines[-NR_LAST_LINES_SHOWN:]))
    return VmLost(what, why or "its kernel printed nothing")


def _crash_lines(log: str) -> list[str]:
    """Return the kernel's log from the first line of its crash on; empty if it did not crash."""
    if PANIC not in log:
        return []
    lines = log.splitlines()
    first = next(number for number, line in enumerate(lines) if _CRASH.search(line))
    return lines[first:]


def _shown(lines: list[str]) -> tuple[str, ...]:
    rest = [line for line in lines[NR_LINES_SHOWN:] if PANIC in line]
    shown = [*lines[:NR_LINES_SHOWN], *(["…", *rest] if rest else [])]
    return tuple(f"  {line}".expandtabs() for line in shown)
