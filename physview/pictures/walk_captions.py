# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a drawn walk: its title, a sentence for each step, and why a walk ends early."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from physview.analysis.entry_bits import LINUX, bit_names, meaning
from physview.analysis.walked_addresses import WalkedAddress, WalkedAddresses, WalkedLevel
from physview.model import Cause, PageKind, printable
from physview.runtime.privileges import root_remedy
from physview.sources.table_geometry import ENTRY_BYTES, EntryUse, Geometry
from physview.units import size_words

LONG_NAMES = {
    "pgd": "page global directory",
    "p4d": "page 4th-level directory",
    "pud": "page upper directory",
    "pmd": "page middle directory",
    "pte": "page table entries",
}
USE_WORDS = {
    EntryUse.EMPTY: "empty",
    EntryUse.TABLE: "a table",
    EntryUse.PAGE: "a page",
    EntryUse.SWAP: "swapped",
    EntryUse.SPECIAL: "special",
}
_SOURCES = {"bpf": "read by a BPF program", "kmod": "read by the kernel module"}
_REGISTERS = {"x86_64": "CR3", "aarch64": "TTBR0"}
_ODD_KINDS = {
    PageKind.BAD: ("the entry is not valid", "see the kernel's log"),
    PageKind.UNSTABLE: ("the tables changed during each of several walks", "look again"),
    PageKind.MIGRATION: ("the page is in migration to another frame", "look again"),
    PageKind.HWPOISON: ("the frame is broken (hardware poison)", "the data is lost"),
    PageKind.DEVICE: ("the page is in a device's own memory", "let the process touch it"),
}


class WalkCaptions(NamedTuple):
    """The words of a walk.

    Args:
        title: The address, and where it leads.
        place: What the address is: its label and its mapping.
        origin: The process, and who read its tables when.
        steps: A sentence or more for each step, from the address to the frame.
        end: Why there is no page, and what to do; ("", "") if there is one.
        hidden: Why entries are not shown, with the remedy; or "".
    """

    title: str
    place: str
    origin: str
    steps: tuple[str, ...]
    end: tuple[str, str]
    hidden: str


def describe_walk(walks: WalkedAddresses, at: WalkedAddress) -> WalkCaptions:
    """Make the words of one of the walks."""
    walk, geometry = at.walk, walks.geometry
    end = _end(at)
    where = "no physical address" if walk.paddr is None else f"{walk.paddr:#018x}"
    moment = datetime.fromtimestamp(walks.taken_at).astimezone()
    origin = (
        f"{printable(walks.name)}, process {walks.pid}  ·  {_SOURCES[walks.source]}"
        f"  ·  {len(geometry.levels)} levels of page tables  ·  {walks.machine}"
        f"  ·  Linux {walks.kernel}  ·  {moment:%Y-%m-%d %H:%M:%S}"
    )
    levels = [_level_step(walks, at, depth) for depth in range(len(at.levels))]
    last = (
        _frame_step(walks, at)
        if walk.paddr is not None
        else f"The walk ends here: {end[0]}; {end[1]}."
    )
    hidden = ""
    if any(level.is_hidden for level in at.levels):
        hidden = f"hidden: addresses and entries of the page tables; {root_remedy('SYS_ADMIN')}"
    return WalkCaptions(
        f"{walk.vaddr:#018x}  ->  {where}",
        _place(at),
        origin,
        (_address_step(walks, walk.vaddr), *levels, last),
        end,
        hidden,
    )


def register(machine: str) -> str:
    """The register in which the processor has the physical address of the root table."""
    return _REGISTERS.get(machine, "the root register")


def bit_range(high: int, low: int) -> str:
    """A range of bits, both ends included.

    >>> bit_range(47, 39), bit_range(39, 39)
    ('bits 47-39', 'bit 39')
    """
    return f"bit {low}" if high == low else f"bits {high}-{low}"


def upper_words(geometry: Geometry) -> str:
    """What the bits above the indices must be."""
    has_kernel_half = geometry.levels[0].nr_user < geometry.levels[0].nr_entries
    return f"copies of bit {geometry.address_bits - 1}" if has_kernel_half else "zero: user space"


def use_words(level: WalkedLevel) -> str:
    """What the entry that the walk took is for."""
    if level.read.leaf:
        return f"{size_words(level.read.span_bytes)} page"
    if level.table:
        return USE_WORDS[level.table.uses[level.taken]]
    return "hidden" if level.is_hidden else "changing"


def why_no_table(level: WalkedLevel) -> str:
    """Why the other entries of a table are not shown; "" if they are."""
    if level.table:
        return ""
    return "hidden from this user" if level.is_hidden else "not shown: it changed while it was read"


def _place(at: WalkedAddress) -> str:
    mapping = (
        f"{at.vma.perms} {printable(at.vma.path) or '[anonymous]'}" if at.vma else "no mapping"
    )
    return f"{printable(at.label)}  ·  {mapping}" if at.label else mapping


def _end(at: WalkedAddress) -> tuple[str, str]:
    if at.walk.paddr is not None:
        return "", ""
    if at.walk.kind in _ODD_KINDS:
        return _ODD_KINDS[at.walk.kind]
    cause = at.cause or Cause.SPECIAL
    if cause is Cause.ABSENT:
        why = "the entry is empty: a mapping is here, but it has no page yet, or no more"
        return why, cause.remedy
    if cause is Cause.UNMAPPED:
        return f"the entry is empty: {cause.text}", cause.remedy
    if at.walk.swap and cause is Cause.SWAPPED:
        type_, offset = at.walk.swap
        return f"{cause.text} (type {type_}, offset {offset:#x})", cause.remedy
    return cause.text, cause.remedy


def _address_step(walks: WalkedAddresses, vaddr: int) -> str:
    geometry = walks.geometry
    sizes = [level.index_bits for level in geometry.levels]
    alike = f"{len(sizes)} indices of {sizes[0]} bits"
    indices = alike if len(set(sizes)) == 1 else f"indices of {', '.join(map(str, sizes))} bits"
    words = (
        f"The address {vaddr:#x} is cut into {indices}, one for each level of page tables, and an"
        f" offset of {geometry.page_shift} bits."
    )
    if geometry.address_bits < 64:
        words += f" The {64 - geometry.address_bits} bits above are {upper_words(geometry)}."
    if geometry.folded:
        is_one = len(geometry.folded) == 1
        words += f" {' and '.join(geometry.folded)} {'is' if is_one else 'are'} folded:"
        words += f" this kernel uses {len(sizes)} levels."
    return words


def _level_step(walks: WalkedAddresses, at: WalkedAddress, depth: int) -> str:
    level = at.levels[depth]
    high = level.level.shift + level.level.index_bits - 1
    chooses = (
        f"{bit_range(high, level.level.shift).capitalize()} are {level.taken}: they choose entry"
        f" {level.taken} of {level.level.nr_entries} in the {level.level.name}."
    )
    if level.is_hidden or level.read.address is None or level.read.entry is None:
        return f"{chooses} Its value and its address are hidden from this user."
    where = "" if depth else f"{register(walks.machine)} says where the root table, the pgd, is. "
    value = (
        f" The entry is at {level.table_paddr:#x} + {level.taken} * {ENTRY_BYTES} ="
        f" {level.read.address:#x}. Its value {level.read.entry:#x}"
    )
    return f"{where}{chooses}{value} {_leads(at, depth, walks.machine)}"


def _leads(at: WalkedAddress, depth: int, machine: str) -> str:
    """Where an entry leads, as the end of a sentence."""
    if depth + 1 < len(at.levels):
        below = at.levels[depth + 1]
        return f"leads to the {below.level.name} table at {below.table_paddr or 0:#x}."
    if at.walk.paddr is None:
        return f"leads to no page: {_end(at)[0]}."
    size = at.walk.page_size_bytes
    names = bit_names(at.levels[depth].read, machine)
    words = f"maps a page of {size_words(size)} at {at.walk.paddr & -size:#x}"
    of_hardware = [each for each in map(meaning, names) if each != LINUX]
    meanings = ", ".join(of_hardware)
    if at.walk.kind is PageKind.PROT_NONE:
        words += ", which faults when it is touched"
    return f"{words}. Its bits: {meanings}." if meanings else f"{words}."


def _frame_step(walks: WalkedAddresses, at: WalkedAddress) -> str:
    paddr, size = at.walk.paddr or 0, at.walk.page_size_bytes
    offset = paddr & (size - 1)
    what = "frame" if size == 1 << walks.geometry.page_shift else f"huge page of {size_words(size)}"
    return (
        f"The last {size.bit_length() - 1} bits are the offset. The {what} begins at"
        f" {paddr - offset:#x}. The byte is at {paddr - offset:#x} + {offset:#x} = {paddr:#x}: the"
        f" physical address."
    )
