# SPDX-License-Identifier: GPL-2.0-or-later
"""A real process that changes its memory on command, and the changes that are expected."""

import time
from collections import Counter
from pathlib import Path

from memory import PAGE, kpageflags
from plain_reads import plain_entries

from physview.analysis.changes import CHANGES, Change, diff, iter_changes
from physview.entry_rules import MIN_SPECIAL_SWAP_TYPE
from physview.memory.extents import find_zero_pfn
from physview.memory.snapshot import Snapshot
from physview.model import PM_PFRAME_MASK, PagemapEntry
from physview.parquet.snapshot_file import SnapshotFile, write_snapshot

# A process that executes each line of its standard input as Python.
OBEY = """
import sys
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
THP = 1 << 22
ANON = 1 << 12


class Actor:
    """A process that changes its memory on command, and its snapshots.

    Args:
        child: The process. It runs OBEY.
        folder: Where its snapshots are written.
    """

    def __init__(self, child, folder):
        self.child = child
        self.folder = folder
        self.paths = []
        self.seen = []

    def do(self, line):
        """Have the process execute one line of Python, and wait until it is done."""
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        assert self.child.stdout.readline() == "done\n"

    def keep(self, **options):
        """Write a snapshot, and also read every page's entry and flags without physview."""
        path = str(self.folder / f"{len(self.paths)}.parquet")
        with Snapshot(self.child.pid) as snapshot:
            write_snapshot(snapshot, path, **options)
        self.paths.append(path)
        entries, _ = plain_entries(self.child.pid)
        frames = {entry & (1 << 55) - 1 for entry in entries.values() if entry >> 63}
        with open(f"/proc/{self.child.pid}/maps") as maps:
            vmas = [(*span(line), tuple(line.split()[3:])) for line in maps]
        self.seen.append((entries, {pfn: kpageflags(pfn) for pfn in frames}, vmas))
        return path

    def compact(self):
        """Make the kernel compact memory until a page in the last snapshot has moved."""
        deadline = time.monotonic() + 60
        before = self.seen[-1][0]
        while True:
            Path("/proc/sys/vm/compact_memory").write_text("1")
            entries, _ = plain_entries(self.child.pid)
            if any((before.get(v, e) ^ e) & PM_PFRAME_MASK for v, e in entries.items()):
                return
            assert time.monotonic() < deadline, "compaction has moved nothing"

    def changes(self):
        """The change of each page, by address, and the counts: what physview reports."""
        with SnapshotFile(self.paths[0]) as before, SnapshotFile(self.paths[1]) as after:
            found, counted = {}, Counter()
            for changes in iter_changes(before, after):
                for vaddr, nr_pages, kind, *_ in changes.tolist():
                    for i in range(nr_pages):
                        assert vaddr + i * PAGE not in found
                        found[vaddr + i * PAGE] = CHANGES[kind]
                    counted[CHANGES[kind]] += nr_pages
            counts = diff(before, after)
            assert counts.counts == counted
            return found, counts

    def expected(self):
        """The change of each page, by address: what the plain reads say."""
        pages = set(self.seen[0][0]) | set(self.seen[1][0])
        return {vaddr: self._judge(vaddr) for vaddr in pages}

    def _judge(self, vaddr):
        names = [[vma[2] for vma in seen[2] if vma[0] <= vaddr < vma[1]] for seen in self.seen]
        entries = [PagemapEntry(seen[0].get(vaddr, 0)) for seen in self.seen]
        kinds = [kind_of(entry) for entry in entries]
        if kinds[1] == "absent":
            return Change.WENT if names[1] else Change.UNMAPPED
        if kinds[0] == "absent":
            return Change.APPEARED if names[0] else Change.MAPPED
        if "special" in kinds:
            return Change.STILL_SPECIAL if entries[0] == entries[1] else Change.SPECIAL
        if kinds == ["swap", "swap"]:
            same = entries[0].swap == entries[1].swap
            return Change.STILL_SWAPPED if same else Change.RESWAPPED
        if "swap" in kinds:
            return Change.SWAPPED_OUT if kinds[1] == "swap" else Change.SWAPPED_IN
        same = entries[0].pfn == entries[1].pfn
        flags = [seen[1][entry.pfn] for seen, entry in zip(self.seen, entries, strict=True)]
        own = [flags[i] & ANON and entries[i].pfn != find_zero_pfn() for i in (0, 1)]
        if not same and names[0] != names[1]:
            return Change.REPLACED
        if not same and own[1] and not own[0]:
            return Change.COPIED
        if same and flags[0] & THP and not flags[1] & THP:
            return Change.SPLIT
        if all(own) and flags[1] & THP and not flags[0] & THP:
            return Change.COLLAPSED
        return Change.STAYED if same else Change.MOVED


def span(line):
    """The start and end address in a line of maps."""
    return tuple(int(word, 16) for word in line.split()[0].split("-"))


def kind_of(entry):
    """What a pagemap entry holds: "frame", "swap", "special" or "absent"."""
    if entry.present:
        return "frame"
    if entry.raw == 0:
        return "absent"
    if entry.swap and entry.swap[0] < MIN_SPECIAL_SWAP_TYPE and not entry.raw >> 58 & 1:
        return "swap"
    return "special"


# Lines for an Actor that cause the changes of each kind.
EVENTS = {
    Change.WENT: "fragmented.madvise(4)",
    Change.APPEARED: "private.touch(50, 51, 52)",
    Change.COPIED: "zero.touch(5, 6, 7); private.touch(110, 111)",
    Change.MAPPED: "new = Region(60).touch()",
    Change.UNMAPPED: "del sparse",
    Change.SPECIAL: "guard.madvise(103, check=False); guard.touch()",
    Change.REPLACED: (
        "import ctypes; libc.mmap(shared.start, 20 * PAGE, 3, mmap.MAP_PRIVATE | 0x10,"
        " file.fileno(), 0); ctypes.memset(shared.start, 1, 20 * PAGE)"
    ),
    Change.MOVED: "dense.madvise(4); dense.touch()",
}
