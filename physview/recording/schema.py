# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a recording: their columns with types, units and meanings.

A dataset is a folder, or a prefix of an object store:

    DATASET/TABLE/host=NAME/date=YYYY-MM-DD/part-….parquet

TABLE is one of TABLES. The date is that of the rows, in UTC. The host is percent-encoded. The
metadata of each file has the names of METADATA. A reader takes a column that it does not know as
extra, takes a missing column as null, and refuses a file whose physview.schema is larger than
VERSION.
"""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = 1
"""The version of the schema. It grows only if an old reader would misunderstand a new file."""

METADATA = ("physview.schema", "physview.version", "host", "machine", "boot_id", "kernel")
"""The names in the key-value metadata of each file."""

GROUPINGS = ("program", "cgroup", "pid")
"""How processes are grouped: the values of the column `by`."""


class Column(NamedTuple):
    """A column of a table.

    Args:
        name: The name in the files.
        kind: Type of the values: time, text, word (a text with few values), int16, int32, int64,
            double, bool, int64s or doubles (a list with a value for each order).
        unit: "bytes", "seconds", "pages" or another unit; empty if the value has none.
        meaning: What the value says. A value that is not known is null.
    """

    name: str
    kind: str
    unit: str
    meaning: str


def _bytes(name: str, meaning: str) -> Column:
    return Column(name, "int64", "bytes", meaning)


def _counter(name: str, meaning: str) -> Column:
    return Column(name, "int64", "count", meaning)


MOMENT = (
    Column("time", "time", "UTC", "when the sample began, by the machine's clock"),
    Column("machine", "word", "", "the machine: a hash of /etc/machine-id, never the id itself"),
    Column("boot", "word", "", "random id of the boot; another id tells that the machine rebooted"),
    Column("kernel", "word", "", "version of the kernel, as uname -r prints it"),
    Column("since_boot", "double", "seconds", "time since the boot, which no clock change moves"),
)
"""The columns with which each table begins."""

GROUPS = (
    *MOMENT,
    Column("by", "word", "", "what a group is: program, cgroup or pid"),
    Column("name", "text", "", "the program (comm), or path of the cgroup; null: all other groups"),
    Column("pid", "int32", "", "the process; null unless a group is a process"),
    Column("nr_processes", "int32", "count", "processes of the group with user memory"),
    _bytes("resident", "resident memory; shared memory counts in each process that maps it"),
    _bytes(
        "resident_approx",
        "resident memory of all processes by the kernel's own counters, also of those that were"
        " not read; approximate",
    ),
    _bytes("swapped", "swapped memory"),
    _bytes("shared", "the part of resident that may be mapped elsewhere, too"),
    _bytes("huge", "memory that is mapped as huge pages"),
    _bytes("anon", "the part of resident that is anonymous"),
    _bytes("anon_huge", "the part of huge that is anonymous: its THP coverage is anon_huge / anon"),
    _bytes("file", "the part of resident that is of files, or shared memory"),
    _bytes("hugetlb", "memory in pages of hugetlbfs, which resident does not include"),
    _bytes("page_tables", "page tables of the lowest level and above (VmPTE)"),
    Column("nr_extents", "int64", "count", "pieces that are contiguous in both address spaces"),
    _bytes("largest_extent", "the largest of these pieces"),
    _bytes("in_64k", "in contiguous blocks of 64 KiB, aligned in both address spaces"),
    _bytes("in_2m", "in contiguous blocks of 2 MiB, aligned in both address spaces"),
    _bytes("in_1g", "in contiguous blocks of 1 GiB, aligned in both address spaces"),
    _bytes("folios", "in large folios"),
    Column(
        "folios_by_order", "int64s", "bytes",
        "item i: in folios of 2**i pages that are mapped whole; item 0 is always 0",
    ),
    _counter("minor_faults", "page faults without a read from disk, since the processes began"),
    _counter("major_faults", "page faults with a read from disk, since the processes began"),
    Column("nr_read", "int32", "count", "processes whose memory was read for this sample"),
    Column("nr_kept", "int32", "count", "processes with values of an earlier sample"),
    Column("nr_stale", "int32", "count", "the part of nr_kept that changed since: for the budget"),
    Column(
        "nr_unread", "int32", "count",
        "processes not read so far, for the budget; only in resident_approx",
    ),
    Column("nr_denied", "int32", "count", "processes that this user may not examine; not in sums"),
    Column("age", "double", "seconds", "age of the oldest value that was kept; 0 if all are new"),
)  # fmt: skip
"""A row for each group of processes and each sample."""

ZONES = (
    *MOMENT,
    Column("node", "int16", "", "the NUMA node; 0 if the kernel knows none"),
    Column("zone", "word", "", "the zone, such as Normal"),
    _bytes("present", "memory that exists in the zone"),
    _bytes("managed", "the part of present that the page allocator manages"),
    _bytes("free", "free memory"),
    Column("free_blocks", "int64s", "count", "item i: free blocks of 2**i pages"),
    Column(
        "unusable", "doubles", "0 to 1",
        "item i: the share of free memory in blocks of less than 2**i pages (unusable free index)",
    ),
    _bytes("usable_2m", "free memory in blocks of at least 2 MiB, from the free lists"),
    _bytes(
        "usable_1g",
        "free memory in blocks of 1 GiB, aligned; null if neither free lists nor frames tell",
    ),
    _bytes("anon", "frames of anonymous memory; this and what follows only if frames were read"),
    _bytes("file", "frames of files in the page cache, and of shared memory"),
    _bytes("slab", "frames of the kernel's small objects"),
    _bytes("page_tables", "frames of page tables"),
    _bytes("hugetlb", "frames that were set aside as huge pages"),
    _bytes("reserved", "frames of the kernel itself, and firmware"),
    _bytes("other", "all other frames in use"),
    _bytes("could_2m", "in aligned 2 MiB of only free and movable frames: at most so much"),
    _bytes("could_1g", "in aligned 1 GiB of only free and movable frames: at most so much"),
)  # fmt: skip
"""A row for each zone of each NUMA node and each sample."""

MEMINFO = {
    "total": ("MemTotal", "memory that the kernel manages"),
    "free": ("MemFree", "free memory"),
    "available": ("MemAvailable", "what programs can still use without swapping, by the kernel"),
    "cached": ("Cached", "files in the page cache, and shared memory"),
    "anon": ("AnonPages", "anonymous memory of processes"),
    "shmem": ("Shmem", "shared memory and tmpfs"),
    "slab": ("Slab", "the kernel's small objects"),
    "page_tables": ("PageTables", "page tables of processes"),
    "swap_total": ("SwapTotal", "swap space"),
    "swap_free": ("SwapFree", "free swap space"),
    "anon_huge": ("AnonHugePages", "anonymous memory in transparent huge pages"),
    "shmem_huge": ("ShmemHugePages", "shared memory in huge pages"),
    "file_huge": ("FileHugePages", "files in huge pages"),
    "hugetlb": ("Hugetlb", "memory that was set aside as huge pages"),
}
"""The columns of `machine` from /proc/meminfo: the kernel's name, and the meaning."""

VMSTAT = {
    "compact_stall": "allocations that had to compact memory first",
    "compact_success": "such allocations that then got their memory",
    "compact_fail": "such allocations that did not",
    "compact_migrate_scanned": "pages that compaction examined to move them",
    "compact_free_scanned": "pages that compaction examined as a place to move to",
    "compact_isolated": "pages that compaction took to move them",
    "compact_daemon_wake": "wake-ups of kcompactd",
    "thp_fault_alloc": "huge pages that a page fault got",
    "thp_fault_fallback": "page faults that got small pages instead",
    "thp_collapse_alloc": "huge pages that khugepaged got",
    "thp_collapse_alloc_failed": "huge pages that khugepaged did not get",
    "thp_file_alloc": "huge pages for files or shared memory",
    "thp_split_page": "huge pages that were split",
    "thp_split_pmd": "huge pages whose mapping was split",
    "thp_deferred_split_page": "huge pages that wait to be split",
    "thp_swpout": "huge pages that were swapped out whole",
    "thp_swpout_fallback": "huge pages that were split to be swapped out",
    "pswpin": "pages that were swapped in",
    "pswpout": "pages that were swapped out",
    "pgfault": "page faults",
    "pgmajfault": "page faults with a read from disk",
    "pgmigrate_success": "pages that were moved",
    "pgmigrate_fail": "pages that could not be moved",
    "pgscan_kswapd": "pages that kswapd examined to free them",
    "pgscan_direct": "pages that allocations examined to free them",
    "pgsteal_kswapd": "pages that kswapd freed",
    "pgsteal_direct": "pages that allocations freed",
    "allocstall": "allocations that had to free memory first (all zones)",
    "oom_kill": "processes that were killed because memory ran out",
}
"""The columns of `machine` from /proc/vmstat: counters since the boot, by the kernel's names."""

MACHINE = (
    *MOMENT,
    *(_bytes(name, f"{meaning} ({field})") for name, (field, meaning) in MEMINFO.items()),
    *(_counter(name, f"{meaning}, since the boot") for name, meaning in VMSTAT.items()),
    Column("nr_processes", "int32", "count", "processes with user memory that were seen"),
    Column("nr_denied", "int32", "count", "processes that this user may not examine"),
    Column("nr_unread", "int32", "count", "processes not read so far, for the budget"),
    Column("nr_stale", "int32", "count", "processes with old values, for the budget"),
    Column("nr_groups", "int32", "count", "groups, before all beyond the limit were joined"),
    Column("cost", "double", "seconds", "processor time of the recorder since the sample before"),
    Column("interval", "double", "seconds", "since the sample before; null for a first sample"),
    Column("skipped", "int32", "count", "samples left out since the sample before, for the budget"),
    Column("lost", "int32", "count", "samples lost since the sample before: the disk was full"),
)
"""A row for each sample."""

TABLES: dict[str, tuple[Column, ...]] = {"groups": GROUPS, "zones": ZONES, "machine": MACHINE}
"""The tables, and the columns of each."""

Columns = dict[str, list[Any]]
"""Values by the name of the column; all lists have the same length."""


def arrow_schema(table: str, arrow: Any, metadata: dict[str, str] | None = None) -> Any:
    """Make the Arrow schema of a table.

    Args:
        table: One of TABLES.
        arrow: The module pyarrow.
        metadata: Key-value metadata of a file.

    Returns:
        A pyarrow.Schema.
    """
    kinds = {
        "time": arrow.timestamp("us", "UTC"),
        "text": arrow.string(),
        "word": arrow.dictionary(arrow.int32(), arrow.string()),
        "int16": arrow.int16(),
        "int32": arrow.int32(),
        "int64": arrow.int64(),
        "double": arrow.float64(),
        "int64s": arrow.list_(arrow.int64()),
        "doubles": arrow.list_(arrow.float64()),
    }
    fields = [arrow.field(column.name, kinds[column.kind]) for column in TABLES[table]]
    return arrow.schema(fields, metadata=metadata)
