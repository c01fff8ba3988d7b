# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads /proc/PID/maps, smaps and smaps_rollup as columns, a bounded number of mappings at a time.

A process can have millions of mappings. `MemoryMap` (procfs.py) holds all of them, with look-ups by
address; this module streams.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from physview import _ffi
from physview.files.descriptor import Descriptor
from physview.model import Vma
from physview.sources.procfs import ESCAPED_NEWLINE, ProcDir
from physview.text import proctext

SIZES = (
    "Rss",
    "Pss",
    "Pss_Dirty",
    "Shared_Clean",
    "Shared_Dirty",
    "Private_Clean",
    "Private_Dirty",
    "Referenced",
    "Anonymous",
    "KSM",
    "LazyFree",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Shared_Hugetlb",
    "Private_Hugetlb",
    "Swap",
    "SwapPss",
    "Locked",
    "THPeligible",
)
"""The values of smaps that are read. All but THPeligible are sizes."""

HUGETLB = ("Shared_Hugetlb", "Private_Hugetlb")
"""The sizes of pages of hugetlbfs, which Rss does not count."""
BY_PMD = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
"""The sizes of other memory that is mapped by PMD."""

_PACKED_SIZES = b"".join(name.encode().ljust(24, b"\0") for name in SIZES)
NO_VALUE = (1 << 64) - 1
"""The value of a line that the kernel does not write, as KSM before Linux 6.6."""

MAX_MAPPINGS = 1024
# The first text is short, so that the first mappings are known at once.
FIRST_BYTES = {"maps": 1 << 12, "smaps": 1 << 14, "smaps_rollup": 1 << 12}
NEXT_BYTES = {"maps": 1 << 16, "smaps": 1 << 20, "smaps_rollup": 1 << 12}


def swap_is_used() -> bool:
    """Whether the machine has swapped out anything. Source: /proc/swaps"""
    areas = proctext.lines(proctext.read_or_empty("/proc/swaps"))[1:]
    # The line ends with type, size, used and priority. Tabs and blanks pad it.
    return any(words[-2] != b"0" for words in (proctext.words(area, b" \t") for area in areas))


class Mappings:
    """Some successive mappings of a process, in address order, as columns.

    Args:
        proc: The process.
        text: The text of these mappings in maps or smaps.
        columns: `uint64_t *`, the columns of `pv_parse_mappings()` (csrc/cdef.h).
        stride: The number of values from one column to the next.
        nr: The number of mappings.
        has_sizes: Whether the text is that of smaps.
    """

    def __init__(
        self, proc: ProcDir, text: bytes, columns: Any, stride: int, nr: int, *, has_sizes: bool
    ) -> None:
        self._ffi, self._lib = _ffi.load()
        self._proc = proc
        self._columns = columns
        self._stride = stride
        self._sizes: dict[str, list[int | None]] = {}
        self.text = text
        self.nr = nr
        self.has_sizes = has_sizes
        self.starts = self.column(self._lib.PV_MAP_START)
        self.ends = self.column(self._lib.PV_MAP_END)

    def cut(self, nr: int) -> None:
        """Keep only the first mappings."""
        self.nr = nr
        self._sizes.clear()
        del self.starts[nr:], self.ends[nr:]

    def pointer(self, number: int) -> Any:
        """The column with this number, as `uint64_t *`."""
        return self._columns + number * self._stride

    def column(self, number: int) -> list[int]:
        """The column with this number (PV_MAP_* in csrc/cdef.h)."""
        values: list[int] = self._ffi.unpack(self.pointer(number), self.nr)
        return values

    def sizes(self, name: str) -> list[int | None]:
        """A value of smaps for each mapping, in bytes; None where the kernel does not write it.

        Args:
            name: One of SIZES.
        """
        if name not in self._sizes:
            values = self.column(self._lib.PV_MAP_SIZES + SIZES.index(name))
            unit = 1 if name == "THPeligible" else 1024
            self._sizes[name] = [None if value == NO_VALUE else value * unit for value in values]
        return self._sizes[name]

    def perms(self) -> list[str]:
        """The permissions of each mapping, such as "rw-p"."""
        values = self.column(self._lib.PV_MAP_PERMS)
        words = {value: value.to_bytes(4, "little").decode("ascii") for value in set(values)}
        return [words[value] for value in values]

    def offsets(self) -> list[int]:
        """The offset of each mapping in its file, in bytes."""
        return self.column(self._lib.PV_MAP_OFFSET)

    def inodes(self) -> list[int]:
        """The inode of each mapping's file; 0 without a file."""
        return self.column(self._lib.PV_MAP_INODE)

    def devices(self) -> list[str]:
        """The device of each mapping's file, "major:minor" in hexadecimal, as in maps."""
        values = self.column(self._lib.PV_MAP_DEVICE)
        return [f"{value >> 32:02x}:{value & 0xFFFFFFFF:02x}" for value in values]

    def raw_names(self) -> list[bytes]:
        """The name of each mapping as the kernel writes it."""
        text = self.text
        begins = self.column(self._lib.PV_MAP_NAME)
        lengths = self.column(self._lib.PV_MAP_NAME_LENGTH)
        return [text[at : at + length] for at, length in zip(begins, lengths, strict=True)]

    def names(self) -> list[str]:
        """The name of each mapping: a path, a name such as "[heap]", or an empty text."""
        raw = self.raw_names()
        decoded = {name: os.fsdecode(name) for name in set(raw)}
        names = [decoded[name] for name in raw]
        for index, name in enumerate(names):
            if ESCAPED_NEWLINE in name:  # ambiguous
                names[index] = self._proc.exact_path(self.starts[index], self.ends[index], name)
        return names

    def flags(self) -> list[str]:
        """The value of VmFlags of each mapping, such as "rd mr mw me"; empty without smaps."""
        text = self.text
        begins = self.column(self._lib.PV_MAP_FLAGS)
        lengths = self.column(self._lib.PV_MAP_FLAGS_LENGTH)
        return [
            text[at : at + length].decode("ascii", "replace").strip(" ") if length else ""
            for at, length in zip(begins, lengths, strict=True)
        ]

    def vmas(self) -> list[Vma]:
        """Each mapping as a Vma."""
        return [
            Vma(*fields)
            for fields in zip(
                self.starts,
                self.ends,
                self.perms(),
                self.offsets(),
                self.devices(),
                self.inodes(),
                self.names(),
                strict=True,
            )
        ]


class MappingReader(Descriptor):
    """Reads the mappings of a process in chunks. A context manager.

    Args:
        proc: The process.
        name: The file: "maps", "smaps" or "smaps_rollup". Reading smaps walks the page tables.

    Raises:
        PhysviewError: As `ProcDir.open()`.
    """

    def __init__(self, proc: ProcDir, name: str = "maps") -> None:
        self._ffi, self._lib = _ffi.load()
        self._allocate = self._ffi.new_allocator(should_clear_after_alloc=False)
        self._proc = proc
        self._name = name
        self._fd = proc.open(name)

    def iter_chunks(self) -> Iterator[Mappings]:
        """Yield all mappings, up to MAX_MAPPINGS at a time.

        Raises:
            PhysviewError: The file cannot be read, or the process is gone.
        """
        text, last_end, is_last, nr_all = b"", 0, False, 0
        room = FIRST_BYTES[self._name]
        while not is_last or text:
            if not is_last and len(text) < room:
                more = self._read(room - len(text))
                is_last = len(more) < room - len(text)
                text += more
            chunk, used = self._parse(text, last_end, is_last)
            text = text[used:]
            if chunk.nr:
                nr_all += chunk.nr
                last_end = chunk.ends[-1]
                room = NEXT_BYTES[self._name]
                yield chunk
            elif is_last:
                break
            else:
                room *= 2  # the text has not even one mapping
        if not nr_all:  # every living process has a mapping
            raise self._proc.error(ProcessLookupError(errno.ESRCH, ""), self._name)

    def _read(self, room: int) -> bytes:
        buffer = self._allocate("char[]", room)
        got = self._lib.pv_read_more(self._fd, buffer, room)
        if got < 0:
            raise self._proc.error(OSError(-got, ""), self._name)
        return bytes(self._ffi.buffer(buffer, got))

    def _parse(self, text: bytes, last_end: int, is_last: bool) -> tuple[Mappings, int]:
        has_sizes = self._name != "maps"
        names = _PACKED_SIZES if has_sizes else b""
        nr_names = len(SIZES) if has_sizes else 0
        stride = 1 if self._name == "smaps_rollup" else MAX_MAPPINGS
        columns = self._allocate("uint64_t[]", (self._lib.PV_MAP_SIZES + nr_names) * stride)
        used = self._ffi.new("uint64_t *")
        nr = self._lib.pv_parse_mappings(
            self._ffi.from_buffer(text),
            len(text),
            is_last,
            last_end,
            self._ffi.from_buffer(names),
            nr_names,
            columns,
            stride,
            used,
        )
        _ffi.check(nr, f"{self._proc.path}/{self._name}")
        part = text[: used[0]]
        return Mappings(self._proc, part, columns, stride, nr, has_sizes=has_sizes), int(used[0])
