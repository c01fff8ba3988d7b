# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes snapshot files without physview's writer, so that any part of a file can be wrong."""

from __future__ import annotations

import json
import os
import random

PAGE = os.sysconf("SC_PAGESIZE")
PRESENT, SWAP = 1 << 63, 1 << 62
HEAP = 0x5500_0000_0000 // PAGE * PAGE
U64 = (1 << 64) - 1

TYPES = {
    "vaddr": "uint64",
    "nr_pages": "uint64",
    "pfn": "uint64",
    "swap_type": "uint8",
    "swap_offset": "uint64",
    "entry": "uint64",
    "mapping": "uint32",
    "perms": "string",
    "path": "string",
    "flags": "uint64",
    "node": "int32",
}


def about(**changes):
    """The metadata of a snapshot, with changes. The value `...` removes a member."""
    from physview.model import Vma

    found = {
        "format": 1,
        "physview": "0.1.0",
        "host": "host",
        "kernel": "6.1.0",
        "machine": "x86_64",
        "boot_id": "b",
        "time": "2026-01-01T00:00:00.000+00:00",
        "pid": 7,
        "start_time_ticks": 9,
        "comm": "actor",
        "page_size_bytes": PAGE,
        "zero_pfn": 5,
        "shows_frames": True,
        "complete": True,
        "resources": [[4096, 1 << 31, "System RAM", 0], [1 << 32, 3 << 31, "System RAM", 0]],
        "columns": ["flags", "node"],
        "flag_bits": {"12": "anon"},
        "mapping_members": list(Vma._fields),
        "mappings": [
            [HEAP, HEAP + 4000 * PAGE, "rw-p", 0, "00:00", 0, "[heap]"],
            [HEAP + 5000 * PAGE, HEAP + 9000 * PAGE, "r--p", 0, "08:01", 77, "/lib/a.so"],
        ],
    } | changes
    return {name: value for name, value in found.items() if value is not ...}


def rows(nr, seed=1):
    """Random but valid columns, of at most `nr` rows."""
    dice = random.Random(seed)
    columns = {name: [] for name in TYPES}
    page = 0
    for _ in range(nr):
        page += dice.randrange(3)
        size = dice.choice((1, 1, 2))
        if page + size > 4000:
            break
        if dice.random() < 0.1:
            slot = dice.randrange(1, 1 << 20)
            entry, place, swap = SWAP | slot << 5 | 1, None, (1, slot)
        else:
            place = dice.randrange(16, 1 << 19)
            entry, swap = PRESENT | place, (None, None)
        flags, node = (None, None) if place is None else (1 << 12, 0)
        values = (HEAP + page * PAGE, size, place, *swap, entry, 0, "rw-p", "[heap]", flags, node)
        for name, value in zip(TYPES, values, strict=True):
            columns[name].append(value)
        page += size
    return columns


def table(columns, metadata, types=None):
    """An Arrow table. Metadata are bytes, or an object that is written as JSON, or None."""
    import pyarrow as pa

    types = TYPES | (types or {})
    arrays = {}
    for name, values in columns.items():
        kind = types.get(name.removeprefix("x"), "uint64")
        arrays[name] = pa.array(values, getattr(pa, kind)() if isinstance(kind, str) else kind)
    if metadata is None:
        return pa.table(arrays)
    if not isinstance(metadata, bytes):
        metadata = json.dumps(metadata).encode("utf-8", "surrogatepass")
    return pa.table(arrays).replace_schema_metadata({b"physview": metadata})


def write(path, columns=None, metadata=..., types=None, **options):
    """Write a snapshot file; what is not given is valid."""
    import pyarrow.parquet as pq

    columns = rows(300) if columns is None else columns
    found = table(columns, about() if metadata is ... else metadata, types)
    options = {"compression": "zstd", "use_dictionary": ["perms", "path"]} | options
    pq.write_table(found, path, **options)
