# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes walks that this machine does not have: other levels, page sizes, huge pages, swap."""

from physview.analysis.walked_addresses import WalkedAddress, WalkedAddresses, WalkedLevel
from physview.model import Cause, Level, PageKind, Vma, Walk
from physview.sources.table_geometry import EntryUse, TableEntries, make_geometry

# Every bit that has a name, in an entry that maps a page.
EVERY_BIT = {"x86_64": 0xFC00000000000FFF, "aarch64": 0x19FC000000000CC1}
FRAME = 0x000F_EDCB_A987_0000


def made_walks(
    vaddr,
    *,
    nr_levels=4,
    user_bits=47,
    page_shift=12,
    machine="x86_64",
    reached=None,
    kind=PageKind.PRESENT,
    swap=None,
    cause=None,
    is_hidden=False,
    with_tables=True,
    path="/usr/lib/a-library-whose-name-is-long.so.1.2.3",
    name="a process",
):
    """One walk.

    Args:
        vaddr: Virtual address.
        nr_levels: Levels that the kernel uses.
        user_bits: Bits of a user address.
        page_shift: log2 of a page's size.
        machine: As in `uname -m`.
        reached: How many levels the walk reaches; by default all.
        kind: What the last entry says.
        swap: A swap entry's type and offset.
        cause: Why there is no page.
        is_hidden: Whether entries are hidden from the user.
        with_tables: Whether the tables could be read.
        path: The path of the mapping; None if there is none.
        name: The process's name.
    """
    user_end = (1 << user_bits) - (4096 if machine == "x86_64" else 0)
    geometry = make_geometry(nr_levels, user_end, page_shift=page_shift, machine=machine)
    used = geometry.levels[: reached or nr_levels]
    size = 1 << used[-1].shift
    levels = []
    for level in used:
        is_last = level is used[-1]
        value = 0x5_4321_0000_0067 if machine == "x86_64" else 0x5_4321_0000_0003
        if is_last:
            value = FRAME & -size | EVERY_BIT[machine] if kind.has_page else 0
        taken = level.index_of(vaddr)
        address = 0xF_EDCB_A000_0000 + taken * 8
        read = Level(
            level.name,
            None if is_hidden else address,
            None if is_hidden else value,
            1 << level.shift,
            False,
            is_last and kind.has_page,
        )
        table = None
        if with_tables and not is_hidden:
            uses = [EntryUse(i % 5) for i in range(level.nr_user)]
            uses[taken] = EntryUse.TABLE
            if is_last:
                uses[taken] = EntryUse.PAGE if kind.has_page else EntryUse.EMPTY
            table = TableEntries((value,) * level.nr_user, tuple(uses))
        levels.append(WalkedLevel(level, taken, read, table))
    paddr = FRAME & -size | vaddr & (size - 1) if kind.has_page else None
    walk = Walk(vaddr, paddr, kind, size, swap, [level.read for level in levels])
    vma = None if path is None else Vma(vaddr & -size, user_end, "rw-p", 0, "00:00", 0, path)
    walked = WalkedAddress("buf[00]", walk, tuple(levels), vma, cause)
    return WalkedAddresses(
        4_194_303, name, "kmod", geometry, machine, "6.18.0-12345-generic", 1.7e9, [walked]
    )


LAST = (1 << 47) - 0x1001
WALKS = {
    "4 levels": made_walks(0x7FFD_3A5E_0B78),
    "last entries": made_walks(LAST),
    "first entries": made_walks(0),
    "5 levels": made_walks(0xFE_DCBA_9876_5432, nr_levels=5, user_bits=56),
    "2 MiB": made_walks(0x7FFD_3A5E_0B78, reached=3),
    "1 GiB": made_walks(0x7FFD_3A5E_0B78, reached=2),
    "1 GiB, 5 levels": made_walks(0xFE_DCBA_9876_5432, nr_levels=5, user_bits=56, reached=3),
    "absent": made_walks(0x7FFD_3A5E_0B78, kind=PageKind.NONE, cause=Cause.ABSENT),
    "unmapped": made_walks(
        0x7FFD_3A5E_0B78, reached=1, kind=PageKind.NONE, cause=Cause.UNMAPPED, path=None
    ),
    "swapped": made_walks(LAST, kind=PageKind.SWAP, swap=(21, (1 << 50) - 1), cause=Cause.SWAPPED),
    "guard": made_walks(LAST, kind=PageKind.MARKER, swap=(31, 4), cause=Cause.GUARD),
    "migration": made_walks(LAST, kind=PageKind.MIGRATION, swap=(29, 4), cause=Cause.SPECIAL),
    "unstable": made_walks(LAST, kind=PageKind.UNSTABLE, with_tables=False),
    "prot_none": made_walks(LAST, kind=PageKind.PROT_NONE),
    "hidden": made_walks(0x7FFD_3A5E_0B78, is_hidden=True),
    "tables changed": made_walks(0x7FFD_3A5E_0B78, with_tables=False),
    "arm64": made_walks(0xFEDC_BA98_7654, user_bits=48, machine="aarch64"),
    "arm64, 3 levels": made_walks(0x7E_DCBA_9876, nr_levels=3, user_bits=39, machine="aarch64"),
    "arm64, 16K": made_walks(0xFEDC_BA98_7654, user_bits=48, page_shift=14, machine="aarch64"),
    "arm64, 64K": made_walks(
        0xF_EDCB_A987_6543, nr_levels=3, user_bits=52, page_shift=16, machine="aarch64"
    ),
    "arm64, 64K, 2 levels": made_walks(
        0x3FF_FFFF_FFFF, nr_levels=2, user_bits=42, page_shift=16, machine="aarch64", reached=1
    ),
    "arm64, 5 levels": made_walks(0xF_EDCB_A987_6543, nr_levels=5, user_bits=52, machine="aarch64"),
}
