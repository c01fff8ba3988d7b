# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics: their names, meanings and labels, and the columns from which they come.

The names follow Prometheus' conventions: base units (bytes, seconds, ratios from 0 to 1), and
counters end in _total. The dashboard and the alert rules use these names.
"""

from __future__ import annotations

from typing import NamedTuple

from physview.recording import schema

GAUGE, COUNTER = "gauge", "counter"


class Metric(NamedTuple):
    """A metric, or the values of one label of a metric.

    Args:
        name: Its name. prometheus_client adds _total to a counter's.
        kind: GAUGE or COUNTER.
        help: What it says, in a sentence.
        columns: The columns of the recording's schema, each with the value of `label` that it
            has; one column with "" if there is no such label. A column of a list has a value for
            each order, which becomes the label.
        label: The label that tells the columns apart, or the items of a list; "" if there is none.
    """

    name: str
    kind: str
    help: str
    columns: dict[str, str]
    label: str = ""


def _gauge(name: str, column: str, text: str) -> Metric:
    return Metric(f"physview_{name}", GAUGE, text, {column: ""})


GROUP_LABELS = ("group",)
PID_LABELS = ("group", "pid")
GROUPS = (
    _gauge("group_processes", "nr_processes", "Processes of the group that have user memory."),
    _gauge(
        "group_resident_bytes", "resident",
        "Resident memory. Shared memory counts in each process that maps it.",
    ),
    _gauge("group_swapped_bytes", "swapped", "Swapped memory."),
    _gauge(
        "group_shared_bytes", "shared", "Resident memory that may be mapped by others, too.",
    ),
    _gauge("group_anonymous_bytes", "anon", "Resident memory that is anonymous."),
    _gauge("group_file_bytes", "file", "Resident memory of files, or shared memory."),
    _gauge("group_huge_bytes", "huge", "Memory that is mapped as huge pages."),
    _gauge("group_anonymous_huge_bytes", "anon_huge", "Anonymous memory mapped as huge pages."),
    _gauge(
        "group_hugetlb_bytes", "hugetlb", "Pages of hugetlbfs. Resident memory does not have them.",
    ),
    _gauge("group_folio_bytes", "folios", "Memory in large folios."),
    Metric(
        "physview_group_contiguous_bytes", GAUGE,
        "Memory in physically contiguous blocks of a size, aligned to it in both address spaces."
        " Smaller sizes include larger ones.",
        {"in_64k": "64KiB", "in_2m": "2MiB", "in_1g": "1GiB"}, "size",
    ),
    _gauge("group_page_tables_bytes", "page_tables", "Page tables of the processes."),
    _gauge(
        "group_extents", "nr_extents",
        "Pieces of memory that are contiguous in the virtual and the physical address space.",
    ),
    _gauge("group_largest_extent_bytes", "largest_extent", "The largest of these pieces."),
    Metric(
        "physview_group_faults", COUNTER,
        "Page faults that were seen, by kind: major ones read from a disk. What a process does"
        " between the last scrape and its end is not seen. Each fault counts in one group only.",
        {"minor_faults": "minor", "major_faults": "major"}, "kind",
    ),
    _gauge(
        "group_age_seconds", "age",
        "Age of the group's oldest value: a process that has not changed is not read again.",
    ),
)  # fmt: skip
"""Metrics of each group of processes."""

ZONE_LABELS = ("node", "zone")
ZONES = (
    _gauge("zone_managed_bytes", "managed", "Memory of the zone that the page allocator manages."),
    _gauge("zone_free_bytes", "free", "Free memory of the zone."),
    Metric(
        "physview_zone_free_blocks", GAUGE, "Free blocks of 2 to the power of the order pages.",
        {"free_blocks": ""}, "order",
    ),
    Metric(
        "physview_zone_unusable_free_ratio", GAUGE,
        "Unusable free index: the share of free memory in blocks too small for an allocation of"
        " this order; 0 if all free memory is usable, 1 if none is.",
        {"unusable": ""}, "order",
    ),
    Metric(
        "physview_zone_usable_bytes", GAUGE,
        "Free memory in blocks large enough for an allocation of this size.",
        {"usable_2m": "2MiB", "usable_1g": "1GiB"}, "size",
    ),
    Metric(
        "physview_zone_movable_bytes", GAUGE,
        "Memory in aligned blocks of this size that have only free and movable frames. Compaction"
        " can free at most so much. Needs --frames-every.",
        {"could_2m": "2MiB", "could_1g": "1GiB"}, "size",
    ),
    Metric(
        "physview_zone_used_bytes", GAUGE,
        "Memory of the zone by what its frames are used for. Needs --frames-every.",
        {
            use: use
            for use in ("anon", "file", "slab", "page_tables", "hugetlb", "reserved", "other")
        }, "use",
    ),
)  # fmt: skip
"""Metrics of each zone of each NUMA node."""

MACHINE = (
    *(
        _gauge(f"memory_{name}_bytes", name, f"{field} in /proc/meminfo: {meaning}.")
        for name, (field, meaning) in schema.MEMINFO.items()
    ),
    *(
        Metric(
            f"physview_vmstat_{name}", COUNTER, f"{name} in /proc/vmstat: {meaning}.", {name: ""}
        )
        for name, meaning in schema.VMSTAT.items()
    ),
)
"""Metrics of the machine."""

OWN = (
    _gauge(
        "exporter_scrape_duration_seconds", "duration", "How long the reading of this scrape took.",
    ),
    _gauge(
        "exporter_scrape_cpu_seconds", "cpu", "Processor time that the reading of this scrape took."
    ),
    _gauge("exporter_groups", "groups", "Groups before all but the largest were joined."),
    Metric(
        "physview_exporter_processes", GAUGE,
        "Processes by what the last reading did with them: read; kept, with values of an earlier"
        " reading; unread so far, because --max-cpu was reached; denied, because the exporter may"
        " not examine them; gone, because they ended while they were read.",
        {f"nr_{result}": result for result in ("read", "kept", "unread", "denied", "gone")},
        "result",
    ),
    _gauge(
        "exporter_frames_known", "frames_known",
        "1 if the exporter may see frame numbers. Without them, contiguity is not known.",
    ),
)  # fmt: skip
"""Metrics of the exporter itself. prometheus_client adds those of its process, process_…."""

ALL = (*GROUPS, *ZONES, *MACHINE, *OWN)
