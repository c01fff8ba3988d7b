# SPDX-License-Identifier: GPL-2.0-or-later
"""What this process may do, and what forbids it the rest: capabilities, user namespaces, seccomp
filters and the kernel's lockdown."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from physview.text import proctext
from physview.text.proctext import read_or_empty

CAP_SYS_ADMIN = 21
"""A bit of a capability mask. Source: include/uapi/linux/capability.h"""
_BITS = {"SYS_MODULE": 16, "SYS_PTRACE": 19, "SYS_ADMIN": CAP_SYS_ADMIN}

RUN_AS_ROOT = "run as root"
LOCKDOWN = "/sys/kernel/security/lockdown"
SIGNED_ONLY = "it loads only modules that are signed with a key that it trusts"


class Forbidden(NamedTuple):
    """Why something is forbidden, and what to do about it: `why` and `remedy` of an error."""

    why: str
    remedy: str


def effective_capabilities() -> int | None:
    """Return the effective capabilities as a bit mask; None if /proc/self/status cannot be read."""
    text = _status().get(b"CapEff")
    return int(text, 16) if text else None


def in_first_user_namespace() -> bool:
    """Whether the capabilities are those of the machine, and not of a user namespace below it."""
    return proctext.numbers(read_or_empty("/proc/self/uid_map")) in ([0, 0, 4294967295], [])


def has_seccomp_filter() -> bool:
    """Whether a seccomp filter decides which system calls this process may make."""
    return _status().get(b"Seccomp") == b"2"


def lockdown() -> str:
    """Return the level of the kernel's lockdown; "" if lockdown is off."""
    match = re.search(rb"\[(\w+)\]", read_or_empty(LOCKDOWN))
    return match[1].decode() if match and match[1] != b"none" else ""


def why_signed_modules() -> str:
    """Why the kernel loads only signed modules; "" if it is not locked down."""
    level = lockdown()
    return level and f"the kernel is locked down ({level}), as with Secure Boot: {SIGNED_ONLY}"


def root_remedy(*names: str) -> str:
    """What to do if the kernel refuses something that needs capabilities.

    For root "run as root" would be no help: root of a container has few capabilities.

    Args:
        names: The capabilities without "CAP_": SYS_ADMIN, SYS_PTRACE or SYS_MODULE.
    """
    if os.geteuid() != 0:
        return RUN_AS_ROOT
    has = effective_capabilities() or 0
    lacking = [name for name in names if not has >> _BITS[name] & 1]
    name = [*lacking, *names][0]
    if lacking:
        return (
            f"root lacks CAP_{name} here, as in a container: give root that capability (docker run"
            f" --cap-add {name}), or run physview outside of the container"
        )
    if not in_first_user_namespace():
        return (
            f"root has CAP_{name} in a user namespace only, as in a container: run physview as root"
            " outside of it"
        )
    return f"root has CAP_{name}, so a security module such as SELinux may forbid it"


def why_no_bpf() -> Forbidden | None:
    """Why no BPF program may walk page tables here; None if nothing forbids it.

    CAP_BPF and CAP_PERFMON would be enough to load the program. But physview finds the kernel's
    map of RAM by frame numbers in pagemap, which only CAP_SYS_ADMIN shows.
    """
    has = effective_capabilities()
    if has is not None and not has >> CAP_SYS_ADMIN & 1:
        why = "this needs CAP_SYS_ADMIN, to load a BPF program and to see frame numbers"
        return Forbidden(why, root_remedy("SYS_ADMIN"))
    if not in_first_user_namespace():
        why = "this is a user namespace, whose root may not read the kernel's memory"
        return Forbidden(why, "run as root outside of it: most containers have such a namespace")
    if lockdown() == "confidentiality":
        why = "the kernel is locked down (confidentiality), so no program may read its memory"
        return Forbidden(why, "boot without lockdown")
    if has_seccomp_filter():
        why = "a seccomp filter forbids bpf(), as in most containers"
        return Forbidden(why, "docker run --security-opt seccomp=unconfined allows it")
    return None


def _status() -> dict[bytes, bytes]:
    return proctext.fields_by_name(read_or_empty("/proc/self/status"))
