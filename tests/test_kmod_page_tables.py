# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's walk agrees with the kernel's own dump of this process's page tables."""

import re

import pytest
from memory import PAGE, Region

from physview.sources.kmod import Kmod
from physview.sources.procfs import ProcDir

pytestmark = pytest.mark.needs("root", "kmod", "ptdump")

LINE = re.compile(r"0x([0-9a-f]{16})-0x([0-9a-f]{16}) +\d+[KMGTP] +(.*?) +(pgd|p4d|pud|pmd|pte)$")


def test_the_walk_ends_where_the_dump_ends():
    region = Region(8).touch(0, 1, 2, 5)
    dumped = {}
    with open("/sys/kernel/debug/page_tables/current_user") as dump:
        for line in dump:
            match = LINE.match(line.rstrip())
            if match and int(match[1], 16) < region.end and int(match[2], 16) > region.start:
                for page in range(int(match[1], 16), int(match[2], 16), PAGE):
                    dumped[page] = (match[3].split(), match[4])
    proc = ProcDir()
    kmod = Kmod(proc)
    for page in region.pages:
        walk = kmod.walk(page)
        flags, level = dumped[page]
        assert bool(flags) == (walk.paddr is not None), (hex(page), flags, walk)
        if walk.paddr is not None:
            assert level == walk.levels[-1].name
            assert ("RW" in flags) == bool(walk.levels[-1].entry & 2)
            assert ("NX" in flags) == bool(walk.levels[-1].entry >> 63)
    kmod.close()
    proc.close()
