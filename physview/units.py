# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats sizes and shares as text, and cuts text to the width of the terminal."""

from __future__ import annotations

import os

from physview.model import PAGE_SHIFT, printable
from physview.text.output import ellipsis

PIPE_WIDTH = 1 << 16


def terminal_width() -> int:
    """Return the width of the terminal on stdout in characters; PIPE_WIDTH if there is none.

    A serial console, or a terminal whose size nobody has set, reports 0 columns.
    """
    try:
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
    except (ValueError, OSError):
        width = 0
    return width if width > 0 else PIPE_WIDTH


def cut(text: str, width: int) -> str:
    """Cut a line to a width in characters. An ellipsis marks the cut."""
    if len(text) <= width:
        return text
    rest = ellipsis()
    return text[: max(0, width - len(rest))] + rest


def mapping_name(path: str, room: int) -> str:
    """Name a mapping in so many characters: the file's name alone if its path is too long.

    >>> mapping_name("", 20), mapping_name("/usr/lib/libc.so.6", 20), mapping_name("/b/c.so", 4)
    ('[anonymous]', '/usr/lib/libc.so.6', 'c.so')
    """
    text = printable(path) or "[anonymous]"
    if len(text) > room and "/" in text:
        text = text.removesuffix(" (deleted)").rpartition("/")[2]
    return cut(text, room)


def short_size(size_bytes: int | None) -> str:
    """Format a size in at most five characters. "?" stands for an unknown size.

    >>> [short_size(n) for n in (None, 0, 4096, 1536 << 10, 2000 << 20, 1 << 40)]
    ['?', '-', '4K', '1.5M', '2.0G', '1.0T']
    """
    if not size_bytes:
        return "?" if size_bytes is None else "-"
    value, unit = size_bytes / 1024, "K"
    for larger in "MGTPE":
        if value < 999.5:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f}{unit}" if unit == "K" or value >= 9.95 else f"{value:.1f}{unit}"


def si_size(size_bytes: int | None) -> str:
    """Format a size as `short_size()`, but in powers of 1000, with small letters for thousands.

    >>> [si_size(n) for n in (None, 0, 999, 4096, 1500_000, 10**13)]
    ['?', '-', '999', '4.1k', '1.5M', '10T']
    """
    if not size_bytes:
        return "?" if size_bytes is None else "-"
    value, unit = float(size_bytes), ""
    for larger in "kMGTPE":
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}{unit}" if not unit or value >= 9.95 else f"{value:.1f}{unit}"


def pages_size(nr_pages: int) -> str:
    """Format the size of a number of base pages, short enough for a column.

    >>> pages_size(0), pages_size(3 << 20), pages_size(300 << 20)
    ('0', '12.0 GiB', '1.2 TiB')
    >>> pages_size(1 << 51)
    '8.0 EiB'
    """
    return column_size(nr_pages << PAGE_SHIFT)


def column_size(size_bytes: int) -> str:
    """Format a size, short enough for a column.

    >>> column_size(0), column_size(16), column_size(25 << 10), column_size(4 << 20)
    ('0', '16 bytes', '25.0 KiB', '4.0 MiB')
    """
    if size_bytes < 1000:
        return f"{size_bytes} bytes" if size_bytes else "0"
    number = size_bytes / 1024
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} EiB"


def pfn_text(pfn: int, nr_frames: int = 1) -> str:
    """Format a frame number, or a range of them without its end, as the command line takes it.

    It is the form of the kernel's dump_page(). Without "pfn:" it could be taken for an address.

    >>> pfn_text(0x115AB0), pfn_text(0x10, 2)
    ('pfn:0x115ab0', 'pfn:0x10-0x12')
    """
    return f"pfn:{pfn:#x}" if nr_frames == 1 else f"pfn:{pfn:#x}-{pfn + nr_frames:#x}"


def share(part: int, whole: int) -> str:
    """Format a share as a percentage, in at most six characters.

    >>> share(1, 3), share(0, 5), share(1, 100000), share(0, 0)
    ('33.3%', '-', '<0.1%', '-')
    """
    if not part:
        return "-"
    percent = 100 * part / whole
    return "<0.1%" if percent < 0.05 else f"{percent:.1f}%"


def size_words(size_bytes: int) -> str:
    """Format a size that is a power of two.

    >>> size_words(4096), size_words(1 << 21), size_words(1 << 30)
    ('4 KiB', '2 MiB', '1 GiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size_bytes < 1024:
            return f"{size_bytes} {unit}"
        size_bytes //= 1024
    return f"{size_bytes} TiB"
