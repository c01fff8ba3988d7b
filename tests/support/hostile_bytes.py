# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot files with wrong bytes: random changes, changed footers, and decompression bombs."""

from __future__ import annotations

from snapshot_maker import write


def spoil_bytes(path, dice):
    """A valid file in which random bytes are changed, removed or added."""
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
    """A footer with one changed number. The rest of the footer is valid."""
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
    path.write_bytes(data[:end] + sealed(footer))


def bomb(path, dice):
    """Decompression bombs: pages that are large when unpacked, or whose header says so."""
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
    path.write_bytes(data[:end] + blob + sealed(footer))


def huge_footer(path, dice):
    """A footer that is large, or whose few bytes stand for many objects."""
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
        path.write_bytes(data[:end] + sealed(footer))
        return
    # A column without any fields takes three bytes.
    groups = b"\x4c\xf8" if dice.random() < 0.5 else b"\x3c\xf8"
    blob = b"\x15\x04\x19\x1c\x48\x01s\x15\x02\x00\x16\x02\x19" + groups[1:] + b"\xff\xff\xff\x7f"
    blob += b"\x19\xfc\xff\xff\x3f" + b"\x26\x00\x00" * nr
    path.write_bytes(data[:end] + blob + len(blob).to_bytes(4, "little") + b"PAR1")


def sealed(footer):
    """The end of a file: the footer as bytes, its length, and the magic number."""
    from physview.parquet.thrift import write_struct

    data = write_struct(_typed(footer))
    return data + len(data).to_bytes(4, "little") + b"PAR1"


def _typed(footer):
    """The footer with typed numbers: Reader does not keep the sizes of integers."""
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
