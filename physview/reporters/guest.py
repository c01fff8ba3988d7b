# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's memory on the host, as tables and as a JSON document (docs/json.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from physview.analysis.guest_memory import GuestAddress, GuestPart, total
from physview.model import NO_ENTRY, PAGE_SHIFT, printable
from physview.reporters.drawing import draw
from physview.sources.page_flags import flag_names, shown_flags
from physview.units import pages_size, pfn_text, share, short_size, size_words

NR_FLAGS_SHOWN = 8
PIPE_WIDTH = 100
"""Width of sentences where stdout is no terminal: people read them there, too."""
NAME_WIDTH = 40
"""The most characters of a memory region's name; QEMU's own names are shorter."""


class GuestReport(NamedTuple):
    """All that `physview guest` found.

    Args:
        pid: QEMU's process.
        name: Its name.
        version: QEMU's version, as QEMU tells it.
        uses_kvm: Whether KVM runs the guest; None if unknown.
        huge_page_bytes: The size of the host's huge pages.
        parts: The ranges of the guest's memory; None if only addresses were asked for.
        flags: Number of the host's frames by their flags; None if hidden, or not asked for.
        addresses: The addresses that were asked for.
        nr_hva_checks, nr_hpa_checks: How many answers of gpa2hva and gpa2hpa were compared.
        differences: Where QEMU's answers differ, in words.
    """

    pid: int
    name: str
    version: str
    uses_kvm: bool | None
    huge_page_bytes: int
    parts: Sequence[GuestPart] | None
    flags: dict[int, int] | None
    addresses: Sequence[GuestAddress]
    nr_hva_checks: int
    nr_hpa_checks: int
    differences: Sequence[str]


def print_report(report: GuestReport) -> None:
    """Print the report."""
    how = {True: "KVM", False: "emulation (TCG), without KVM", None: "accelerator unknown"}
    version = f"QEMU {report.version}".rstrip()
    _line(f"{version}, process {report.pid} ({report.name}): {how[report.uses_kvm]}")
    if report.parts is not None:
        _print_parts(report, report.parts)
    if report.flags:
        _print_flags(report.flags)
    if report.addresses:
        _print_addresses(report.addresses)
    _line("")
    checked = [f"{report.nr_hva_checks} answers of gpa2hva"]
    if report.nr_hpa_checks:
        checked.append(f"{report.nr_hpa_checks} of gpa2hpa")
    nr = len(report.differences)
    found = {0: "none differs", 1: "one differs"}.get(nr, f"{nr} differ")
    _line(f"QEMU's own view: {' and '.join(checked)} were compared; {found}.")


def _print_parts(report: GuestReport, parts: Sequence[GuestPart]) -> None:
    size = size_words(report.huge_page_bytes)
    _line("")
    table = Table(box=None, pad_edge=False)
    for title in ("guest-physical", "kind", "memory region", "host virtual"):
        table.add_column(title, no_wrap=True)
    for title in ("size", "resident", "swapped", "huge", "aligned", "shift"):
        table.add_column(title, justify="right", no_wrap=True)
    for part in parts:
        guest = part.guest
        table.add_row(
            f"{guest.start:#014x}-{guest.end:#014x}",
            guest.kind,
            Text(_cut(guest.name)),
            f"{part.hva:#014x}",
            short_size(guest.end - guest.start),
            *(short_size(getattr(part, name)) for name in _SIZES),
            hex(part.shift_bytes) if part.shift_bytes else "-",
        )
    draw(table)
    sums = total(parts)
    resident, huge, aligned = (sums[f"{name}_bytes"] for name in ("resident", "huge", "aligned"))
    swapped = f" {_size(sums['swapped_bytes'])} are swapped out." if sums["swapped_bytes"] else ""
    _line("")
    _line(
        f"Of {_size(sums['size_bytes'])}, {_size(resident)} are resident"
        f" ({share(resident, sums['size_bytes'])}).{swapped}"
    )
    if huge is None:
        return
    if not huge:
        _line(f"None of it is in host huge pages of {size}.")
        return
    _line(
        f"In host huge pages of {size}: {_size(huge)}, {share(huge, resident)} of what is resident."
        f" Aligned with the guest's own {size} boundaries: {_size(aligned)}. Only in aligned huge"
        f" pages can one TLB entry of a KVM guest reach {size}."
    )
    if report.uses_kvm is False:
        _line(
            "This guest is emulated: it has no second stage of page tables. QEMU translates its"
            " addresses in software."
        )


_SIZES = ("resident_bytes", "swapped_bytes", "huge_bytes", "aligned_bytes")


def _print_flags(counts: dict[int, int]) -> None:
    ordered = sorted(_by_names(counts).items(), key=lambda item: (-item[1], item[0]))
    _line("")
    table = Table(box=None, pad_edge=False)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("flags of the host's frames")
    for names, nr in ordered[:NR_FLAGS_SHOWN]:
        table.add_row(pages_size(nr), ",".join(names) or "none")
    rest = ordered[NR_FLAGS_SHOWN:]
    if rest:
        table.add_row(pages_size(sum(nr for _, nr in rest)), f"{len(rest)} other combinations")
    draw(table)


def _names_of(flags: int) -> list[str]:
    return flag_names(flags if flags == NO_ENTRY else shown_flags(flags))


def _by_names(counts: dict[int, int]) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for value, nr in counts.items():
        names = tuple(_names_of(value))
        found[names] = found.get(names, 0) + nr
    return found


def _print_addresses(addresses: Sequence[GuestAddress]) -> None:
    _line("")
    table = Table(box=None, pad_edge=False)
    for title in ("guest-physical", "memory region", "host virtual", "host-physical", "frame"):
        table.add_column(title, no_wrap=True)
    table.add_column("flags of the frame, or cause")
    for one in addresses:
        host = one.host
        paddr, frame, what = "UNKNOWN", "-", _why_nowhere(one)
        if host is not None and host.paddr is not None:
            paddr, frame = f"{host.paddr:#018x}", pfn_text(host.paddr >> PAGE_SHIFT)
            what = "" if one.flags is None else ",".join(_names_of(one.flags))
        table.add_row(
            f"{one.gpa:#018x}",
            Text(_cut(one.guest.name) if one.guest else "-"),
            "-" if one.hva is None else f"{one.hva:#018x}",
            paddr,
            frame,
            Text(printable(what)),
        )
    draw(table)


def _why_nowhere(one: GuestAddress) -> str:
    if one.host is not None:
        return one.host.explanation
    if one.guest is None:
        return "the guest has nothing at this address"
    if one.guest.is_memory:
        return "QEMU's answers about this range contradict each other"
    return f"no memory: a device ({one.guest.kind})"


def _cut(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else f"{name[:NAME_WIDTH]}…"


def _size(size_bytes: int) -> str:
    return pages_size(-(-size_bytes >> PAGE_SHIFT)) if size_bytes else "0"


def _line(text: str) -> None:
    draw(Text(printable(text)), PIPE_WIDTH)


def document(report: GuestReport) -> dict[str, Any]:
    """Make the JSON document."""
    return {
        "qemu": {
            "pid": report.pid,
            "name": report.name,
            "version": report.version,
            "kvm": report.uses_kvm,
        },
        "huge_page_bytes": report.huge_page_bytes,
        "ranges": None if report.parts is None else [_part(part) for part in report.parts],
        "total": None if report.parts is None else total(report.parts),
        "flags": None
        if report.flags is None
        else [
            {"flags": list(names), "nr_frames": nr}
            for names, nr in sorted(_by_names(report.flags).items(), key=lambda item: -item[1])
        ],
        "addresses": [_address(one) for one in report.addresses],
        "nr_hva_checks": report.nr_hva_checks,
        "nr_hpa_checks": report.nr_hpa_checks,
        "differences": list(report.differences),
    }


def _part(part: GuestPart) -> dict[str, Any]:
    guest = part.guest
    return {
        "start": hex(guest.start),
        "end": hex(guest.end),
        "kind": guest.kind,
        "name": guest.name,
        "offset_bytes": guest.offset,
        "hva": hex(part.hva),
        "size_bytes": guest.end - guest.start,
        **{name: getattr(part, name) for name in _SIZES},
        "shift_bytes": part.shift_bytes,
    }


def _address(one: GuestAddress) -> dict[str, Any]:
    host = one.host
    return {
        "gpa": hex(one.gpa),
        "name": one.guest.name if one.guest else None,
        "kind": one.guest.kind if one.guest else None,
        "hva": None if one.hva is None else hex(one.hva),
        "paddr": None if host is None or host.paddr is None else hex(host.paddr),
        "pfn": None if host is None else host.pfn,
        "cause": host.cause.value if host and host.cause else None,
        "flags": None if one.flags is None else _names_of(one.flags),
        "qemu_hva": None if one.qemu_hva is None else hex(one.qemu_hva),
        "qemu_hpa": None if one.qemu_hpa is None else hex(one.qemu_hpa),
    }
