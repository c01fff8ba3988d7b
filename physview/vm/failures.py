# SPDX-License-Identifier: GPL-2.0-or-later
"""How a VM can end other than by its command's end. A command that fails is none of these."""

from __future__ import annotations

import re

from physview.errors import PhysviewError
from physview.vm import init

NR_LINES_SHOWN = 30

_TIMESTAMP = re.compile(r"^\[ *[0-9.]+\](\[ *[TC]?[0-9]+\])? ")
# What a crash begins with. Source: arch/x86/kernel/{dumpstack,traps}.c, kernel/panic.c, mm/kasan.
_CRASH = re.compile(
    r"BUG: |Oops|general protection fault|kernel BUG at|invalid opcode|double fault"
    r"|Kernel panic - not syncing|sysrq: Trigger a crash"
)
_PANIC = "Kernel panic - not syncing"


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
    the VM's kernel crashed: Kernel panic - not syncing: x; its log ends:
      [    2.5] Kernel panic - not syncing: x
    """
    if _PANIC not in log:  # every oops is one: oops=panic
        return None
    lines = log.splitlines()
    first = next(number for number, line in enumerate(lines) if _CRASH.search(line))
    shown = lines[first : first + NR_LINES_SHOWN]
    rest = lines[first + NR_LINES_SHOWN :]
    if rest:
        shown += ["…", *[line for line in rest if _PANIC in line]]
    why = _TIMESTAMP.sub("", lines[first])
    return KernelCrashed("the VM's kernel crashed", why, "its log ends:\n" + _indented(shown))


def lost(what: str, log: str, complaint: str = "") -> VmLost:
    """The error for a VM that is gone.

    Args:
        what: How it went.
        log: The kernel's log up to then.
        complaint: What QEMU said on its stderr.
    """
    lines = log.splitlines()
    reasons = [line for line in lines if line.startswith(init.FAILURE) or _PANIC in line]
    why = complaint.strip().splitlines()[:1] or [_TIMESTAMP.sub("", line) for line in reasons[:1]]
    if not lines:
        return VmLost(what, *(why or ["its kernel said nothing"]))
    return VmLost(what, "".join(why), "its log ends:\n" + _indented(lines[-NR_LINES_SHOWN // 3 :]))


def _indented(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
