# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's frames, as tables and as a JSON document (docs/json.md).

The tables are made without rich: its import takes a tenth of the time that reading all frames
takes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from physview.frames.machine import MachineFrames, Use, ZoneFrames, by_use
from physview.model import NO_ENTRY, PAGE_SHIFT, PAGE_SIZE
from physview.sources.page_flags import flag_names, well_known
from physview.units import PIPE_WIDTH, cut, pages_size, share, size_words, terminal_width

NR_FLAGS_SHOWN = 10
WIDE = 120


def table_width() -> int | None:
    """Return the maximum width of a table: the terminal's width; None if stdout is no terminal.

    In a pipe or a file it is None even if COLUMNS is set.
    """
    return terminal_width() if sys.stdout.isatty() else None


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int]) -> None:
    """Print a table. On a terminal, a line that is too long is cut off, with an ellipsis.

    Args:
        header: Titles of the columns.
        rows: Cells of each row.
        left: Indices of the columns that are flush left. The others are flush right.
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    is_left = set(left)
    edge = table_width()
    for line in lines:
        cells = [
            cell.ljust(width) if i in is_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = "  ".join(cells).rstrip()
        sys.stdout.write((text if edge is None else cut(text, edge)) + "\n")


def print_machine(machine: MachineFrames, *, all_flags: bool, raw: bool) -> None:
    """Print the tables of frames.

    Args:
        machine: All frames.
        all_flags: Whether to show every combination of flags, with its value.
        raw: Whether to keep combinations apart that differ only in flags that are not shown.
    """
    counts = machine.counts
    uses = by_use(counts)
    nr_all = machine.nr_frames
    nr_mapped = sum(mapped for _, mapped in uses.values())
    sys.stdout.write(
        f"{pages_size(nr_all)} of RAM, {nr_all} frames of {size_words(PAGE_SIZE)}; processes map"
        f" {pages_size(nr_mapped)} of it, {share(nr_mapped, nr_all)}\n\n"
    )
    _write_uses(uses, nr_all)
    nr_unmanaged = machine.nr_unmanaged
    if nr_unmanaged > nr_all / 100:
        sys.stdout.write(
            f"{pages_size(nr_unmanaged)} were never given to the page allocator: reserved, or"
            " other\n"
        )
    if machine.nr_offline:
        sys.stdout.write(f"{pages_size(machine.nr_offline)} more are offline\n")
    sys.stdout.write("\n")
    _write_zones(machine.zones)
    sys.stdout.write("\nnumber of free blocks of each size\n")
    _write_blocks(machine.zones)
    sys.stdout.write("\n")
    _write_flags(counts, nr_all, all_flags=all_flags, raw=raw)


def _write_uses(uses: dict[Use, tuple[int, int]], nr_all: int) -> None:
    edge = table_width()
    is_wide = edge is None or edge >= WIDE
    header = ["used for", "frames", "size", "share", "mapped", "flags"]
    rows = []
    for use, (nr, mapped) in sorted(uses.items(), key=lambda item: -item[1][0]):
        row = [use.value, str(nr), pages_size(nr), share(nr, nr_all), share(mapped, nr), use.rule]
        rows.append([*row, use.text] if is_wide else row)
    write_table([*header, "meaning"] if is_wide else header, rows, (0, 5, 6))


def _write_zones(zones: Sequence[ZoneFrames]) -> None:
    header = ["node", "zone", "frames", "size", "managed", "free", "share", "mapped"]
    rows = []
    for found in zones:
        uses = by_use(found.counts)
        nr = sum(found.counts.values())
        mapped = sum(mapped for _, mapped in uses.values())
        zone = found.zone
        nr_free = zone.nr_free if zone else 0
        rows.append(
            [
                str(zone.node) if zone else "-",
                zone.name if zone else "none",
                str(nr),
                pages_size(nr),
                pages_size(zone.nr_managed if zone else 0),
                pages_size(nr_free),
                share(nr_free, nr),
                share(mapped, nr),
            ]
        )
    write_table(header, rows, (1,))


def _write_blocks(zones: Sequence[ZoneFrames]) -> None:
    """Print the number of free blocks of each size, which shows how fragmented free memory is."""
    with_blocks = [found for found in zones if found.zone and found.free_blocks]
    nr_orders = max((len(found.free_blocks) for found in with_blocks), default=0)
    sizes = [
        size_words(PAGE_SIZE << order).replace(" ", "").rstrip("B") for order in range(nr_orders)
    ]
    rows = [
        [str(found.zone.node), found.zone.name, *map(str, found.free_blocks)]
        for found in with_blocks
        if found.zone
    ]
    write_table(["node", "zone", *(each.rstrip("i") for each in sizes)], rows, (1,))


def _write_flags(counts: Counter[int], nr_all: int, *, all_flags: bool, raw: bool) -> None:
    shown = counts if raw else folded(counts)
    rows = [
        [str(nr), pages_size(nr), share(nr, nr_all), hex(flags), ",".join(flag_names(flags)) or "-"]
        for flags, nr in sorted(shown.items(), key=lambda item: (-item[1], item[0]))
    ]
    nr_left = 0 if all_flags else max(0, len(rows) - NR_FLAGS_SHOWN)
    header = ["frames", "size", "share", "value", "flags"]
    if not all_flags:  # leave out the values, so that the names fit
        header, *rows = ([*row[:3], row[4]] for row in [header, *rows])
    write_table(header, rows[: len(rows) - nr_left], (len(header) - 1,))
    if nr_left:
        sys.stdout.write(f"… and {nr_left} more combinations: --all-flags shows all\n")


def folded(counts: dict[int, int]) -> Counter[int]:
    """Merge counts whose flags differ only in flags that page-types does not show."""
    found: Counter[int] = Counter()
    for flags, nr in counts.items():
        found[flags if flags == NO_ENTRY else well_known(flags)] += nr
    return found


def machine_document(machine: MachineFrames) -> dict[str, Any]:
    """Make the JSON document of frames (docs/json.md)."""
    counts = machine.counts
    return {
        "source": machine.source,
        "page_size_bytes": PAGE_SIZE,
        "nr_frames": machine.nr_frames,
        "nr_offline": machine.nr_offline,
        "ram": [
            {"start": hex(first << PAGE_SHIFT), "end": hex(end << PAGE_SHIFT)}
            for first, end in machine.ram
        ],
        "uses": _uses_document(counts),
        "zones": [
            {
                "node": found.zone.node if found.zone else None,
                "zone": found.zone.name if found.zone else None,
                "start_pfn": found.zone.start_pfn if found.zone else None,
                "start": hex(found.zone.start_pfn << PAGE_SHIFT) if found.zone else None,
                "nr_spanned": found.zone.nr_spanned if found.zone else None,
                "nr_present": found.zone.nr_present if found.zone else None,
                "nr_managed": found.zone.nr_managed if found.zone else None,
                "nr_free": found.zone.nr_free if found.zone else None,
                "nr_frames": sum(found.counts.values()),
                "free_blocks": found.free_blocks,
                "uses": _uses_document(found.counts),
            }
            for found in machine.zones
        ],
        "flags": _flags_document(counts),
    }


def _flags_document(counts: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {"value": hex(flags), "names": flag_names(flags), "nr_frames": nr}
        for flags, nr in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def selection_document(counts: dict[int, int], source: str) -> dict[str, Any]:
    """Make the JSON document of some frames (docs/json.md).

    Args:
        counts: Number of frames by their value in kpageflags.
        source: Who told the flags: "kpageflags", "bpf", or "copy".
    """
    return {
        "source": source,
        "page_size_bytes": PAGE_SIZE,
        "nr_frames": sum(counts.values()),
        "uses": _uses_document(counts),
        "flags": _flags_document(counts),
    }


def print_selection(counts: Counter[int], *, all_flags: bool, raw: bool) -> None:
    """Print the tables of some frames.

    Args:
        counts: Number of frames by their value in kpageflags.
        all_flags: As in `print_machine()`.
        raw: As in `print_machine()`.
    """
    nr = counts.total()
    sys.stdout.write(f"{nr} {'frame' if nr == 1 else 'frames'}, {pages_size(nr)}\n")
    if nr:
        sys.stdout.write("\n")
        _write_uses(by_use(counts), nr)
        sys.stdout.write("\n")
        _write_flags(counts, nr, all_flags=all_flags, raw=raw)


CSV_HEAD = "paddr,pfn,nr_frames,flags,mapcount,cgroup,node"


def print_list(parts: Iterable[str], columns: Sequence[str], *, style: str, each: bool) -> None:
    """Print a list of frames, with the title of each column.

    Args:
        parts: The rows, of `Listing.iter_frames()`.
        columns: The columns that are shown.
        style: One of `listing.FORMATS`.
        each: Whether a row is a frame.
    """
    from physview.reporters.pages import PFN_WIDTH, cut_lines

    width = terminal_width()
    if style == "csv":
        sys.stdout.write(CSV_HEAD + "\n")
    elif style == "json":
        sys.stdout.write(f'{{"page_size_bytes": {PAGE_SIZE}, "frames": [')
    else:
        titles = ["pfn".rjust(PFN_WIDTH), *([] if each else ["frames".rjust(8)])]
        shown = [name for name in ("mapcount", "node") if name in columns]
        titles += ["maps" if name == "mapcount" else name for name in shown]
        titles += [name for name in ("cgroup", "flags") if name in columns]
        sys.stdout.write(f"  {' '.join(titles)}\n")
    for text in parts:
        is_cut = style == "table" and width < PIPE_WIDTH
        sys.stdout.write(cut_lines(text, width) if is_cut else text)
    if style == "json":
        from physview.reporters import documents

        sys.stdout.write(f"\n], {documents.errors_member()}}}\n")


def _uses_document(counts: dict[int, int]) -> list[dict[str, Any]]:
    return [
        {"use": use.value, "nr_frames": nr, "nr_mapped": mapped}
        for use, (nr, mapped) in sorted(by_use(counts).items(), key=lambda item: -item[1][0])
    ]
