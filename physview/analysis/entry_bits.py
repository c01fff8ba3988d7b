# SPDX-License-Identifier: GPL-2.0-or-later
"""The bits of page-table entries, with their names from the manuals and from Linux.

Source: arch/x86/include/asm/pgtable_types.h; Intel SDM volume 3A, 4.5;
    arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h; Arm ARM, D8.3
"""

from __future__ import annotations

import os

from physview.model import Level

P, RW, US, PWT, PCD, A, D, PS, G = range(9)

_COMMON = {P: "P", RW: "RW", US: "US", PWT: "PWT", PCD: "PCD", A: "A", 63: "NX"}
# Bits with a meaning only in an entry that maps a page. Bit 7 is PAT in a pte, and PS above it.
_LEAF = {D: "D", G: "G"}
# Bits that the hardware leaves to Linux.
_SOFTWARE = {9: "special", 10: "uffd_wp", 11: "soft_dirty", 58: "saved_dirty"}
_PKEY_SHIFT, _PKEY_MASK = 59, 0xF

# arm64: valid, and what an entry that leads to a table has.
_ARM64_COMMON = {0: "valid", 10: "AF"}
_ARM64_TABLE = {59: "PXNTable", 60: "UXNTable"}
_ARM64_LEAF = {
    6: "user",
    7: "rdonly",
    11: "nG",
    50: "GP",
    51: "DBM",
    52: "cont",
    53: "PXN",
    54: "UXN",
    55: "dirty",
    56: "special",
}

LINUX = "Linux's"
"""The meaning of a bit that the hardware leaves to Linux."""

MEANINGS = {
    "P": "present",
    "RW": "writable",
    "US": "user may access",
    "PWT": "write-through",
    "PCD": "not cached",
    "A": "accessed",
    "D": "written to",
    "PS": "a huge page",
    "PAT": "cache type",
    "G": "global",
    "NX": "not executable",
    "PROT_NONE": "faults",
    "pkey": "key",
    "special": LINUX,
    "uffd_wp": LINUX,
    "soft_dirty": LINUX,
    "saved_dirty": LINUX,
    "valid": "present",
    "AF": "accessed",
    "PXNTable": "below",
    "UXNTable": "below",
    "user": "user may access",
    "rdonly": "read-only",
    "nG": "not global",
    "GP": "guarded",
    "DBM": "writable",
    "cont": "contiguous",
    "PXN": "not for kernel",
    "UXN": "not for user",
    "dirty": LINUX,
}
"""What each bit means, in a word or two."""


def bit_names(level: Level, machine: str = "") -> list[str]:
    """Name the set bits of an entry, lowest first.

    The list is empty if the entry is hidden, or leads neither to a page nor to a table, or if the
    machine is not known.

    An entry without P can still map a page. Linux then sets bit 8: PROT_NONE, or a NUMA hint.

    Args:
        level: The entry, as a walk read it.
        machine: As in `uname -m`; by default this machine.

    >>> bit_names(Level("pte", 0x1000, 0x8000000115AB0867, 4096, False, True), "x86_64")
    ['P', 'RW', 'US', 'A', 'D', 'soft_dirty', 'NX']
    >>> bit_names(Level("pte", 0x1000, 0x115AB0000 | 0x160, 4096, False, True), "x86_64")
    ['A', 'D', 'PROT_NONE']
    >>> bit_names(Level("pte", 0x1000, 0x00E8000041A2AF43, 4096, False, True), "aarch64")
    ['valid', 'user', 'AF', 'nG', 'DBM', 'PXN', 'UXN', 'dirty']
    """
    entry = level.entry
    if entry is None or (not entry & 1 and not level.leaf):
        return []
    machine = machine or os.uname().machine
    if machine == "aarch64":
        return _arm64_names(entry, leaf=level.leaf)
    if machine != "x86_64":
        return []
    names = dict(_COMMON)
    if level.leaf:
        names |= _LEAF | _SOFTWARE
        names[PS] = "PAT" if level.name == "pte" else "PS"
        if not entry & 1:
            names[G] = "PROT_NONE"
    found = _set_bits(entry, names)
    pkey = entry >> _PKEY_SHIFT & _PKEY_MASK
    if level.leaf and pkey:
        found.append(f"pkey={pkey}")
    return found


def _arm64_names(entry: int, *, leaf: bool) -> list[str]:
    """Only of valid entries. In others the bits differ from kernel to kernel."""
    if not entry & 1:
        return []
    return _set_bits(entry, _ARM64_COMMON | (_ARM64_LEAF if leaf else _ARM64_TABLE))


def _set_bits(entry: int, names: dict[int, str]) -> list[str]:
    return [name for bit, name in sorted(names.items()) if entry >> bit & 1]


def meaning(name: str) -> str:
    """What a bit of `bit_names()` means.

    >>> meaning("NX"), meaning("pkey=3")
    ('not executable', 'key')
    """
    return MEANINGS.get(name.partition("=")[0], "")
