# SPDX-License-Identifier: GPL-2.0-or-later
"""The bits of x86-64 page-table entries, with their names from the manuals.

Source: arch/x86/include/asm/pgtable_types.h; Intel SDM volume 3A, 4.5
"""

from __future__ import annotations

from physview.model import Level

P, RW, US, PWT, PCD, A, D, PS, G = range(9)

_COMMON = {P: "P", RW: "RW", US: "US", PWT: "PWT", PCD: "PCD", A: "A", 63: "NX"}
# Bits with a meaning only in an entry that maps a page. Bit 7 is PAT in a pte, and PS above it.
_LEAF = {D: "D", G: "G"}
# Bits that the hardware leaves to Linux.
_SOFTWARE = {9: "special", 10: "uffd_wp", 11: "soft_dirty", 58: "saved_dirty"}
_PKEY_SHIFT, _PKEY_MASK = 59, 0xF


def bit_names(level: Level) -> list[str]:
    """Name the set bits of an entry, lowest first.

    The list is empty if the entry is hidden, or leads neither to a page nor to a table.

    An entry without P can still map a page. Linux then sets bit 8: PROT_NONE, or a NUMA hint.

    >>> bit_names(Level("pte", 0x1000, 0x8000000115AB0867, 4096, False, True))
    ['P', 'RW', 'US', 'A', 'D', 'soft_dirty', 'NX']
    >>> bit_names(Level("pte", 0x1000, 0x115AB0000 | 0x160, 4096, False, True))
    ['A', 'D', 'PROT_NONE']
    """
    entry = level.entry
    if entry is None or (not entry & 1 and not level.leaf):
        return []
    names = dict(_COMMON)
    if level.leaf:
        names |= _LEAF | _SOFTWARE
        names[PS] = "PAT" if level.name == "pte" else "PS"
        if not entry & 1:
            names[G] = "PROT_NONE"
    found = [name for bit, name in sorted(names.items()) if entry >> bit & 1]
    pkey = entry >> _PKEY_SHIFT & _PKEY_MASK
    if level.leaf and pkey:
        found.append(f"pkey={pkey}")
    return found
