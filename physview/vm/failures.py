# SPDX-License-Identifier: GPL-2.0-or-later
"""How a VM can end other than by its command's end. A command that fails is none of these."""

from __future__ import annotations

import re

from physview.errors import PhysviewError
from physview.vm import init

NR_LINES_SHOWN = 30
NR_LAST_LINES_SHOWN = 10

_TIMESTAMP = re.compile(r"^\[ *[0-9.]+\](\[ *[TC]?[0-9]+\])? ")
# What a crash begins with. Source: arch/x86/kernel/{dumpstack,traps}.c, kernel/panic.c, mm/kasan.
_CRASH = re.compile(
    r"BUG: |Oops|general protection fault|kernel BUG at|invalid opcode|double fault"
    r"|Kernel panic - not syncing|sysrq: Trigger a crash"
)
PANIC = "Kernel panic - not syncing"
"""What every oops ends with: oops=panic."""


class VmUnusable(PhysviewError):
    """There can be no VM here, or it cannot be made as it is wanted."""

    exit_code = 125


class VmLost(PhysviewError):
    """The VM died, or did not boot in time: that says nothing about the command."""

    exit_code = 125


class VmTimeout(PhysviewError, TimeoutError):
    """The command did not end in the time it was given."""

    exit_code = 124


class KernelCrashed(PhysviewError):
    """The VM's kernel oopsed or panicked while the command ran."""

    exit_code = 123


def crashed(log: str) -> KernelCrashed | None:
    """The error that a kernel's log tells of, or None when it tells of none.

    >>> print(crashed("[    1.0] Fine\\n[    2.5] Kernel panic - not syncing: x\\n"))
    the VM's kernel crashed: Kernel panic - not syncing: x; its log:
      [    2.5] Kernel panic - not syncing: x
    """
    lines = _crash_lines(log)
    if not lines:
        return None
    why = _TIMESTAMP.sub("", lines[0])
    return KernelCrashed("the VM's kernel crashed", why, "its log:", _shown(lines))


def lost(what: str, log: str, complaint: str = "") -> VmLost:
    """The error for a VM that is gone.

    Args:
        what: How it went.
        log: The kernel's log up to then.
        complaint: What QEMU said on its stderr.
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
    return VmLost(what, why or "its kernel said nothing")


def _crash_lines(log: str) -> list[str]:
    """What a kernel said from the beginning of its end; nothing where it did not crash."""
    if PANIC not in log:
        return []
    lines = log.splitlines()
    first = next(number for number, line in enumerate(lines) if _CRASH.search(line))
    return lines[first:]


def _shown(lines: list[str]) -> tuple[str, ...]:
    rest = [line for line in lines[NR_LINES_SHOWN:] if PANIC in line]
    shown = [*lines[:NR_LINES_SHOWN], *(["…", *rest] if rest else [])]
    return tuple(f"  {line}".expandtabs() for line in shown)
