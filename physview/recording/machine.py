# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the machine's counters, and what identifies the machine and the moment."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from typing import Any

from physview.recording.schema import MEMINFO, VMSTAT, Columns
from physview.sources.ram import boot_id
from physview.text import proctext
from physview.text.proctext import read_or_empty

# Chosen at random. With it, the hash of the machine's id is that of physview only.
APPLICATION_ID = bytes.fromhex("7d0d4d3f52b94c0c9f5fb0e7e5a8c416")
MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def counters_of(meminfo: bytes, vmstat: bytes) -> dict[str, int | None]:
    r"""Parse meminfo and vmstat: the values of a row, by column; None where a kernel has none.

    >>> row = counters_of(b"MemTotal:  4 kB\n", b"allocstall_a 1\nallocstall_b 2\npgfault 7\n")
    >>> row["total"], row["swap_free"], row["allocstall"], row["pgfault"], row["compact_stall"]
    (4096, None, 3, 7, None)
    """
    fields = proctext.fields_by_name(meminfo)
    row = {name: proctext.size_of(fields, field.encode()) for name, (field, _) in MEMINFO.items()}
    counts = _counts(vmstat)
    row.update({name: counts.get(name.encode()) for name in VMSTAT})
    # Since Linux 4.10 there is a counter for each zone.
    stalls = [nr for name, nr in counts.items() if name.startswith(b"allocstall")]
    row["allocstall"] = sum(stalls) if stalls else None
    return row


def _counts(vmstat: bytes) -> Mapping[bytes, int]:
    pairs = (line.partition(b" ") for line in proctext.lines(vmstat))
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def read_counters() -> Columns:
    """Read the columns of schema.MACHINE that are in schema.MEMINFO and schema.VMSTAT: one row.

    Source: /proc/meminfo, /proc/vmstat
    """
    row = counters_of(read_or_empty("/proc/meminfo"), read_or_empty("/proc/vmstat"))
    return {name: [value] for name, value in row.items()}


def hash_of_machine(machine_id: bytes) -> str:
    """Hash a machine id as sd_id128_get_machine_app_specific() of systemd does.

    Args:
        machine_id: The 16 bytes of the id.

    Source: machine-id(5), which forbids to publish the id itself
    """
    digest = bytearray(hmac.digest(machine_id, APPLICATION_ID, "sha256")[:16])
    digest[6] = digest[6] & 0x0F | 0x40  # as in a random UUID, version 4
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


@functools.cache
def machine() -> str:
    """The machine's hash. A machine without an id gets a hash of its host name.

    Source: /etc/machine-id
    """
    for path in MACHINE_IDS:
        text = proctext.value(read_or_empty(path)).decode("ascii", "replace")
        try:
            machine_id = bytes.fromhex(text)
        except ValueError:  # "uninitialized" during the first boot
            continue
        if len(machine_id) == 16:
            return hash_of_machine(machine_id)
    return hash_of_machine(hashlib.sha256(os.fsencode(os.uname().nodename)).digest()[:16])


@functools.cache
def _boot() -> tuple[str, str]:
    try:
        boot = boot_id()
    except OSError:  # /proc is mounted with subset=pid, which hides it
        boot = ""
    return boot, os.uname().release


def read_moment() -> dict[str, Any]:
    """Read the columns of schema.MOMENT as they are now.

    Returns:
        time (microseconds since 1970, UTC), machine, boot, kernel, and since_boot (seconds).

    Source: CLOCK_BOOTTIME, /proc/sys/kernel/random/boot_id, /etc/machine-id, uname()
    """
    boot, kernel = _boot()
    return {
        "time": time.time_ns() // 1000,
        "machine": machine(),
        "boot": boot,
        "kernel": kernel,
        "since_boot": time.clock_gettime(time.CLOCK_BOOTTIME),
    }
