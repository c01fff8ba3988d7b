# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads addresses and frame numbers from the command line.

One rule holds for all of them, so that nothing that any command prints is misread by another one:

- 0x… is hexadecimal, and so is a number that has a hexadecimal letter, as in /proc/PID/maps.
- A number of decimal digits only can be either. It is refused, with both readings in the message.
- A frame number is written as the kernel and physview print it, pfn:0x…. Without pfn: it can be
  an address. It is refused, too, unless it is too large for a frame number of this machine.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from physview.errors import UsageError
from physview.model import PAGE_SHIFT, PAGE_SIZE, FrameRange
from physview.text.digits import bounded_int

MAX_PFN = 1 << (64 - PAGE_SHIFT)
ADDRESS_DIGITS = 16
"""physview prints physical addresses with so many digits. A frame number never has so many."""

_PFN, _PADDR = "pfn:", "paddr:"


def _readings(text: str, most: int) -> list[int] | None:
    """Return what a number can mean, at most `most` + 1 each; None if it is no number.

    >>> _readings("0x10", 99), _readings("1f", 99), _readings("10", 99), _readings("08", 99)
    ([16], [31], [16, 10], [8])
    """
    match = re.fullmatch("(?:0[xX])?([0-9a-fA-F]+)", text)
    if not match:
        return None
    as_hex = bounded_int(match[1], most, 16)
    if not re.fullmatch("[0-9]+", text):
        return [as_hex]
    return list(dict.fromkeys([as_hex, bounded_int(text, most)]))


def parse_address(text: str) -> int:
    """Read one virtual address.

    Raises:
        UsageError: The text is no address, or can be two addresses.

    >>> parse_address("0x1000"), parse_address("7ffd3a5e0000") == 0x7FFD3A5E0000, parse_address("8")
    (4096, True, 8)
    >>> parse_address("400000")
    Traceback (most recent call last):
    physview.errors.UsageError: '400000' may be 0x400000 or, as decimal, 0x61a80; write one of these
    """
    found = _readings(text, 1 << 64)
    if found is None:
        if re.fullmatch("-(0[xX])?[0-9a-fA-F]+", text):
            raise UsageError(f"'{text}' is no address", "it is negative")
        raise UsageError(f"'{text}' is no address", "", "write it as 0x…")
    if min(found) >= 1 << 64:
        raise UsageError(f"'{text}' is no address", "it has more than 64 bits")
    if len(found) > 1:
        raise _ambiguous(text, *([hex(each)] for each in found))
    return found[0]


def parse_range(text: str) -> tuple[int, int] | None:
    """Read START-END, where END is the first address after the range.

    Returns:
        (START, END); None if the text has no such form.

    Raises:
        UsageError: The text has this form, but is no valid range.
    """
    first, dash, last = text.partition("-")
    if not first or not dash:
        return None
    if not last or "-" in last:
        raise UsageError(f"'{text}' is no range", "", "write START-END")
    start = parse_address(first)
    end = 1 << 64 if last == hex(1 << 64) else parse_address(last)
    if end <= start:
        raise UsageError(f"'{text}' is no range", "it ends before it starts, or is empty")
    return start, end


def _ambiguous(text: str, in_hex: list[str], in_decimal: Sequence[str] = ()) -> UsageError:
    words = " or ".join(in_hex)
    if in_decimal:
        words += f" or, as decimal, {' or '.join(in_decimal)}"
    return UsageError(f"'{text}' may be {words}", "", "write one of these")


def parse_frames(text: str) -> FrameRange:
    """Read a frame number, a physical address, or a range START-END of either.

    Frame numbers are written as pfn:0x… (or pfn=0x…, as in a trace), addresses as 0x… or
    paddr:0x…. A prefix is for both ends of a range.

    Raises:
        UsageError: The text is none of these, or can be several.
    """
    match = re.fullmatch("(?:(pfn|paddr)[:=])?([^-]+)(?:-(?:(pfn|paddr)[:=])?([^-]+))?", text)
    if not match:
        raise _no_frame(text)
    kind, first, other, last = match.groups()
    if other and other != kind:
        raise _no_frame(text, "one end is a frame number, the other may be an address")
    words = [first] if last is None else [first, last]
    found = [_readings(word, 1 << 64) for word in words]
    meanings = [each for each in found if each is not None]
    if len(meanings) < len(words):
        raise _no_frame(text)
    # The same base for both ends, first hexadecimal.
    bases = [[each[0] for each in meanings]]
    if any(len(each) > 1 for each in meanings):
        bases.append([each[-1] for each in meanings])
    readings = [
        [(each, numbers) for each in ([kind] if kind else _kinds(words, numbers))]
        for numbers in bases
    ]
    frames = [_frames(*each) for of_base in readings for each in of_base]
    if all(each == frames[0] for each in frames):
        if isinstance(frames[0], str):
            raise _no_frame(text, frames[0])
        return frames[0]
    raise _ambiguous(text, *([_name(*each) for each in of_base] for of_base in readings))


def _kinds(words: list[str], numbers: list[int]) -> list[str]:
    """Return what numbers without a prefix may be: "pfn", "paddr" or both."""
    is_padded = any(len(word) >= ADDRESS_DIGITS + 2 for word in words)
    return ["paddr"] if is_padded or numbers[0] >= _end_of_ram() else ["pfn", "paddr"]


def _name(kind: str, numbers: list[int]) -> str:
    return f"{kind}:{'-'.join(map(hex, numbers))}"


@functools.cache
def _end_of_ram() -> int:
    from physview.sources.ram import end_of_zones

    return end_of_zones() or MAX_PFN


def _frames(kind: str, numbers: list[int]) -> FrameRange | str:
    """Return the frames, or why there are none."""
    size = PAGE_SIZE if kind == "paddr" else 1
    first, offset = divmod(numbers[0], size)
    end = first + 1 if len(numbers) == 1 else -(-numbers[-1] // size)
    if end > MAX_PFN:
        return "its address would have more than 64 bits"
    if len(numbers) == 1:
        return FrameRange(first, end, offset)
    if numbers[1] <= numbers[0]:
        return "it ends before it starts, or is empty"
    return FrameRange(first, end, 0)


def _no_frame(text: str, why: str = "") -> UsageError:
    remedy = "write a frame number as pfn:0x…, or a physical address as 0x…"
    return UsageError(f"'{text}' is no frame", why, remedy)
