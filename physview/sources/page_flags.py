# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of frames in /proc/kpageflags: their names, and filters that choose frames by flags.

Source: include/uapi/linux/kernel-page-flags.h, tools/mm/page-types.c
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from physview.errors import UsageError
from physview.model import NO_ENTRY

# Bits 0 to 27 are ABI. Bits from 32 on are internal to the kernel and differ between versions.
FLAG_NAMES: dict[int, str] = {
    0: "locked",
    1: "error",
    2: "referenced",
    3: "uptodate",
    4: "dirty",
    5: "lru",
    6: "active",
    7: "slab",
    8: "writeback",
    9: "reclaim",
    10: "buddy",
    11: "mmap",
    12: "anon",
    13: "swapcache",
    14: "swapbacked",
    15: "compound_head",
    16: "compound_tail",
    17: "huge",
    18: "unevictable",
    19: "hwpoison",
    20: "nopage",
    21: "ksm",
    22: "thp",
    23: "offline",
    24: "zero_page",
    25: "idle",
    26: "pgtable",
    32: "reserved",
    33: "mlocked",
    35: "private",
    36: "private_2",
    37: "owner_private",
    38: "arch",
    39: "uncached",
    40: "softdirty",
    41: "arch_2",
}
"""Names of the flags in /proc/kpageflags by bit, in lower case. Any other bit N is "bit_N"."""

FLAG_BITS = {name: bit for bit, name in FLAG_NAMES.items()}

# Flags that page-types shows only with --raw: bits that are not ABI, and the compound flags.
INTERNAL = 0xFFFF << 32
COMPOUND = 1 << FLAG_BITS["compound_head"] | 1 << FLAG_BITS["compound_tail"]
HUGE = 1 << FLAG_BITS["huge"]


def flag_names(value: int) -> list[str]:
    """Names of the flags that are set, lowest bit first; ["no_frame"] for NO_ENTRY.

    >>> flag_names(1 << 5 | 1 << 12 | 1 << 50)
    ['lru', 'anon', 'bit_50']
    """
    if value == NO_ENTRY:
        return ["no_frame"]
    bits = (bit for bit in range(64) if value >> bit & 1)
    return [FLAG_NAMES.get(bit, f"bit_{bit}") for bit in bits]


def well_known(value: int) -> int:
    """Clear the flags that page-types does not show by default.

    Args:
        value: A value of kpageflags.

    >>> well_known(1 << 22 | 1 << 16 | 1 << 33) == 1 << 22
    True
    """
    return value & ~INTERNAL & ~(0 if value & HUGE else COMPOUND)


def well_known_array(values: Any) -> Any:
    """Apply `well_known()` to an array.

    Args:
        values: uint64 array, shape (n,): values of kpageflags.

    Returns:
        uint64 array, shape (n,).
    """
    import numpy as np

    hidden = np.where(values & np.uint64(HUGE), INTERNAL, INTERNAL | COMPOUND).astype(np.uint64)
    return values & ~hidden


class FlagFilter(NamedTuple):
    """Chooses frames by flags that must be set and flags that must be clear.

    Args:
        required: Bits that must be set.
        forbidden: Bits that must be clear.
    """

    required: int
    forbidden: int

    @classmethod
    def parse(cls, text: str) -> FlagFilter:
        """Parse names of flags, separated by commas; "!" or "~" before a name forbids the flag.

        Raises:
            UsageError: A flag is unknown, or is both required and forbidden.

        >>> FlagFilter.parse("anon,!thp,bit_50") == FlagFilter(1 << 12 | 1 << 50, 1 << 22)
        True
        """
        masks = {True: 0, False: 0}
        for word in text.split(","):
            name = word.strip().lower()
            negated = name.startswith(("!", "~"))
            masks[negated] |= 1 << _bit(name.lstrip("!~") if negated else name)
        if masks[True] & masks[False]:
            raise UsageError(f"'{text}' chooses nothing", "a flag is asked for and forbidden")
        return cls(required=masks[False], forbidden=masks[True])

    @property
    def names_internal(self) -> bool:
        """Whether the filter names a flag that `well_known()` hides."""
        return bool((self.required | self.forbidden) & (INTERNAL | COMPOUND))

    def matches(self, value: Any) -> Any:
        """Whether the filter chooses frames with these flags.

        Args:
            value: A value of kpageflags: an int, or a uint64 array of shape (n,).

        Returns:
            A bool for an int; a bool array of shape (n,) for an array.
        """
        if isinstance(value, int):
            return value & (self.required | self.forbidden) == self.required
        import numpy as np

        return value & np.uint64(self.required | self.forbidden) == np.uint64(self.required)


def _bit(name: str) -> int:
    if name in FLAG_BITS:
        return FLAG_BITS[name]
    match = re.fullmatch("bit_([0-9]{1,2})", name)
    if match and int(match[1]) < 64:
        return int(match[1])
    known = ", ".join(FLAG_NAMES.values())
    raise UsageError(f"no flag '{name}'", "", f"choose one of {known}, bit_N")
