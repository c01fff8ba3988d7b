# SPDX-License-Identifier: GPL-2.0-or-later
"""physview pages agrees with plain reads, and with tools/mm/page-types where that is on PATH."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from failures import ends_while_written, one_line
from memory import PAGE, every_second_page
from plain_reads import plain_entries
from users import AS_NOBODY

from physview.analysis.flag_counts import count_flags
from physview.memory.snapshot import Snapshot
from physview.model import NO_ENTRY, PM_PFRAME_MASK, PM_PRESENT
from physview.sources.kpage import false_flags
from physview.sources.page_flags import FLAG_BITS, FlagFilter, well_known

IDLE = 1 << FLAG_BITS["idle"]
ALL = "flags,mapcount,cgroup,node"

pytestmark = pytest.mark.needs("pfn", "kpage")


def expand(records):
    """The frame of each page by address, or the cause why there is none."""
    zero = [item["pfn"] for item in records if item["flags"] and "zero_page" in item["flags"]]
    pages = {}
    for item in records:
        step = item["pfn"] is not None and item["pfn"] not in zero
        for i in range(item["nr_pages"]):
            where = item["cause"] or item["pfn"] + i * step
            pages[int(item["vaddr"], 16) + i * PAGE] = where
    return pages


def test_every_format_has_every_page(physview, stopped):
    entries, _ = plain_entries(stopped.pid)
    expected = {
        vaddr: entry & PM_PFRAME_MASK for vaddr, entry in entries.items() if entry & PM_PRESENT
    }
    document = json.loads(physview("pages", str(stopped.pid), "--json", "--columns", ALL).stdout)
    found = expand(document["extents"])
    assert set(found) == set(entries)
    assert {vaddr: pfn for vaddr, pfn in found.items() if isinstance(pfn, int)} == expected
    assert set(found.values()) - set(expected.values()) <= {"guard", "marker", "swapped"}
    for item in document["extents"]:
        vma = document["mappings"][item["mapping"]]
        assert int(vma["start"], 16) <= int(item["vaddr"], 16) < int(vma["end"], 16)
        if item["pfn"] is not None:
            assert int(item["paddr"], 16) == item["pfn"] * PAGE
            assert item["mapcount"] is not None
            assert item["node"] is not None

    lines = physview("pages", str(stopped.pid), "--format", "jsonl").stdout.splitlines()
    assert expand([json.loads(line) for line in lines]) == found

    text = physview("pages", str(stopped.pid), "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    as_numbers = [
        {
            "vaddr": row["vaddr"],
            "nr_pages": int(row["nr_pages"]),
            "pfn": int(row["pfn"]) if row["pfn"] else None,
            "cause": row["cause"],
            "flags": row["flags"].split("|"),
        }
        for row in rows
    ]
    assert expand(as_numbers) == found

    lines = physview("pages", str(stopped.pid), "--each").stdout.splitlines()
    pages = [line.split() for line in lines[1:] if line.startswith("  ")]
    assert {int(vaddr, 16): pfn for vaddr, pfn, *_ in pages} == {
        vaddr: "-" if isinstance(pfn, str) else f"pfn:{pfn:#x}" for vaddr, pfn in found.items()
    }


def test_a_range_in_80_columns(physview, stopped):
    entries, _ = plain_entries(stopped.pid)
    start = min(entries)
    environment = os.environ | {"COLUMNS": "80"}
    where = f"{start + 1:#x}-{start + PAGE - 1:#x}"  # all of the page they lie in
    result = physview("pages", str(stopped.pid), where, env=environment)
    head, mapping, page = result.stdout.splitlines()
    assert head.split() == ["vaddr", "pages", "pfn", "node", "flags"]
    assert mapping.startswith(f"{start:#014x}-")
    words = page.split()
    assert words[:3] == [f"{start:#014x}", "1", f"pfn:{entries[start] & PM_PFRAME_MASK:#x}"]
    assert "uptodate" in words[4]
    lines = physview("pages", str(stopped.pid), env=environment).stdout.splitlines()
    pages = [line for line in lines if line.startswith("  ")]
    assert max(map(len, pages)) <= 80


def plain_counts(pid):
    """The number of pages by flags, from reads of single pages."""
    counts = Counter()
    with open("/proc/kpageflags", "rb", buffering=0) as file:
        for entry in plain_entries(pid)[0].values():
            pfn = entry & PM_PFRAME_MASK
            if entry & PM_PRESENT and pfn:
                found = os.pread(file.fileno(), 8, pfn * 8)
                flags = int.from_bytes(found, "little") & ~false_flags() if found else NO_ENTRY
                counts[flags] += 1
    return counts


def without(counts, bits):
    merged = Counter()
    for flags, nr in counts.items():
        merged[flags & ~bits] += nr
    return merged


# These the kernel changes by itself: aging, and what other processes do to shared pages.
AGING = sum(1 << FLAG_BITS[name] for name in ("referenced", "active", "idle", "lru"))


@pytest.mark.parametrize("nr_threads", [1, 2])
def test_counts_are_those_of_plain_reads(stopped, nr_threads):
    for _ in range(20):  # until the kernel moves or marks no page meanwhile
        expected = plain_counts(stopped.pid)
        with Snapshot(stopped.pid) as snapshot:
            found = count_flags(snapshot, nr_threads=nr_threads)
            anon = count_flags(snapshot, raw=True, where=FlagFilter.parse("anon,!thp"))
        if without(plain_counts(stopped.pid), AGING) == without(expected, AGING):
            break
    shown = Counter()
    for flags, nr in expected.items():
        shown[well_known(flags)] += nr
    assert without(found.by_flags, AGING) == without(shown, AGING)
    assert sum(found.by_flags.values()) == sum(expected.values())
    nr_anon = sum(nr for flags, nr in expected.items() if flags >> 12 & 1 and not flags >> 22 & 1)
    assert sum(anon.by_flags.values()) == nr_anon > 1000


@pytest.mark.needs("page-types")
def test_counts_are_those_of_page_types(stopped):
    with Snapshot(stopped.pid) as snapshot:
        found = count_flags(snapshot)
    command = ["page-types", "-p", str(stopped.pid)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = {
        int(flags, 16) & ~false_flags(): int(nr)
        for flags, nr in re.findall(r"^(0x\w+)\s+(\d+)", output, re.M)
    }
    # It counts guards and swap entries as pages without flags.
    ours = Counter(found.by_flags)
    ours[0] += found.nr_swapped + found.nr_special
    assert without(ours, AGING) == without(theirs, AGING)
    assert sum(theirs.values()) > 5000


def test_the_summary(physview, stopped):
    lines = physview("pages", str(stopped.pid), "--summary").stdout.splitlines()
    assert lines[0].split() == ["flags", "pages", "size", "names"]
    numbers = [int(line.split()[1]) for line in lines[1:]]
    assert numbers[-1] == sum(numbers[:-1]) == len(plain_entries(stopped.pid)[0])
    document = json.loads(physview("pages", str(stopped.pid), "--summary", "--json").stdout)
    assert document["nr_pages"] == sum(item["nr_pages"] for item in document["counts"])
    anon = physview("pages", str(stopped.pid), "--summary", "--flags", "anon").stdout
    assert all("anon" in line for line in anon.splitlines()[1:-1])


def test_filters(physview, stopped):
    def extents_of(*options):
        words = ["pages", str(stopped.pid), "--format", "jsonl", *options]
        return [json.loads(line) for line in physview(*words).stdout.splitlines()]

    def flags_of(*options):
        return [item["flags"] for item in extents_of(*options)]

    assert all("anon" in flags and "thp" not in flags for flags in flags_of("--flags", "anon,!thp"))
    zero = extents_of("--flags", "zero_page")  # the interpreter may have some of its own
    assert all(item["flags"] == ["zero_page"] for item in zero)
    assert max(item["nr_pages"] for item in zero) >= 700
    heads = flags_of("--flags", "compound_head")
    assert all("compound_head" in flags for flags in heads)
    assert heads
    plain = [flags for flags in flags_of() if flags and "huge" not in flags]
    assert not any("compound_head" in flags for flags in plain)
    assert flags_of("--flags", "slab") == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--flags", "colour"], "no flag 'colour'; choose one of locked, error, "),
        (["--flags", "anon,~anon"], "asked for and forbidden"),
        (
            ["--columns", "colour"],
            "no column 'colour'; choose one of flags, mapcount, cgroup, node",
        ),
        (["hello"], "'hello' is no range"),
        (["0x2000-0x1000"], "ends before it starts"),
        (["--summary", "--each"], "exclude each other"),
        (["--summary", "--format", "csv"], "exclude each other"),
        (["--json", "--format", "csv"], "exclude each other"),
    ],
)
def test_wrong_use(physview, words, why):
    assert why in one_line(physview("pages", "self", *words), 2)


def test_no_such_process(physview, zombie):
    assert "no process" in one_line(physview("pages", "4194305"), 1)
    assert "zombie" in one_line(physview("pages", str(zombie.pid)), 1)


@pytest.mark.needs("nobody")
def test_nobody_gets_the_extents_and_hears_what_is_missing(physview):
    result = physview("pages", "self", prefix=AS_NOBODY)
    assert result.returncode == 0
    assert result.stderr.count("\n") == 1
    assert "frame numbers are hidden" in result.stderr
    pages = [line.split() for line in result.stdout.splitlines()[1:] if line.startswith("  ")]
    assert sum(int(words[1]) for words in pages) > (2 << 20) // PAGE
    assert {words[2] for words in pages} == {"-"}
    for option in (["--summary"], ["--flags", "anon"]):
        line = one_line(physview("pages", "self", *option, prefix=AS_NOBODY), 1)
        assert "frame numbers are hidden; run " in line


def test_a_process_that_ends_while_it_is_written(python):
    nr_pages = 100_000 if PAGE == 4096 else 40_000  # more extents than are read at once
    child = python(every_second_page(nr_pages, 2600))
    ends_while_written(child, 5, "pages", str(child.pid))


@pytest.mark.parametrize(
    "options", [["--each"], ["--format", "csv"], ["--format", "jsonl"], ["--summary"]]
)
def test_memory_stays_small(python, options):
    child = python(every_second_page(300_000, 1200))
    code = (
        "import re, sys\n"
        "from physview.commands import main\n"
        f"assert main(['pages', '{child.pid}', *{options!r}]) == 0\n"
        "status = open('/proc/self/status').read()\n"
        "print(re.search('VmHWM:(.*) kB', status).group(1), 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, with_numpy = result.stdout.split()[-2:]
    assert int(peak) < 120_000
    assert (with_numpy == "True") == ("jsonl" in options)
