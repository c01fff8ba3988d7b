# SPDX-License-Identifier: GPL-2.0-or-later
"""The flags of pages: as page-types tells them, in filters, and as this kernel may tell them."""

import csv
import io
import json
import re
import subprocess
from collections import Counter

import numpy as np
import pytest
from failures import one_line
from hypothesis import given
from hypothesis import strategies as st
from memory import PAGE, Region, raw_entry
from plain_reads import agreed, plain_entries, plain_values
from users import AS_NOBODY

from physview.errors import UsageError
from physview.model import NO_ENTRY, PM_GUARD_REGION, PM_PFRAME_MASK, PM_SOFT_DIRTY
from physview.sources import kpage
from physview.sources.page_flags import FLAG_BITS, FlagFilter, expanded, flag_names
from physview.sources.soft_dirty import own_entry

SWAP = 1 << FLAG_BITS["swap"]
HAS_SOFT_DIRTY = bool(own_entry().raw & PM_SOFT_DIRTY)
# These the kernel changes by itself: aging, and what other processes do to shared pages.
AGING = sum(1 << FLAG_BITS[name] for name in ("referenced", "active", "idle", "lru"))


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_flags_of_pagemap_are_added_alike_one_by_one_and_in_columns(flags, entry):
    columns = (np.array([value], dtype=np.uint64) for value in (flags, entry))
    assert expanded(*columns).tolist() == [expanded(flags, entry)]
    if flags != NO_ENTRY:
        changed = expanded(flags, 0) ^ flags
        assert set(flag_names(changed)) <= {
            *("bit_34", "anon_exclusive", "active", "slub_frozen"),
            *("error", "slub_debug", "reclaim", "readahead"),
        }


def test_a_guard_is_no_swap_entry():
    assert flag_names(expanded(NO_ENTRY, 0x440000000000009F)) == ["guard"]


@pytest.mark.parametrize(
    ("text", "chosen", "others"),
    [
        ("anon|slab", ["anon", "slab lru"], ["", "lru"]),
        ("anon|slab,!lru", ["anon", "slab"], ["slab lru", "lru"]),
        ("=anon,lru", ["anon lru"], ["anon", "anon lru mmap", ""]),
        ("=", [""], ["anon"]),
        ("anon,ksm,thp=anon", ["anon", "anon lru"], ["anon ksm", "lru", "thp"]),
        ("anon,ksm=", ["", "lru"], ["anon", "ksm"]),
        ("0x1020", ["lru anon"], ["lru", "anon"]),
        ("anonymous,~softdirty", ["anon"], ["anon soft_dirty"]),
        ("Exclusive", ["mmap_exclusive"], ["file"]),
    ],
)
def test_expressions_of_page_types_have_an_equivalent(text, chosen, others):
    found = FlagFilter.parse(text)
    for names, expected in [
        *((each, True) for each in chosen),
        *((each, False) for each in others),
    ]:
        value = sum(1 << FLAG_BITS[name] for name in names.split())
        assert found.matches(value) == expected, names
        assert found.matches(np.array([value], dtype=np.uint64)).tolist() == [expected]


def test_several_expressions_must_all_hold():
    found = FlagFilter.parse("anon|slab", "lru|mmap", "!thp")
    names = {("anon", "lru"): True, ("slab",): False, ("slab", "mmap", "thp"): False}
    for each, expected in names.items():
        assert found.matches(sum(1 << FLAG_BITS[name] for name in each)) == expected


@pytest.mark.parametrize(
    "texts", [("anon|slab,!anon,!slab",), ("=anon", "lru"), ("anon=lru",), ("=anon", "=lru")]
)
def test_expressions_that_can_choose_nothing(texts):
    with pytest.raises(UsageError, match="chooses nothing"):
        FlagFilter.parse(*texts)


@pytest.mark.parametrize("text", ["anon|", "=foo", "foo=", "!anon|lru", "0xg", "0x" + "1" * 17])
def test_invalid_expressions_are_refused(text):
    with pytest.raises(UsageError, match=r"(?:All are|choose one of) locked, "):
        FlagFilter.parse(text)


def steady(flags):
    """Flags without those that change by themselves, or by who looks.

    A page of a library is exclusive unless another process maps it, and physview maps others than
    page-types.
    """
    is_file = flags >> FLAG_BITS["file"] & 1
    return flags & ~AGING & ~(is_file << FLAG_BITS["mmap_exclusive"])


def counts_of_page_types(pid, *options):
    """The number of pages by all flags, with those of pagemap, as page-types counts them."""
    command = ["page-types", "-r", "-p", str(pid), *options]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = Counter()
    for flags, nr in re.findall(r"^(0x\w+)\s+(\d+)", output, re.M):
        found[steady(int(flags, 16) & ~kpage.false_flags())] += int(nr)
    return found


def our_counts(physview, pid, *options):
    command = ["pages", str(pid), "--summary", "--raw", "--json", *options]
    found = Counter()
    for item in json.loads(physview(*command).stdout)["counts"]:
        found[steady(int(item["value"], 16))] += item["nr_pages"]
    return found


@pytest.mark.needs("pfn", "kpage", "page-types")
def test_all_flags_are_those_of_page_types(physview, stopped):
    def theirs():
        counts = counts_of_page_types(stopped.pid)
        return {flags: nr for flags, nr in counts.items() if not flags & SWAP}

    found = agreed(theirs, lambda: dict(our_counts(physview, stopped.pid)))
    names = {name for flags in found for name in flag_names(flags)}
    assert {"file", "mmap_exclusive", "swapbacked"} <= names
    if HAS_SOFT_DIRTY:
        assert "soft_dirty" in names


@pytest.mark.needs("pfn", "kpage", "page-types")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("anon|mmap", "anonymous,mmap"),
        ("anon,!thp", "anonymous,~thp"),
        ("anon,swapbacked,thp=anon,swapbacked", "anonymous,swapbacked,thp=anonymous,swapbacked"),
        ("soft_dirty", "softdirty"),
        ("anon_exclusive", "anon_exclusive"),
        ("file|anon", "file,anonymous"),
    ],
)
def test_filters_choose_what_page_types_chooses(physview, stopped, ours, theirs):
    agreed(
        lambda: dict(counts_of_page_types(stopped.pid, "-b", theirs)),
        lambda: dict(our_counts(physview, stopped.pid, "--flags", ours)),
    )


def table_of(physview, *options):
    """The rows of the table, the CSV and the JSON lines, all in the same form: csv's."""
    rows = list(csv.DictReader(io.StringIO(physview(*options, "--format", "csv").stdout)))
    documents = map(json.loads, physview(*options, "--format", "jsonl").stdout.splitlines())
    expected = [
        {
            "vaddr": item["vaddr"],
            "nr_pages": str(item["nr_pages"]),
            "paddr": item["paddr"] or "",
            "pfn": str(item["pfn"] or ""),
            "cause": item["cause"] or "",
            "swap_type": str(item["swap"]["type"]) if item["swap"] else "",
            "swap_offset": str(item["swap"]["offset"]) if item["swap"] else "",
            "flags": "|".join(item["flags"] or []),
            "mapcount": "" if item["mapcount"] is None else str(item["mapcount"]),
            "cgroup": item["cgroup"] or "",
            "node": "" if item["node"] is None else str(item["node"]),
            "perms": item["mapping"]["perms"],
            "path": item["mapping"]["path"],
        }
        for item in documents
    ]
    return rows, expected


@pytest.mark.needs("pfn", "kpage")
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--raw", "--flags", "!file"],  # files' pages are ours alone only while nobody else starts
        ["--each", "--columns", "flags,mapcount,cgroup,node"],
        ["--columns", "mapcount", "--flags", "anon"],
        ["--raw", "--columns", "flags,cgroup", "--flags", "anon|swap"],
        ["--columns", ""],
    ],
    ids=" ".join,
)
def test_the_core_lists_the_rows_that_columns_of_numpy_have(physview, stopped, options):
    """CSV and the table come from the core, JSON lines from columns of NumPy."""

    def without_aging(rows):
        aging = {name for name in FLAG_BITS if AGING >> FLAG_BITS[name] & 1}
        for row in rows:
            is_file = row["path"].startswith("/")  # physview maps it, too
            unsteady = aging | {"mmap_exclusive"} if is_file else aging
            row["flags"] = "|".join(n for n in row["flags"].split("|") if n not in unsteady)
            if is_file:
                row["mapcount"] = row["mapcount"] and "some"
        return rows

    found = []

    def expected():
        rows, documents = table_of(physview, "pages", str(stopped.pid), *options)
        found[:] = without_aging(rows)
        return without_aging(documents)

    assert len(agreed(expected, lambda: list(found))) > 10


@pytest.mark.needs("pfn")
def test_pages_without_a_frame_are_chosen_by_flags_of_pagemap(physview, stopped):
    entries, _ = plain_entries(stopped.pid)
    guards = {vaddr for vaddr, entry in entries.items() if entry & PM_GUARD_REGION}
    rows, _ = table_of(physview, "pages", str(stopped.pid), "--flags", "guard", "--each")
    assert {int(row["vaddr"], 16) for row in rows} == guards
    assert {(row["cause"], row["flags"]) for row in rows} <= {("guard", "guard")}


@pytest.mark.needs("pfn", "kpage")
def test_idle_is_a_name_that_chooses(physview, python):
    """`--flags idle` once chose nothing, because idle was cleared before the filter."""
    child = python("from memory import Region; r = Region(64).touch()")
    for _ in range(10):  # DAMON may set and clear the flag all the time
        every = our_counts_of_names(physview, child.pid)
        chosen = our_counts_of_names(physview, child.pid, "--flags", "idle")
        if chosen or not any("idle" in names for names in every):
            break
    other = our_counts_of_names(physview, child.pid, "--flags", "!idle")
    assert chosen or not any("idle" in names for names in every)
    assert all("idle" in names for names in chosen)
    assert not any("idle" in names for names in other)


def our_counts_of_names(physview, pid, *options):
    lines = physview("pages", str(pid), "--format", "jsonl", "--raw", *options).stdout
    found = Counter()
    for item in map(json.loads, lines.splitlines()):
        if item["pfn"] is not None:
            found[tuple(item["flags"])] += item["nr_pages"]
    return found


def test_a_kernel_without_soft_dirty_is_named(physview):
    result = physview("pages", "self", "--flags", "softdirty")
    assert result.returncode == 0
    assert ("this kernel has none" in result.stderr) == (not HAS_SOFT_DIRTY)


@pytest.mark.needs("nobody")
def test_nobody_gets_the_flags_of_pagemap(physview):
    result = physview("pages", "self", "--flags", "file", "--each", "--raw", prefix=AS_NOBODY)
    assert result.returncode == 0
    pages = [line.split() for line in result.stdout.splitlines()[1:] if line.startswith("  ")]
    assert len(pages) > 100
    assert all("file" in words[-1].split(",") for words in pages)
    line = one_line(physview("pages", "self", "--flags", "file,lru", prefix=AS_NOBODY), 1)
    assert "frame numbers are hidden; run " in line


def test_bpf_does_not_know_flags_of_pagemap(physview):
    for options in (["--raw"], ["--flags", "file"]):
        line = one_line(physview("pages", "self", "--source", "bpf", *options), 2)
        assert "only pagemap knows flags such as soft_dirty" in line


@pytest.mark.needs("pfn", "kpage")
def test_a_page_that_is_not_merged_is_not_called_ksm(physview):
    """Linux 6.12.117 and 6.12.118 call every anonymous page ksm."""
    region = Region(1).touch()
    value = plain_values("kpageflags", raw_entry(region.start) & PM_PFRAME_MASK, 1)[0]
    is_false = bool(value & kpage.KPF_KSM)
    assert kpage.false_flags() == (kpage.KPF_KSM if is_false else 0)
    result = physview("pages", "self", "--summary")
    assert "anon" in result.stdout
    assert "ksm" not in result.stdout
    assert result.stderr.count("calls every anonymous page ksm") == is_false
    frames = json.loads(physview("frames", "--json").stdout)
    assert any(use["use"] == "anon" for use in frames["uses"])
    paddr = (raw_entry(region.start) & PM_PFRAME_MASK) * PAGE
    for command in (["frames"], ["owners", hex(paddr)]):
        result = physview(*command)
        assert result.stderr.count("calls every anonymous page ksm") == is_false
    assert ("anonymous page ksm" in physview("doctor").stdout) == is_false
