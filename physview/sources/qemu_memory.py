# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's physical memory as QEMU tells it: its ranges, and where they are in QEMU's process.

The functions that parse take text. The text is an answer of QEMU's monitor, or of whoever is in
its place.

Source: mtree_print_flatview() in softmmu/memory.c, monitor/hmp-cmds-target.c of QEMU
"""

from __future__ import annotations

import re
from typing import NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.sources.qmp import Qmp, shortened

MAX_RANGES = 1000
"""The most ranges of memory that are looked at. A PC has about ten."""

# " AS "memory", root: system" heads the view that the guest's processors have. The other views are
# those of devices and of I/O ports.
_SYSTEM_VIEW = ' AS "memory", root: system'
_RANGE = re.compile(
    r"  ([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?[0-9]{1,10}, ([a-z/-]{1,16})\): (.*?)"
    r"(?: @([0-9a-f]{16}))?(?: KVM)?"
)
_ADDRESS = re.compile(r" is (0x[0-9a-f]{1,16})$")
_MEMORY = frozenset(f"{volatile}{kind}" for volatile in ("", "nv-") for kind in ("ram", "rom"))
_MEMORY_TOO = frozenset(("romd", "ramd"))
"""romd: flash, which is read as memory. ramd: a device's memory, mapped into QEMU (VFIO)."""


class GuestRange(NamedTuple):
    """A range of guest-physical addresses.

    Args:
        start: First guest-physical address.
        end: First guest-physical address after the range.
        kind: QEMU's word for the kind of memory: "ram", "rom", "romd", "ramd", "i/o" and others.
        name: The name of QEMU's memory region, such as "pc.ram"; for RAM it is the RAM block's.
        offset: Offset of the range in the memory region.
    """

    start: int
    end: int
    kind: str
    name: str
    offset: int

    @property
    def is_memory(self) -> bool:
        """Whether the range is memory of QEMU's process, not registers of a device."""
        return self.kind in _MEMORY or self.kind in _MEMORY_TOO


def parse_mtree(text: str) -> list[GuestRange]:
    r"""Parse "info mtree -f": the ranges that the guest's processors see, in address order.

    Lines that are no ranges are left out, and so are ranges that overlap an earlier one.

    >>> text = 'FlatView #1\n AS "memory", root: system\n Root memory region: system\n'
    >>> text += "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\n"
    >>> text += "  00000000000c0000-00000000000cafff (prio 0, rom): pc.ram @00000000000c0000 KVM\n"
    >>> [(hex(each.end), each.kind, each.name, each.offset) for each in parse_mtree(text)]
    [('0xa0000', 'ram', 'pc.ram', 0), ('0xcb000', 'rom', 'pc.ram', 786432)]
    """
    # QEMU ends lines with "\r\n" in QMP. A name may contain what str.splitlines() splits at.
    found: list[GuestRange] = []
    is_wanted = False
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("FlatView #"):
            is_wanted = False
        elif line == _SYSTEM_VIEW:
            is_wanted = True
        elif is_wanted and (match := _RANGE.fullmatch(line)):
            start, last, kind, name, offset = match.groups()
            one = GuestRange(int(start, 16), int(last, 16) + 1, kind, name, int(offset or "0", 16))
            if one.start < one.end and (not found or found[-1].end <= one.start):
                found.append(one)
    return found


def read_ranges(qmp: Qmp) -> list[GuestRange]:
    """Read the ranges of guest-physical addresses, in address order.

    Raises:
        PhysviewError: QEMU does not tell them, or tells too many.
    """
    answer = qmp.monitor("info mtree -f")
    ranges = parse_mtree(answer)
    nr = sum(each.is_memory for each in ranges)
    if not nr:
        why = f"info mtree -f names no memory: '{shortened(answer)}'"
        raise Unsupported("QEMU does not tell the guest's memory", why)
    if nr > MAX_RANGES:
        why = f"info mtree -f names {nr} ranges, more than {MAX_RANGES}"
        raise PhysviewError("QEMU's answer is not believed", why)
    return ranges


def ask_hva(qmp: Qmp, gpa: int) -> int | None:
    """Ask where a guest-physical address is in QEMU's process (gpa2hva).

    Returns:
        The host virtual address; None if there is no memory at the guest-physical address.
    """
    return _address(qmp, f"gpa2hva {gpa:#x}")


def ask_hpa(qmp: Qmp, gpa: int) -> int | None:
    """Ask where a guest-physical address is in the host's memory (gpa2hpa).

    Returns:
        The host-physical address; None if the page is not resident. The frame number in it is 0
        if QEMU itself may not see frame numbers, because it does not run as root.
    """
    return _address(qmp, f"gpa2hpa {gpa:#x}")


def _address(qmp: Qmp, command: str) -> int | None:
    match = _ADDRESS.search(qmp.monitor(command).strip("\r\n"))
    return int(match[1], 16) if match else None
