# SPDX-License-Identifier: GPL-2.0-or-later
"""What several commands share: options, addresses, and the words for what could not be told."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

from physview import _ffi
from physview.errors import PhysviewError, UsageError
from physview.model import Cause, Translation, printable
from physview.runtime import invocation
from physview.text.digits import bounded_int

if TYPE_CHECKING:
    from physview.parquet.snapshot_file import WrittenSnapshot

NEEDS_ROOT = (Cause.HIDDEN, Cause.SWAP_HIDDEN)


def add_source_option(parser: argparse.ArgumentParser) -> None:
    """Add --source."""
    from physview.process import WITNESSES

    parser.add_argument(
        "--source",
        choices=tuple(WITNESSES),
        default="auto",
        help="who answers: pagemap (the compiled core), kmod (the kernel module's walk), reference"
        " (ctypes, needs no compiler), or auto: pagemap, or reference where that is not built",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_columns_option(parser: argparse.ArgumentParser) -> None:
    """Add --columns."""
    from physview.memory.rows import COLUMNS

    parser.add_argument(
        "--columns",
        metavar="NAMES",
        default="flags,node",
        help=f"what to look up of frames: of {','.join(COLUMNS)} (flags,node)",
    )


def parse_columns(text: str) -> list[str]:
    """Read --columns.

    Raises:
        UsageError: There is no such column.
    """
    from physview.memory.rows import COLUMNS

    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"no column '{name}'", "", f"choose of {', '.join(COLUMNS)}")
    return names


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def say_if_shared(path: str) -> None:
    """Warn if other users can replace the file that was written."""
    from physview.files.atomic_file import note_on_folder

    if note := note_on_folder(path):
        say(note)


def save_memory() -> None:
    """Have Arrow use malloc(): its own allocator keeps more of what was given back to it."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def print_written(written: WrittenSnapshot) -> None:
    """Say what was written."""
    print(
        f"{printable(written.path)}: {written.nr_pages} pages in {written.nr_extents} extents,"
        f" {written.size_bytes} bytes"
    )


def count(most: int = 1_000_000) -> Callable[[str], int]:
    """What argparse reads a number from 1 to `most` with."""

    def parse(text: str) -> int:
        number = bounded_int(text, most) if text.isascii() and text.isdigit() else 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to {most}")
        return number

    return parse


def seconds(least: float = 0, most: float = 1_000_000) -> Callable[[str], float]:
    """What argparse reads a time from `least` to `most` with, in seconds."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            why = f"'{text}' is not a number of seconds from {least:.10g} to {most:.10g}"
            raise argparse.ArgumentTypeError(why)
        return value

    return parse


def parse_address(text: str) -> int:
    """Read one address, decimal or 0x….

    Raises:
        UsageError: It is no address.

    >>> parse_address("0x1000"), parse_address("4096")
    (4096, 4096)
    """
    if re.fullmatch("0[xX][0-9a-fA-F]+|[0-9]+", text):
        is_hex = text[:2] in ("0x", "0X")
        address = bounded_int(text[2:] if is_hex else text, 1 << 64, 16 if is_hex else 10)
        if address < 1 << 64:
            return address
        raise UsageError(f"'{text}' is no address", "it has more than 64 bits")
    if re.fullmatch("[0-9a-fA-F]+", text):
        raise UsageError(f"'{text}' is no address", "hexadecimal needs 0x", f"write 0x{text}")
    if re.fullmatch("-(0[xX])?[0-9a-fA-F]+", text):
        raise UsageError(f"'{text}' is no address", "it is negative")
    raise UsageError(f"'{text}' is no address", "", "write it in decimal or as 0x…")


def parse_range(text: str) -> tuple[int, int] | None:
    """Read START-END, END being the first address after the range; None if it isn't one.

    Raises:
        UsageError: It is a range, but a wrong one.
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


def say(message: str | PhysviewError) -> None:
    """Tell the person something that is not part of the report: a line, whatever names are in it.

    Args:
        message: The line; an error may have several, and has quoted them itself.
    """
    if sys.stderr is not None:  # it is when it was closed, and print() would take stdout then
        text = printable(message) if isinstance(message, str) else str(message)
        print(f"physview: {text}", file=sys.stderr, flush=True)


def say_lines(message: str) -> None:
    """Tell several lines."""
    for line in message.split("\n"):
        say(line)


def discard_stdout() -> None:
    """Keep the interpreter from trying once more, at its exit, to write what can't be written."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no descriptor is left: stdin's is not needed any more
        os.close(0)
        null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)


def die_of(name: str) -> NoReturn:
    """End as a program does that never heard of Python: killed by the signal, saying nothing."""
    import signal

    signum = signal.Signals[name]
    discard_stdout()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    raise SystemExit(128 + signum)  # where the signal is blocked


def say_if_core_is_missing(source: str) -> None:
    """Where auto fell back on the reference, say so."""
    if source == "auto" and _ffi.why_unavailable():
        say(
            f"the compiled core is not there: {_ffi.why_unavailable()}; reading through ctypes,"
            f" which is slower; {_ffi.remedy()}"
        )


def say_causes(translations: Iterable[Translation]) -> bool:
    """Say once of each cause how many addresses it left UNKNOWN, and the remedy.

    Returns:
        Whether there was any.
    """
    counts: dict[Cause, int] = {}
    for translation in translations:
        if translation.cause:
            counts[translation.cause] = counts.get(translation.cause, 0) + 1
    return say_cause_counts(counts)


def say_cause_counts(counts: dict[Cause, int]) -> bool:
    """As `say_causes()`, of what was counted before."""
    for cause, count in counts.items():
        addresses = "address is" if count == 1 else "addresses are"
        say(f"{count} {addresses} UNKNOWN: {cause.text}; {remedy(cause)}")
    return bool(counts)


def remedy(cause: Cause) -> str:
    """What to do about a cause; where root is needed, with the line that works here."""
    if cause is Cause.UNTOLD:
        return invocation.load_own_module()
    return root_remedy() if cause in NEEDS_ROOT else cause.remedy


def root_remedy() -> str:
    """How to get CAP_SYS_ADMIN in the first user namespace: that is what shows frame numbers."""
    if os.geteuid() == 0:
        return (
            "root lacks CAP_SYS_ADMIN here, as in a container: give it that (docker run --cap-add"
            " SYS_ADMIN), or run outside"
        )
    return invocation.again_as_root()
