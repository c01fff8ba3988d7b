# SPDX-License-Identifier: GPL-2.0-or-later
"""Well-formed Parquet files with contents that no snapshot has."""

from __future__ import annotations

import contextlib
import json

from snapshot_maker import HEAP, PAGE, PRESENT, SWAP, TYPES, U64, about, rows, table, write

VALUES = (
    *(..., None, True, False, 0, 1, -1, 1 << 31, 1 << 63, U64, 1 << 64, 1 << 200, 0.5, 1e300),
    *(float("nan"), "", "x", "a" * 300, "a" * 100_000, "\x1b[2J\x07", "\ud800", "\udcff", "a\0b"),
    *([], [[]], [None], {}, {"a": {}}, [1, 2], [[1, 2, 3, 4, 5, 6, 7]], ["flags"] * 9),
    *("9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+00:00", "2026-01-01T00:00:00"),
    *("2026-01-01T00:00:00+23:59", "'-\"<&>", 10**5000),
)


def change_metadata(path, dice):
    """Another value, or none, for one member of the metadata."""
    name = dice.choice([*about(), "unknown"])
    value = dice.choice(VALUES)
    with contextlib.suppress(ValueError):  # Python refuses to write so many digits
        return write(path, metadata=about(**{name: value}))
    text = json.dumps(about(**{name: "here"})).replace('"here"', "1" + "0" * 5000)
    return write(path, metadata=text.encode())


def change_mapping(path, dice):
    """Another value for one member of a mapping or of a resource."""
    of = dice.choice(("mappings", "resources"))
    changed = [list(each) for each in about()[of]]
    each = dice.choice(changed)
    values = [value for value in VALUES if value is not ... and value != 10**5000]
    each[dice.randrange(len(each))] = dice.choice(
        [*values, HEAP - PAGE, HEAP + 1, HEAP + 6000 * PAGE, 1 << 52, (1 << 63) - PAGE, "rwxs"]
    )
    write(path, metadata=about(**{of: changed}))


def many_members(path, dice):
    """Metadata at the limit of their size, or beyond it."""
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
    """Metadata that are no JSON, or truncated JSON."""
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
    """Other values in some rows of one column."""
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
    if name in ("pfn", "entry") and dice.random() < 0.5:  # consistent columns pass the first checks
        columns["entry"] = [PRESENT | (pfn or 1) & (1 << 55) - 1 for pfn in columns["pfn"]]
        columns["pfn"] = [entry & (1 << 55) - 1 for entry in columns["entry"]]
        columns["swap_type"] = columns["swap_offset"] = [None] * len(columns["pfn"])
    write(path, columns)


def order_rows(path, dice):
    """Rows in another order, or duplicated rows."""
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
    """Few rows with very many frames: valid, and a lot to draw."""
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
    """Many rows in a small file: regular columns compress well."""
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
    """Columns that are missing, additional, or of another type."""
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
    """Valid contents with other options of the Parquet writer."""
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
