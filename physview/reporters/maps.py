# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's mappings, as a table and as a JSON document (docs/json.md).

Each line is printed as soon as it is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from physview.analysis.usage import KINDS, Folios, Sizes, Usage
from physview.model import Vma, printable
from physview.reporters.documents import errors_member, mapping
from physview.units import cut, short_size, terminal_width

MIN_NAME = 12


class MapsColumn(NamedTuple):
    """A column of numbers in the table of `maps`.

    Args:
        title: The column's title.
        width: Width in characters.
        rank: The columns with the highest rank are left out first if the terminal is narrow.
        value: Makes the cell's text.
    """

    title: str
    width: int
    rank: int
    value: Callable[[Usage], str]


def _count(number: int | None) -> str:
    return "?" if number is None else str(number) if number else "-"


def _mean(usage: Usage) -> str:
    return "-" if usage.nr_extents == 0 else short_size(usage.mean_bytes)


def _alignment(usage: Usage) -> str:
    return "-" if usage.nr_extents == 0 else short_size(usage.alignment_bytes)


def _coverage(usage: Usage) -> str:
    """Format the share of resident memory in contiguous and aligned blocks of 64 KiB or more."""
    present = usage.resident_bytes + usage.hugetlb_bytes
    if usage.contiguous is None:
        return "?"
    return f"{usage.contiguous.get(65536, 0) / present:.0%}" if present else "-"


def _nodes(usage: Usage) -> str:
    if usage.nodes is None:
        return "?"
    if len(usage.nodes) == 1:
        return f"N{next(iter(usage.nodes))}"
    return ",".join(f"N{node}={short_size(size)}" for node, size in usage.nodes.items()) or "-"


COLUMNS = (
    MapsColumn("size", 5, 0, lambda usage: short_size(usage.size_bytes)),
    MapsColumn("rss", 5, 0, lambda usage: short_size(usage.resident_bytes)),
    MapsColumn("swap", 5, 0, lambda usage: short_size(usage.swapped_bytes)),
    MapsColumn("shared", 6, 0, lambda usage: short_size(usage.shared_bytes)),
    MapsColumn("excl", 5, 3, lambda usage: short_size(usage.exclusive_bytes)),
    MapsColumn("zero", 5, 4, lambda usage: short_size(usage.zero_bytes)),
    MapsColumn("huge", 5, 1, lambda usage: short_size(usage.huge_bytes)),
    MapsColumn("folios", 6, 0, lambda usage: short_size(usage.thp_bytes)),
    MapsColumn("extents", 7, 0, lambda usage: _count(usage.nr_extents)),
    MapsColumn("mean", 5, 1, _mean),
    MapsColumn("largest", 7, 0, lambda usage: short_size(usage.largest_bytes)),
    MapsColumn("align", 5, 3, _alignment),
    MapsColumn("64K", 4, 2, _coverage),
    MapsColumn("nodes", 5, 4, _nodes),
)


class MapsTable:
    """Prints the table of `maps`.

    Args:
        rollup: Print a line per process, not per mapping.
        several: Whether there may be more than one process.
    """

    def __init__(self, *, rollup: bool, several: bool) -> None:
        self._rollup = rollup
        self._several = several
        self._width = terminal_width()
        self._title = ("", "")
        head = 14 if not rollup else 7
        head += 0 if rollup else 5
        # Show as many ranks as leave enough room for the mapping's name.
        for rank in range(max(column.rank for column in COLUMNS), -1, -1):
            self._columns = [column for column in COLUMNS if column.rank <= rank]
            used = head + sum(column.width + 1 for column in self._columns)
            if used + 1 + MIN_NAME + 3 * rank <= self._width:
                break
        self._room = max(MIN_NAME, self._width - used - 1)
        self._nr_processes = 0

    def begin_process(self, pid: int, name: str) -> None:
        """Print the heading of a process."""
        name = printable(name)
        self._title = f"{pid:>7}", name
        self._nr_processes += 1
        if not self._rollup and self._several:
            separator = "\n" if self._nr_processes > 1 else ""
            sys.stdout.write(f"{separator}process {pid} ({name})\n")
        if not self._rollup or self._nr_processes == 1:
            self._line("    pid" if self._rollup else f"{'start':<14} perm", None, "")

    def add_mapping(self, usage: Usage) -> None:
        """Print the line of a mapping."""
        vma = usage.vma
        if self._rollup or vma is None:
            return
        self._line(f"{vma.start:#014x} {vma.perms}", usage, self._name(vma))

    def end_process(self, total: Usage | None, why: str = "") -> None:
        """Print the line of a process.

        Args:
            total: The sums; None if the process could not be read to the end.
            why: Why it could not.
        """
        if total is None:
            words = f"{self._title[0]} {self._title[1]}: {printable(why)}"
            sys.stdout.write(f"{words if self._rollup else words.strip()}\n")
        elif self._rollup:
            self._line(self._title[0], total, self._title[1])
        else:
            self._line(f"{'total':<19}", total, _mappings(total.nr_vmas))

    def end(self, total: Usage) -> None:
        """Print the totals of all processes."""
        if self._nr_processes > 1:
            head = "  total" if self._rollup else f"\n{'all':<19}"
            self._line(head, total, f"{self._nr_processes} processes")
        if self._nr_processes and total.contiguous is not None:
            sys.stdout.write("".join(f"{line}\n" for line in coverage_lines(total)))

    def _name(self, vma: Vma) -> str:
        name = printable(vma.path) or "[anonymous]"
        if len(name) > self._room and "/" in name:
            name = name.removesuffix(" (deleted)").rpartition("/")[2]
        return cut(name, self._room)

    def _line(self, head: str, usage: Usage | None, name: str) -> None:
        cells = [
            (column.value(usage) if usage else column.title).rjust(column.width)
            for column in self._columns
        ]
        sys.stdout.write(f"{' '.join([head, *cells])} {name}".rstrip() + "\n")


def _mappings(nr: int) -> str:
    return "1 mapping" if nr == 1 else f"{nr} mappings"


def coverage_lines(total: Usage) -> list[str]:
    """Make the lines that say how much is contiguous and how much is in large folios.

    Contiguous memory is listed by the size of the block, large folios by how they are mapped.
    """
    present = total.resident_bytes + total.hugetlb_bytes
    lines = []
    if total.contiguous:
        lines.append("")
        lines.append("in contiguous blocks of at least this size, aligned to it in both spaces")
        lines += _wrapped(_shares(total.contiguous, present))
    folios = total.folios or {}
    for kind in KINDS:
        found = folios.get(kind)
        if found and found.total_bytes:
            lines.append("")
            share = _percent(found.total_bytes, present)
            lines.append(f"in large folios, {kind}: {short_size(found.total_bytes)} {share}")
            lines += _folio_lines(found, present)
    return lines


def _folio_lines(folios: Folios, present: int) -> Iterable[str]:
    single = (("mapped by PMD", folios.pmd_bytes), ("mapped in part", folios.partial_bytes))
    by_size = (
        ("by PTE, aligned", folios.aligned),
        ("by PTE, unaligned", folios.unaligned),
        ("contiguous blocks within", folios.contiguous),
    )
    for title, size in single:
        if size:
            yield f"  {title}: {short_size(size)} {_percent(size, present)}"
    for title, sizes in by_size:
        if sizes:
            yield f"  {title}:"
            yield from _wrapped(_shares(sizes, present), indent=4)


def _shares(sizes: Sizes, present: int) -> list[str]:
    return [
        f"{short_size(size):>4}: {short_size(nr):>5} {_percent(nr, present):<7}"
        for size, nr in sorted(sizes.items())
    ]


def _percent(part: int, whole: int) -> str:
    return f"({part / whole:.1%})" if whole else ""


def _wrapped(cells: list[str], *, indent: int = 2) -> Iterable[str]:
    per_line = max(1, (min(terminal_width(), 120) - indent) // 22)
    for at in range(0, len(cells), per_line):
        yield (" " * indent + "  ".join(cells[at : at + per_line])).rstrip()


SIZES = (
    "size_bytes",
    "resident_bytes",
    "swapped_bytes",
    "special_bytes",
    "exclusive_bytes",
    "shared_bytes",
    "zero_bytes",
    "hugetlb_bytes",
    "huge_bytes",
    "anon_huge_bytes",
    "nr_extents",
    "mean_bytes",
    "largest_bytes",
)


def usage(item: Usage) -> dict[str, Any]:
    """Make the members of the JSON document for a mapping or for a total."""
    document = {name: getattr(item, name) for name in SIZES}
    document["largest_vaddr"] = None if item.largest_vaddr is None else hex(item.largest_vaddr)
    document["alignment_bytes"] = item.alignment_bytes
    document["contiguous"] = _by_name(item.contiguous)
    document["folios"] = (
        {kind: _folios(found) for kind, found in item.folios.items()} if item.folios else None
    )
    document["nodes"] = _by_name(item.nodes)
    return document


def _by_name(sizes: Sizes | None) -> dict[str, int] | None:
    return None if sizes is None else {str(key): size for key, size in sorted(sizes.items())}


def _folios(found: Folios) -> dict[str, Any]:
    return {
        "pmd_bytes": found.pmd_bytes,
        "aligned": _by_name(found.aligned),
        "unaligned": _by_name(found.unaligned),
        "partial_bytes": found.partial_bytes,
        "contiguous": _by_name(found.contiguous),
    }


class MapsDocument:
    """Prints the JSON document of `maps`.

    Its form is {"processes": [{"pid", "name", "mappings", "total"}], "total"}.

    Args:
        rollup: Leave out the mappings: "mappings" is null.
    """

    def __init__(self, *, rollup: bool) -> None:
        self._rollup = rollup
        self._separator = '{"processes": ['
        self._inner = ""

    def begin_process(self, pid: int, name: str) -> None:
        """Print the first members of a process."""
        head = json.dumps({"pid": pid, "name": name})[:-1]
        sys.stdout.write(f'{self._separator}\n{head}, "mappings": ')
        sys.stdout.write("null" if self._rollup else "[")
        self._separator, self._inner = ",", ""

    def add_mapping(self, item: Usage) -> None:
        """Print a mapping."""
        if not self._rollup:
            document = {"mapping": mapping(item.vma), **usage(item)}
            sys.stdout.write(f"{self._inner}\n{json.dumps(document)}")
            self._inner = ","

    def end_process(self, total: Usage | None, why: str = "") -> None:
        """Print a process's total. The arguments are those of `MapsTable.end_process()`."""
        end = "" if self._rollup else "\n]"
        sys.stdout.write(f'{end}, "total": {json.dumps(total and usage(total))}}}')

    def end(self, total: Usage) -> None:
        """Print the total of all processes, and the end of the document."""
        begin = "" if self._separator == "," else self._separator
        end = f'\n], "total": {json.dumps(usage(total))}, {errors_member()}}}\n'
        sys.stdout.write(begin + end)
