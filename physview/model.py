# SPDX-License-Identifier: GPL-2.0-or-later
"""The data types of physview: pagemap entries, mappings, translations, and causes of gaps.

This module reads nothing. Of the rest of the package, it imports only `entry_rules` and `quoting`.
"""

from __future__ import annotations

import os
from enum import Enum, IntEnum
from typing import NamedTuple

from physview import entry_rules
from physview.text.quoting import printable as printable  # noqa: PLC0414 - for importers

PAGE_SIZE: int = os.sysconf("SC_PAGESIZE")
"""Bytes in a base page: 4096 on x86, but also 16384 and 65536 on arm64."""

PAGE_SHIFT: int = PAGE_SIZE.bit_length() - 1

NO_ENTRY = NO_PADDR = (1 << 64) - 1
"""The value in a uint64 column where there is no entry, or no physical address."""

# One entry of /proc/PID/pagemap.
PM_PFRAME_MASK = entry_rules.PM_PFRAME_MASK
PM_SOFT_DIRTY = entry_rules.PM_SOFT_DIRTY
PM_MMAP_EXCLUSIVE = entry_rules.PM_MMAP_EXCLUSIVE
PM_GUARD_REGION = entry_rules.PM_GUARD_REGION
PM_FILE = entry_rules.PM_FILE
PM_SWAP = entry_rules.PM_SWAP
PM_PRESENT = entry_rules.PM_PRESENT

PM_FLAG_NAMES: dict[int, str] = {
    55: "soft_dirty",
    56: "mmap_exclusive",
    57: "uffd_wp",
    58: "guard_region",
    61: "file",
    62: "swap",
    63: "present",
}
"""The names of an entry's flag bits: the kernel's names (PM_SOFT_DIRTY ...) in lower case."""


class Cause(Enum):
    """Why a virtual address has no physical address.

    `text` describes the cause. `remedy` says what the user can do.
    """

    HIDDEN = (
        "hidden",
        "the page is present, but the kernel hides its frame number from this user",
        "run as root, with CAP_SYS_ADMIN in the first user namespace",
    )
    UNMAPPED = (
        "unmapped",
        "nothing is mapped at this address",
        "/proc/PID/maps lists all mappings",
    )
    ABSENT = (
        "absent",
        "mapped, but no page is there: never touched, given back, or shared memory swapped out",
        "let the process read or write it, then look again",
    )
    UNTOLD = (
        "untold",
        "the loaded course module gives no address: there is no page, or it is a huge page, which"
        " that module does not know",
        "load physview's own: physview module unload, then physview module load",
    )
    SWAPPED = (
        "swapped",
        "swapped out",
        "let the process touch it, which swaps it in, then look again",
    )
    SWAP_HIDDEN = (
        "swap_hidden",
        "a swap entry, whose kind the kernel hides from this user: swapped out, or a special entry",
        "run as root, with CAP_SYS_ADMIN in the first user namespace",
    )
    SPECIAL = (
        "special",
        "a special swap entry: a page in migration, device memory or a poisoned page",
        "look again: a migration is over in moments",
    )
    MARKER = (
        "marker",
        "not a page, but a marker of userfaultfd or of poison",
        "let the process touch it, then look again",
    )
    GUARD = (
        "guard",
        "a guard region, which kills a process that touches it",
        "a guard region never has a page; MADV_GUARD_REMOVE removes the guard",
    )
    DEVICE = (
        "device",
        "a device mapping (VM_PFNMAP), which pagemap never shows",
        "a walk of the page tables shows it: --source bpf, or --source kmod",
    )
    BEYOND = (
        "beyond",
        "beyond the process's user address space, and pagemap covers no other addresses",
        "give a user address",
    )

    text: str
    remedy: str

    def __new__(cls, slug: str, text: str, remedy: str) -> Cause:
        member = object.__new__(cls)
        member._value_ = slug
        member.text = text
        member.remedy = remedy
        return member


class PagemapEntry(NamedTuple):
    """One 64-bit entry of /proc/PID/pagemap.

    Args:
        raw: The entry as the kernel gave it.

    Source: fs/proc/task_mmu.c

    >>> entry = PagemapEntry(0xA18000000010F3C1)
    >>> entry.flags, hex(entry.pfn), entry.cause
    (('soft_dirty', 'mmap_exclusive', 'file', 'present'), '0x10f3c1', None)
    >>> PagemapEntry(0x440000000000009F).cause  # reads as "swap type 31, offset 4", but is not
    <Cause.GUARD: 'guard'>
    """

    raw: int

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the set flag bits, lowest first. An unknown bit is "bit_N"."""
        return tuple(
            PM_FLAG_NAMES.get(bit, f"bit_{bit}") for bit in range(55, 64) if self.raw >> bit & 1
        )

    @property
    def present(self) -> bool:
        """Whether the page is in memory. PROT_NONE pages are present too."""
        return bool(self.raw & PM_PRESENT)

    @property
    def pfn(self) -> int | None:
        """The page frame number; None if the page is not present, or if the number is hidden."""
        return (self.raw & PM_PFRAME_MASK or None) if self.present else None

    @property
    def swap(self) -> tuple[int, int] | None:
        """The swap entry's (type, offset); None if there is no swap entry, or if it is hidden."""
        # 0 means hidden: offset 0 of a swap area holds the area's header, and never a page.
        value = self.raw & PM_PFRAME_MASK
        if self.present or not self.raw & PM_SWAP or not value:
            return None
        return entry_rules.swap_type(value), entry_rules.swap_offset(value)

    @property
    def cause(self) -> Cause | None:
        """Why there is no frame number, as far as the entry tells; None if there is one."""
        if self.present:
            return None if self.pfn else Cause.HIDDEN
        if self.raw & PM_GUARD_REGION:  # checked before PM_SWAP, because guards have both bits
            return Cause.GUARD
        if not self.raw & PM_SWAP:
            return Cause.ABSENT
        if self.swap is None:
            return Cause.SWAP_HIDDEN
        type_, offset = self.swap
        if type_ == entry_rules.PTE_MARKER_SWAP_TYPE and offset <= entry_rules.PTE_MARKER_MAX:
            # Linux 6.13 and 6.14 have guards, but not PM_GUARD_REGION.
            return Cause.GUARD if offset & entry_rules.PTE_MARKER_GUARD else Cause.MARKER
        return Cause.SWAPPED if entry_rules.is_in_area(self.raw) else Cause.SPECIAL


class Vma(NamedTuple):
    """One mapping: a line of /proc/PID/maps.

    Args:
        start: First address.
        end: First address after the mapping.
        perms: "rwxp", with "-" for a missing permission, and "s" instead of "p" if shared.
        offset: Byte offset in the file.
        device: "major:minor" of the file system.
        inode: Inode number; 0 without a file.
        path: Path of the file, or a name such as "[heap]"; may be empty.
    """

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    def __contains__(self, vaddr: object) -> bool:
        return isinstance(vaddr, int) and self.start <= vaddr < self.end

    def __str__(self) -> str:
        return f"{self.perms} {printable(self.path) or '[anonymous]'}"


class Translation(NamedTuple):
    """Where a virtual address is: a physical address, or the cause why there is none.

    Args:
        vaddr: Virtual address.
        paddr: Physical address, or None.
        cause: Why `paddr` is None, or None.
        entry: The page's pagemap entry; None beyond the user address space.
        vma: The mapping of the address. It is known if the caller asked for it, or if it was needed
            to find the cause; else None.
    """

    vaddr: int
    paddr: int | None
    cause: Cause | None
    entry: PagemapEntry | None = None
    vma: Vma | None = None

    @property
    def pfn(self) -> int | None:
        """Page frame number, or None."""
        return None if self.paddr is None else self.paddr >> PAGE_SHIFT

    @property
    def explanation(self) -> str:
        """The cause in words, with the swap entry's type and offset; "" without a cause."""
        if self.cause is None:
            return ""
        swap = self.entry.swap if self.entry else None
        if swap is None or self.cause is Cause.GUARD:
            return self.cause.text
        return f"{self.cause.text} (type {swap[0]}, offset {swap[1]:#x})"


class Gap(NamedTuple):
    """Contiguous pages that have no physical address, all for the same cause.

    Args:
        start: First address, page-aligned.
        end: First address after the pages, page-aligned.
        cause: Why the pages have no physical address.
        vma: The pages' mapping; None if nothing is mapped.
    """

    start: int
    end: int
    cause: Cause
    vma: Vma | None

    @property
    def nr_pages(self) -> int:
        """Number of base pages."""
        return (self.end - self.start) // PAGE_SIZE


class Probe(NamedTuple):
    """One of the addresses that memview reports.

    Args:
        label: Name of the address in the report, such as "argv[0]" or "buf[07]".
        vaddr: Virtual address.
    """

    label: str
    vaddr: int


class PageKind(IntEnum):
    """What an entry of the page tables says of a page. Source: csrc/kmod/uapi/physicalview.h"""

    NONE = 0
    PRESENT = 1
    PROT_NONE = 2
    SWAP = 3
    MIGRATION = 4
    HWPOISON = 5
    DEVICE = 6
    MARKER = 7
    BEYOND = 8
    BAD = 9
    UNSTABLE = 10  # it changed during each of several walks

    @property
    def has_page(self) -> bool:
        """Whether the entry has a frame, and so a physical address."""
        return self in (PageKind.PRESENT, PageKind.PROT_NONE)


class FrameRange(NamedTuple):
    """Frames that the user asks about, with contiguous frame numbers.

    Args:
        first: The first frame number.
        end: The first frame number after the range.
        offset: Offset in the page, in bytes, if the user gave an address; else 0.
    """

    first: int
    end: int
    offset: int


class Level(NamedTuple):
    """The entry that a walk read at one level of the page tables.

    Args:
        name: "pgd", "p4d", "pud", "pmd" or "pte".
        address: Physical address of the entry; None if the level is folded, or if it is hidden.
        entry: The entry as it is in memory; None if it is hidden.
        span_bytes: Size of the address space that the entry maps.
        folded: Whether the kernel does not use this level. The entry is then the upper level's.
        leaf: Whether the entry maps a page, so that the walk ends here.

    The module hides addresses and entries of page tables from users without CAP_SYS_ADMIN.
    """

    name: str
    address: int | None
    entry: int | None
    span_bytes: int
    folded: bool
    leaf: bool


class Walk(NamedTuple):
    """A walk of the page tables for one virtual address.

    Args:
        vaddr: Virtual address.
        paddr: Physical address, or None.
        kind: What the last entry says about the page.
        page_size_bytes: Size of the page; without a page, the size that the last entry maps.
        swap: A swap entry's (type, offset), or None.
        levels: The entries that were read, from the root down.
    """

    vaddr: int
    paddr: int | None
    kind: PageKind
    page_size_bytes: int
    swap: tuple[int, int] | None
    levels: list[Level]
