# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab nested sees of a VM from the host: its addresses, followed at several moments."""

from __future__ import annotations

from typing import NamedTuple

from physview.analysis.guest_memory import GuestAddress, GuestMemory, GuestPart
from physview.labs.nested_guest import SECRET, SECRET_BYTES
from physview.labs.nested_vm import GuestReport, make_host_move, read_memory
from physview.model import PAGE_SIZE


class NestedLook(NamedTuple):
    """The guest's addresses, followed through the host at one moment.

    Args:
        when: The moment, in words.
        pid: QEMU's process.
        found: One per address, in the order of the report.
        parts: The ranges of the guest's memory.
    """

    when: str
    pid: int
    found: list[GuestAddress]
    parts: list[GuestPart]

    def pfns(self) -> dict[int, int | None]:
        """The host's frame of each guest frame, by the guest-physical address of its page."""
        return {
            one.gpa - one.gpa % PAGE_SIZE: one.host.pfn if one.host else None for one in self.found
        }


class FirstBoot(NamedTuple):
    """What the first VM showed.

    Args:
        report: The guest's report.
        looks: Before and after the host's work.
        host_work: What the host's kernel was made to do, in words.
        secrets: The bytes at the secret's host virtual address at each look.
        uses_kvm: Whether KVM ran the guest; None if unknown.
        differences: Where QEMU's own answers differ.
        nr_checks: How many of QEMU's answers were compared.
    """

    report: GuestReport
    looks: list[NestedLook]
    host_work: list[str]
    secrets: list[bytes]
    uses_kvm: bool | None
    differences: list[str]
    nr_checks: int


def visit_first(report: GuestReport, memory: GuestMemory) -> FirstBoot:
    """Follow the guest's addresses, make the host move them, and follow them again."""
    gpas = [paddr for _, _, paddr in report.entries]
    looks = [look("first", memory, gpas)]
    hvas = [one.hva for one in looks[0].found if one.hva is not None]
    secrets = [_secret(report, looks[0])]
    work = make_host_move(memory.pid, hvas)
    looks.append(look("after the host's work", memory, gpas))
    secrets.append(_secret(report, looks[1]))
    nr = memory.nr_hva_checks + memory.nr_hpa_checks
    kvm = memory.uses_kvm()
    return FirstBoot(report, looks, work, secrets, kvm, list(memory.differences), nr)


def look(when: str, memory: GuestMemory, gpas: list[int]) -> NestedLook:
    """Follow guest-physical addresses, and read how the guest's memory lies on the host."""
    return NestedLook(
        when, memory.pid, [memory.follow(gpa) for gpa in gpas], list(memory.iter_parts())
    )


def _secret(report: GuestReport, look: NestedLook) -> bytes:
    """Read the secret where the host has it."""
    labels = [label for label, _, _ in report.entries]
    hva = look.found[labels.index(SECRET)].hva if SECRET in labels else None
    return b"" if hva is None else read_memory(look.pid, hva, SECRET_BYTES)


def nr_moved(one: NestedLook, other: NestedLook) -> int:
    """Count the guest frames that are in different frames of the host in two looks."""
    before, after = one.pfns(), other.pfns()
    return sum(before[gpa] != after[gpa] for gpa in before)
