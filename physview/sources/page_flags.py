# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of pages and frames: their names, and filters that choose pages by flags.

A value of /proc/kpageflags has the flags of a frame. `expanded()` adds the flags of the page, which
are bits of its pagemap entry. It also tells the meanings of a bit apart that has several. The bits
that it sets are those of the kernel's tool page-types.

Source: include/uapi/linux/kernel-page-flags.h, tools/mm/page-types.c
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from physview.entry_rules import (
    PM_FILE,
    PM_GUARD_REGION,
    PM_MMAP_EXCLUSIVE,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_UFFD_WP,
)
from physview.errors import UsageError
from physview.model import NO_ENTRY
from physview.text.nearest import offer

# Bits 0 to 27 are ABI. Bits from 32 on are internal to the kernel and differ between versions.
# Bits from 47 on, and bit 40, are no bits of kpageflags: `expanded()` sets them.
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
    40: "soft_dirty",
    41: "arch_2",
    42: "arch_3",
    47: "anon_exclusive",
    48: "readahead",
    50: "slub_frozen",
    51: "slub_debug",
    57: "uffd_wp",
    58: "guard",
    61: "file",
    62: "swap",
    63: "mmap_exclusive",
}
"""Names of the flags by bit, in lower case. Any other bit N is "bit_N"."""

FLAG_BITS = {name: bit for bit, name in FLAG_NAMES.items()}

ALIASES = {
    "anonymous": "anon",
    "idle_page": "idle",
    "softdirty": "soft_dirty",
    "exclusive": "mmap_exclusive",
    "guard_region": "guard",
    "owner_2": "bit_34",
    "mappedtodisk": "bit_34",
}
"""Other names of flags that a filter may have: those of page-types and of pagemap.rst."""

PAGEMAP_FLAGS = {
    PM_SOFT_DIRTY: "soft_dirty",
    PM_UFFD_WP: "uffd_wp",
    PM_GUARD_REGION: "guard",
    PM_FILE: "file",
    PM_SWAP: "swap",
    PM_MMAP_EXCLUSIVE: "mmap_exclusive",
}
"""The flags that come from a pagemap entry, by the entry's bit."""

# Flags that page-types shows only with --raw: bits that are not ABI, and the compound flags.
INTERNAL = 0xFFFF << 32
COMPOUND = 1 << FLAG_BITS["compound_head"] | 1 << FLAG_BITS["compound_tail"]
HUGE = 1 << FLAG_BITS["huge"]
IDLE = 1 << FLAG_BITS["idle"]
SOFT_DIRTY = 1 << FLAG_BITS["soft_dirty"]
FROM_PAGEMAP = sum(1 << FLAG_BITS[name] for name in PAGEMAP_FLAGS.values())
# All flags that are not shown by default.
HIDDEN = INTERNAL | COMPOUND | IDLE | 0xFFFF << 48

# Bits of kpageflags that have another meaning beside some flags: the flags that must be set and
# those that must be clear, the bit, and the bit of the other meaning.
_OVERLOADED = [
    (("anon",), (), "bit_34", "anon_exclusive"),
    (("slab",), (), "active", "slub_frozen"),
    (("slab",), (), "error", "slub_debug"),
    ((), ("writeback",), "reclaim", "readahead"),
]


def flag_names(value: int) -> list[str]:
    """Names of the flags that are set, lowest bit first; ["no_frame"] for NO_ENTRY.

    >>> flag_names(1 << 5 | 1 << 12 | 1 << 55)
    ['lru', 'anon', 'bit_55']
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


def shown_flags(value: int) -> int:
    """Clear the flags that are not shown by default: also idle, which is usually out of date."""
    return well_known(value) & ~IDLE


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


def expanded(flags: Any, entry: Any = 0) -> Any:
    """Add the flags of a page to those of its frame, as page-types does with its option --raw.

    anon_exclusive, readahead, slub_frozen and slub_debug are other meanings of the kernel's bits
    owner_2, reclaim, active and error. A guard has the bit of a swap entry, but is none.

    Args:
        flags: A value of kpageflags, NO_ENTRY or 0 if there is no frame; an int or a uint64 array.
        entry: The pagemap entry, of the same shape; 0 if only the frame is known.

    Returns:
        A value of the same shape, whose bits FLAG_NAMES names. It is 0 without flags.

    >>> flag_names(expanded(1 << 12 | 1 << 34, 1 << 55))
    ['anon', 'soft_dirty', 'anon_exclusive']
    """
    if isinstance(flags, int):
        value = 0 if flags == NO_ENTRY else flags
        for present, absent, bit, other in _OVERLOADED_BITS:
            if value & (present | absent | bit) == present | bit:
                value ^= bit | other
        if entry & PM_GUARD_REGION:
            entry &= ~PM_SWAP
        for bit, name in PAGEMAP_FLAGS.items():
            if entry & bit:
                value |= 1 << FLAG_BITS[name]
        return value
    import numpy as np

    number = np.uint64
    values = np.where(flags == number(NO_ENTRY), number(0), flags)
    for present, absent, bit, other in _OVERLOADED_BITS:
        chosen = values & number(present | absent | bit) == number(present | bit)
        values = np.where(chosen, values ^ number(bit | other), values)
    entries = np.where(entry & number(PM_GUARD_REGION), entry & ~number(PM_SWAP), entry)
    for bit, name in PAGEMAP_FLAGS.items():
        chosen = entries & number(bit) != 0
        values = np.where(chosen, values | number(1 << FLAG_BITS[name]), values)
    return values


class FlagFilter(NamedTuple):
    """Chooses pages by flags. All conditions must hold.

    Args:
        required: Bits that must be set.
        forbidden: Bits that must be clear.
        any_of: In each of these numbers, at least one bit must be set.
        exact: The value must be equal to this; None allows any value.
    """

    required: int
    forbidden: int
    any_of: tuple[int, ...] = ()
    exact: int | None = None

    @classmethod
    def parse(cls, *texts: str) -> FlagFilter:
        """Parse conditions; a page must fulfil all of them.

        Args:
            texts: "a,b": both flags. "!a" or "~a": without the flag. "a|b": at least one of them.
                "=a,b": these and no others. "a,b=a": of a and b exactly a. A flag is a name of
                FLAG_NAMES or ALIASES, bit_N, or a number 0x… with the bits of several flags.

        Raises:
            UsageError: A flag is unknown, or no page can fulfil the conditions.

        >>> FlagFilter.parse("anon,!thp,bit_55") == FlagFilter(1 << 12 | 1 << 55, 1 << 22)
        True
        >>> FlagFilter.parse("lru|slab", "dirty,anon=dirty").any_of == (1 << 5 | 1 << 7,)
        True
        """
        required = forbidden = 0
        any_of: list[int] = []
        exact = None
        for text in texts:
            mask, equals, bits = text.partition("=")
            if equals and not mask.strip():
                is_new = exact is None
                exact, before = _bits_of(bits, may_be_empty=True), exact
                if not is_new and exact != before:
                    raise _chooses_nothing(texts, "the flags are to be two different sets")
            elif equals:
                among, wanted = _bits_of(mask), _bits_of(bits, may_be_empty=True)
                required |= wanted
                forbidden |= among & ~wanted
                if wanted & ~among:
                    raise _chooses_nothing(texts, "a flag after = is not before it")
            else:
                for word in map(str.strip, text.split(",")):
                    if "|" in word:
                        any_of.append(_bits_of(word, "|"))
                    elif word.startswith(("!", "~")):
                        forbidden |= _bits_of(word.lstrip("!~"))
                    else:
                        required |= _bits_of(word)
        found = cls(required, forbidden, tuple(any_of), exact)
        found._check(texts)
        return found

    def _check(self, texts: tuple[str, ...]) -> None:
        if self.required & self.forbidden or any(
            not bits & ~self.forbidden for bits in self.any_of
        ):
            raise _chooses_nothing(texts, "a flag is asked for and forbidden")
        if self.exact is not None and not self.matches(self.exact):
            raise _chooses_nothing(texts, "one condition excludes another")

    @property
    def named(self) -> int:
        """The bits of all flags that the filter names."""
        bits = self.required | self.forbidden | (self.exact or 0)
        for each in self.any_of:
            bits |= each
        return bits

    @property
    def names_hidden(self) -> bool:
        """Whether the filter names a flag that is not shown by default."""
        return bool(self.named & HIDDEN)

    @property
    def names_pagemap(self) -> bool:
        """Whether the filter names a flag of pagemap. Then it can choose pages without a frame."""
        return bool(self.named & FROM_PAGEMAP)

    @property
    def needs_frames(self) -> bool:
        """Whether the filter depends on flags of frames, which only root may read."""
        return bool(self.named & ~FROM_PAGEMAP) or self.exact is not None

    def tests(self) -> list[tuple[int, int]]:
        """The conditions for the core: pairs of mask and bits; NO_ENTRY means any of the mask."""
        found = [(self.required | self.forbidden, self.required)]
        found += [(bits, NO_ENTRY) for bits in self.any_of]
        if self.exact is not None:
            found.append((NO_ENTRY, self.exact))
        return found

    def matches(self, value: Any) -> Any:
        """Whether the filter chooses pages with these flags.

        Args:
            value: A value of kpageflags or of `expanded()`: an int, or a uint64 array, shape (n,).

        Returns:
            A bool for an int; a bool array of shape (n,) for an array.
        """
        if isinstance(value, int):
            return all(
                bool(value & mask) if bits == NO_ENTRY else value & mask == bits
                for mask, bits in self.tests()
            )
        import numpy as np

        chosen: Any = True
        for mask, bits in self.tests():
            found = value & np.uint64(mask)
            chosen = chosen & (found != 0 if bits == NO_ENTRY else found == np.uint64(bits))
        return chosen


def _bits_of(text: str, separator: str = ",", *, may_be_empty: bool = False) -> int:
    bits = 0
    for word in text.split(separator) if text.strip() or not may_be_empty else ():
        name = word.strip().lower()
        if re.fullmatch("0x[0-9a-f]{1,16}", name):
            bits |= int(name, 16)
        else:
            bits |= 1 << _bit(ALIASES.get(name, name))
    return bits


def _chooses_nothing(texts: tuple[str, ...], why: str) -> UsageError:
    return UsageError(f"'{' and '.join(texts)}' chooses nothing", why)


def _bit(name: str) -> int:
    if name in FLAG_BITS:
        return FLAG_BITS[name]
    match = re.fullmatch("bit_([0-9]{1,2})", name)
    if match and int(match[1]) < 64:
        return int(match[1])
    raise UsageError(f"no flag '{name}'", "", offer(name, [*FLAG_NAMES.values(), "bit_N"]))


def _mask(names: tuple[str, ...]) -> int:
    return sum(1 << _bit(name) for name in names)


_OVERLOADED_BITS = [
    (_mask(present), _mask(absent), _mask((bit,)), _mask((other,)))
    for present, absent, bit, other in _OVERLOADED
]
