# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of physview's readers for a process, in one call each."""

from physview.analysis.usage_reader import UsageReader
from physview.memory.extents import ExtentReader
from physview.memory.snapshot import Snapshot
from physview.sources.procfs import ProcDir


def extents_of(pid, start=0, end=None, *, nr_threads=1, **options):
    """All extents of a process as tuples: (address, entry, pages)."""
    proc = ProcDir(pid)
    reader = ExtentReader(proc, **options)
    try:
        batches = list(reader.iter_extents(start, end, nr_threads=nr_threads))
        return [item for batch in batches for item in batch.tolist()]
    finally:
        reader.close()
        proc.close()


def usages(pid="self", **options):
    """The memory usage of each mapping of a process."""
    with Snapshot(pid, **options) as snapshot, UsageReader() as reader:
        return list(reader.iter_usage(snapshot))


def usage_of(region, found):
    """The usage of the mapping that contains a region."""
    (usage,) = [usage for usage in found if usage.vma.start <= region.start < usage.vma.end]
    return usage
