# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot files as an attacker makes them: a corpus from a seed, and what physview does with it.

    python tests/support/hostile_files.py make FOLDER NUMBER SEED
    python tests/support/hostile_files.py check FOLDER

The second says, as JSON, what became of each file, and how much memory all took.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

PAGE = os.sysconf("SC_PAGESIZE")
PRESENT, SWAP, FILE = 1 << 63, 1 << 62, 1 << 61
HEAP = 0x5500_0000_0000 // PAGE * PAGE
U64 = (1 << 64) - 1


def about(**changes):
    """Metadata as a snapshot has them; a change to ... leaves a member out."""
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
    """Columns of rows that a snapshot might have."""
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


def table(columns, metadata, types=None):
    """A table of Arrow, with metadata as text or as what JSON is made of."""
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
    """Write a file."""
    import pyarrow.parquet as pq

    columns = rows(300) if columns is None else columns
    found = table(columns, about() if metadata is ... else metadata, types)
    options = {"compression": "zstd", "use_dictionary": ["perms", "path"]} | options
    pq.write_table(found, path, **options)


VALUES = (
    *(..., None, True, False, 0, 1, -1, 1 << 31, 1 << 63, U64, 1 << 64, 1 << 200, 0.5, 1e300),
    *(float("nan"), "", "x", "a" * 300, "a" * 100_000, "\x1b[2J\x07", "\ud800", "\udcff", "a\0b"),
    *([], [[]], [None], {}, {"a": {}}, [1, 2], [[1, 2, 3, 4, 5, 6, 7]], ["flags"] * 9),
    *("9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00", "2026-01-01T00:00:00"),
    *("2026-01-01T00:00:00+23:59", "'-\"<&>", 10**5000),
)


def change_metadata(path, dice):
    """One member is something else."""
    name = dice.choice([*about(), "unknown"])
    value = dice.choice(VALUES)
    with contextlib.suppress(ValueError):  # a number of too many digits to write
        return write(path, metadata=about(**{name: value}))
    text = json.dumps(about(**{name: "here"})).replace('"here"', "1" + "0" * 5000)
    return write(path, metadata=text.encode())


def change_mapping(path, dice):
    """One member of a mapping, or of a resource."""
    of = dice.choice(("mappings", "resources"))
    changed = [list(each) for each in about()[of]]
    each = dice.choice(changed)
    values = [value for value in VALUES if value is not ... and value != 10**5000]
    each[dice.randrange(len(each))] = dice.choice(
        [*values, HEAP - PAGE, HEAP + 1, HEAP + 6000 * PAGE, 1 << 52, (1 << 63) - PAGE, "rwxs"]
    )
    write(path, metadata=about(**{of: changed}))


def many_members(path, dice):
    """Metadata as large as they may be, or larger."""
    nr = dice.choice((1_000, 50_000, 65_536, 65_537, 400_000))
    kind = dice.randrange(9)
    mapping = [0, 0, "rw-p", 0, "00:00", 0, ""]
    lists = [
        [[HEAP + i * PAGE, HEAP + (i + 1) * PAGE, *mapping[2:]] for i in range(nr)],
        [[HEAP + i * PAGE, HEAP + (i + 1) * PAGE, *mapping[2:6], f"/{i}"] for i in range(nr)],
        [[]] * nr,
        [{}] * nr,
        [""] * nr,
        [[i * 8192, i * 8192 + 4096, "System RAM", 0] for i in range(nr)],
    ]
    name = "resources" if kind == 5 else dice.choice(("mappings", "flag_bits", "unknown"))
    if kind < 2:
        name = "mappings"
    if kind < len(lists):
        return write(path, metadata=about(**{name: lists[kind]}))
    deep = b"[" * nr + b"]" * nr
    texts = (b'{"format":' + deep + b"}", b'{"a":1,' * nr + b"}" * nr, b"[" + b"0," * nr + b"0]")
    return write(path, metadata=texts[kind - len(lists)])


def wrong_metadata(path, dice):
    """Metadata that are no JSON, or cut off."""
    text = json.dumps(about()).encode()
    at = dice.randrange(len(text))
    write(
        path,
        metadata=dice.choice(
            (
                *(b"", b"{}", b"[]", b"null", b"1", b"\xff\xfe", None),
                *(text[:at], text + text, b'"' + text),
                text[:at] + bytes([dice.randrange(256)]) + text[at + 1 :],
            )
        ),
    )


def change_rows(path, dice):
    """A few values in rows."""
    columns = rows(dice.choice((1, 2, 300)))
    name = dice.choice([name for name in columns if name not in ("perms", "path")])
    bits = {"uint8": 8, "uint32": 32, "int32": 31}.get(TYPES[name], 64)
    values = [0, 1, 2, 3, None, PAGE, HEAP, HEAP + 1, HEAP + 4000 * PAGE, 1 << 40, 1 << 52, 1 << 63]
    values += [
        U64,
        PRESENT,
        PRESENT | (1 << 55) - 1,
        SWAP,
        SWAP | (1 << 55) - 1,
        dice.getrandbits(64),
    ]
    for _ in range(dice.choice((1, 1, 3, 300))):
        value = dice.choice(values)
        value = value if value is None else value & (1 << bits) - 1
        if name == "node" and value is not None and dice.random() < 0.3:
            value = -value
        columns[name][dice.randrange(len(columns[name]))] = value
    if name in ("pfn", "entry") and dice.random() < 0.5:  # both agree, so that more is looked at
        columns["entry"] = [PRESENT | (pfn or 1) & (1 << 55) - 1 for pfn in columns["pfn"]]
        columns["pfn"] = [entry & (1 << 55) - 1 for entry in columns["entry"]]
        columns["swap_type"] = columns["swap_offset"] = [None] * len(columns["pfn"])
    write(path, columns)


def order_rows(path, dice):
    """Rows in another order, or more than once."""
    columns = rows(300)
    order = list(range(len(columns["vaddr"])))
    kind = dice.randrange(4)
    if kind == 0:
        dice.shuffle(order)
    elif kind == 1:
        order.reverse()
    elif kind == 2:
        order = [at for at in order for _ in (0, 1)]
    else:
        at = dice.randrange(len(order) - 1)
        order[at], order[at + 1] = order[at + 1], order[at]
    columns = {name: [values[at] for at in order] for name, values in columns.items()}
    write(path, columns, row_group_size=dice.choice((1, 7, 100_000)))


def long_rows(path, dice):
    """Rows that name as many frames as there can be, each the same: valid, and much to draw."""
    nr = dice.choice((1, 100, 3_000))
    size = dice.choice((1, 1 << 19, 1 << 30, (1 << 40) // nr))
    starts = [HEAP + at * size * PAGE for at in range(nr)]
    place = dice.choice((0, 1, 16, 1 << 20))
    columns = {name: [None] * nr for name in TYPES} | {
        "vaddr": starts,
        "nr_pages": [size] * nr,
        "pfn": [place or None] * nr,
        "entry": [PRESENT | place] * nr,
        "mapping": [0] * nr,
        "perms": ["rw-p"] * nr,
        "path": [""] * nr,
    }
    mappings = [[HEAP, HEAP + nr * size * PAGE, "rw-p", 0, "00:00", 0, ""]]
    choices = [None, ..., [[0, PAGE, "System RAM", 0]], [[0, 1 << 52, "System RAM", 0]]]
    choices += [about()["resources"], [[0, 1 << 64, "System RAM", 0]]]
    choices.append([[i << 20, (i << 20) + PAGE, "System RAM", 0] for i in range(4_096)])
    choices.append([[i << 40, (i << 40) + PAGE, "System RAM", 0] for i in range(4_096)])
    write(path, columns, about(mappings=mappings, resources=dice.choice(choices)))


def many_rows(path, dice):
    """Many rows that take no room: they go on in the same way, and are packed by that."""
    import numpy as np

    nr = dice.choice((70_000, 300_000, 3_000_000))
    at = np.arange(nr, dtype=np.uint64)
    nothing = np.zeros(nr, dtype=np.uint64)
    columns = {
        "vaddr": np.uint64(HEAP) + at * np.uint64(2 * PAGE),
        "nr_pages": nothing + np.uint64(1),
        "pfn": at % np.uint64(1 << 18) * np.uint64(2) + np.uint64(16),
        "swap_type": np.zeros(nr, dtype=np.uint8),
        "swap_offset": nothing,
        "entry": nothing,
        "mapping": np.zeros(nr, dtype=np.uint32),
    }
    columns["entry"] = columns["pfn"] | np.uint64(PRESENT)
    if dice.random() < 0.3:
        columns["vaddr"] = nothing
    import pyarrow as pa

    empty = {"swap_type": pa.nulls(nr, pa.uint8()), "swap_offset": pa.nulls(nr, pa.uint64())}
    mappings = [[HEAP, HEAP + 2 * nr * PAGE, "rw-p", 0, "00:00", 0, ""]]
    options = dice.choice(
        (
            {},
            {"use_dictionary": True},
            {"compression": "gzip"},
            {"column_encoding": "DELTA_BINARY_PACKED", "use_dictionary": False},
        )
    )
    size = dice.choice((1 << 14, 1 << 16, 10_000_000))
    write(path, columns | empty, about(mappings=mappings), row_group_size=size, **options)


def change_columns(path, dice):
    """Columns that are missing, more, or of another type."""
    import pyarrow as pa

    columns = rows(100)
    name = dice.choice(list(columns))
    kind = dice.randrange(5)
    nr = len(columns["vaddr"])
    types = {}
    if kind == 0:
        del columns[name]
    elif kind == 1:
        columns["x" + name] = columns.pop(name)
    elif kind == 2:
        columns |= {f"more{i}": [0] * nr for i in range(dice.choice((1, 40, 70, 3_000)))}
    elif kind == 3:
        columns[name] = [[1]] * nr
        types[name] = dice.choice((pa.list_(pa.uint64()), pa.large_list(pa.uint64())))
    else:
        types[name] = dice.choice(
            (
                *(pa.int64(), pa.float64(), pa.uint16(), pa.string(), pa.binary(), pa.bool_()),
                *(pa.timestamp("us"), pa.decimal128(20), pa.int32(), pa.uint32(), pa.date32()),
            )
        )
        text = types[name] in (pa.string(), pa.binary())
        columns[name] = ["1" if text else 1] * nr
        if types[name] == pa.bool_():
            columns[name] = [True] * nr
    write(path, columns, types=types)


def other_ways(path, dice):
    """The same, written in other ways."""
    import pyarrow.parquet as pq

    options = dice.choice(
        (
            {"compression": "none"},
            {"compression": "snappy"},
            {"compression": "gzip"},
            {"compression": "brotli"},
            {"compression": "lz4"},
            {"data_page_version": "2.0"},
            {"use_dictionary": True},
            {"use_dictionary": False},
            {"write_page_checksum": True},
            {"write_page_index": True},
            {"data_page_size": 64},
            {"row_group_size": 1},
            {"row_group_size": 13},
            {"version": "1.0"},
            {"column_encoding": {"vaddr": "BYTE_STREAM_SPLIT"}, "use_dictionary": False},
            {"write_statistics": False},
            {"store_schema": False},
        )
    )
    if "store_schema" in options:
        found = table(rows(300), about())
        pq.write_table(found, path, compression="zstd", store_schema=False)
    else:
        write(path, **options)


def spoil_bytes(path, dice):
    """A valid file, of which bytes are others, missing or too many."""
    write(path, row_group_size=dice.choice((50, 100_000)), write_page_checksum=dice.random() < 0.5)
    data = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 1, 4))):
        at, size = dice.randrange(len(data)), dice.choice((1, 1, 4, 8, 100, 1000))
        kind = dice.randrange(5)
        if kind == 0:
            data[at : at + size] = dice.randbytes(min(size, len(data) - at))
        elif kind == 1:
            data[at : at + size] = bytes(min(size, len(data) - at))
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = dice.randbytes(size)
        else:
            data[at] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def change_footer(path, dice):
    """A footer that was taken apart, changed in one number, and put together again."""
    from physview.parquet.thrift import Reader

    write(path, row_group_size=dice.choice((50, 100_000)))
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - size
    footer = Reader(data[end:-8], budget=1_000_000).struct()
    value = dice.choice((0, 1, -1, 4, 77, 1 << 20, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1))
    group = dice.choice(footer[4])
    chunk = dice.choice(group[1])
    where = dice.choice((footer, group, group, chunk, *[chunk[3]] * 4, *footer[2]))
    numbers = [name for name, found in where.items() if type(found) is int]
    if numbers:
        where[dice.choice(numbers)] = value
    if dice.random() < 0.1:
        footer[4] *= dice.choice((2, 100, 5_000))
    path.write_bytes(data[:end] + _sealed(footer))


def bomb(path, dice):
    """Pages that unpack to much, or say that they do."""
    import pyarrow as pa

    from physview.parquet.thrift import I32Value, Reader, write_struct

    write(path)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - size
    footer = Reader(data[end:-8], budget=1_000_000).struct()
    chunk = dice.choice(footer[4][0][1][:3])[3]
    reader = Reader(data, chunk[9])
    page = reader.struct()
    huge = dice.choice((1 << 20, 1 << 26, 200 << 20, (1 << 31) - 1))
    codec = pa.Codec("zstd")
    packed = codec.compress(bytes(min(huge, 1 << 28)), asbytes=True)
    counts = {name: I32Value(value) for name, value in page[5].items() if type(value) is int}
    if dice.random() < 0.5:
        counts[1] = I32Value(dice.choice((huge // 8, page[5][1])))
    head = {1: I32Value(dice.choice((0, 0, 2))), 2: I32Value(huge), 3: I32Value(len(packed))}
    head[5 if head[1] == 0 else 7] = counts
    blob = write_struct(head) + packed
    chunk[9], chunk[7], chunk[6] = end, len(blob), huge
    if dice.random() < 0.5 and counts[1] != page[5][1]:
        footer[3] = footer[4][0][3] = int(counts[1])
    path.write_bytes(data[:end] + blob + _sealed(footer))


def _sealed(footer):
    """A footer as bytes, with what ends a file."""
    from physview.parquet.thrift import write_struct

    data = write_struct(_typed(footer))
    return data + len(data).to_bytes(4, "little") + b"PAR1"


def _typed(footer):
    """Give back to a footer the sizes of its numbers, which are lost in reading."""
    from physview.parquet.thrift import I32Value

    def i32(fields, *names):
        return {
            name: I32Value(value) if name in names and type(value) is int else value
            for name, value in fields.items()
            if type(value) is not bool
        }

    def column(chunk):
        inner = i32(chunk[3], 1, 4)
        inner[2] = [I32Value(each) for each in inner[2]]
        return {2: chunk[2], 3: {name: inner[name] for name in sorted(inner) if name < 12}}

    found = {1: I32Value(footer[1])}
    found[2] = [
        {name: value for name, value in i32(each, 1, 2, 3, 5, 6).items() if name < 10}
        for each in footer[2]
    ]
    found[3] = footer[3]
    found[4] = [
        {
            name: value
            for name, value in (group | {1: [column(c) for c in group[1]]}).items()
            if name < 4
        }
        for group in footer[4]
    ]
    found[5] = footer[5]
    return found


def huge_footer(path, dice):
    """A footer that is large, or has much in little room."""
    from physview.parquet.thrift import Reader

    write(path)
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    end = len(data) - 8 - size
    footer = Reader(data[end:-8], budget=1_000_000).struct()
    kind = dice.randrange(4)
    nr = dice.choice((10_000, 300_000))
    if kind == 0:
        footer[5] += [{1: b"k", 2: b"v"}] * nr
    elif kind == 1:
        footer[5].append({1: b"k", 2: bytes(dice.choice((1, 40)) << 20)})
    elif kind == 2:
        footer[2] += [{4: b"more%d" % i} for i in range(nr)]
    if kind < 3:
        path.write_bytes(data[:end] + _sealed(footer))
        return
    # Columns of which nothing is told take three bytes each.
    groups = b"\x4c\xf8" if dice.random() < 0.5 else b"\x3c\xf8"
    blob = b"\x15\x04\x19\x1c\x48\x01s\x15\x02\x00\x16\x02\x19" + groups[1:] + b"\xff\xff\xff\x7f"
    blob += b"\x19\xfc\xff\xff\x3f" + b"\x26\x00\x00" * nr
    path.write_bytes(data[:end] + blob + len(blob).to_bytes(4, "little") + b"PAR1")


KINDS = (
    *(change_metadata, change_metadata, change_mapping, change_mapping, wrong_metadata),
    *(change_rows, change_rows, order_rows, long_rows, change_columns, other_ways),
    *(spoil_bytes, spoil_bytes, change_footer, change_footer, bomb, huge_footer),
)
# These take a second each to make or to look at: one file in a hundred.
SLOW_KINDS = (many_members, many_rows)


def make(folder, nr, seed):
    """Write so many files, and one that is valid."""
    write(folder / "valid.parquet")
    for number in range(nr):
        dice = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        if number % 50 == 49:
            kind = SLOW_KINDS[number // 50 % len(SLOW_KINDS)]
        kind(folder / f"{number:04}-{kind.__name__}.parquet", dice)


def look(path, valid):
    """Do with a file all that commands do; whether it was refused, and how."""
    from physview import pictures
    from physview.analysis import changes
    from physview.errors import PhysviewError
    from physview.parquet.snapshot_file import SnapshotFile
    from physview.pictures.layout import lay_out
    from physview.pictures.svg import to_svg
    from physview.reporters import diff as reporter

    every = frozenset(changes.Change)
    try:
        with SnapshotFile(str(path)) as file, SnapshotFile(str(valid)) as other:
            nr_rows = sum(len(batch) for batch in file.iter_extents())
            assert nr_rows == file.nr_extents
            for pair in ((file, other), (other, file)):
                found = changes.diff(*pair)
                reporter.print_table(*pair, found, changes.iter_changes(*pair), every)
                reporter.print_document(*pair, found, None, every)
                moves = pictures.read_moves(*pair)
                to_svg(lay_out(pictures.picture_moves(moves, *pair))[0], theme="auto").encode()
    except PhysviewError as error:
        return str(error).partition(": ")[2]
    return ""


def peak_kib():
    """The peak of this program's memory; ru_maxrss would begin with that of who started it."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().split("\n") if line[:6] == "VmHWM:"
    )
    return int(line[6:-2])


def check(folder):
    """Look at all files, in this process."""
    outcomes, slowest = {}, (0.0, "")
    valid = folder / "valid.parquet"
    peaks = {}
    for path in sorted(folder.glob("*.parquet")):
        begin = time.monotonic()
        try:
            with (
                open(os.devnull, "w", errors="surrogateescape") as null,
                contextlib.redirect_stdout(null),
            ):
                outcomes[path.name] = look(path, valid)
        except BaseException as error:
            outcomes[path.name] = f"{type(error).__name__}: {traceback.format_exc(limit=-2)}"
        slowest = max(slowest, (round(time.monotonic() - begin, 2), path.name))
        peaks[path.name] = peak_kib()
    crashed = {name: why for name, why in outcomes.items() if "Traceback" in why}
    before, most = 0, []
    for name, peak in peaks.items():
        if peak > before + 1024:
            most.append((name, peak >> 10))
        before = max(before, peak)
    document = {
        "nr_files": len(outcomes),
        "nr_refused": sum(bool(why) for why in outcomes.values()) - len(crashed),
        "nr_accepted": sum(not why for why in outcomes.values()),
        "valid": outcomes["valid.parquet"],
        "crashed": crashed,
        "peak_mib": before >> 10,
        "growth": most[-5:],
        "slowest": slowest,
        "whys": Counter(why.partition("(")[2][:50] or why[:50] for why in outcomes.values() if why),
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
        check(Path(sys.argv[2]))
