# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of the lab nested, and the conclusions from what it saw."""

from __future__ import annotations

from physview.analysis.guest_memory import total
from physview.labs import observe
from physview.labs.model import NUMBER, PADDR, SIZE, VADDR, Cell, Evidence, EvidenceColumn
from physview.labs.nested_look import FirstBoot, NestedLook, nr_moved
from physview.labs.nested_vm import GuestReport
from physview.model import PAGE_SIZE
from physview.sources.page_flags import flag_names, shown_flags
from physview.units import size_words

NR_AGAIN = 8
"""How many guest-physical addresses the table of the second look has."""


def explain(evidence: Evidence, first: FirstBoot, looks: list[NestedLook]) -> None:
    """Add the tables and the findings.

    Args:
        evidence: Where they are added.
        first: What the first VM showed.
        looks: Its looks, and that of the second boot if there was one.
    """
    _tabulate_addresses(evidence, first.report, looks[0])
    _tabulate_again(evidence, looks)
    _tabulate_memory(evidence, looks)
    _explain_way(evidence, first)
    _explain_again(evidence, first, looks)
    _explain_huge_pages(evidence, looks[0])
    _explain_cost(evidence, first)
    _note_own_hypervisor(evidence)


def _tabulate_addresses(evidence: Evidence, report: GuestReport, look: NestedLook) -> None:
    table = evidence.table(
        "addresses",
        "memview's addresses in the VM, followed to the host",
        [
            EvidenceColumn("label", "label"),
            EvidenceColumn("guest_vaddr", "guest virtual", VADDR),
            EvidenceColumn("gpa", "guest-physical", PADDR),
            EvidenceColumn("hva", "host virtual", VADDR),
            EvidenceColumn("hpa", "host-physical", PADDR),
            EvidenceColumn("flags", "flags of the host's frame"),
        ],
    )
    for (label, vaddr, gpa), one in zip(report.entries, look.found, strict=True):
        names = None if one.flags is None else ",".join(flag_names(shown_flags(one.flags)))
        hpa = observe.paddr_cell(one.host) if one.host else None
        table.add(label, vaddr, gpa, one.hva, hpa, names)


def _tabulate_again(evidence: Evidence, looks: list[NestedLook]) -> None:
    columns = [EvidenceColumn("gpa", "guest-physical", PADDR)]
    for number, look in enumerate(looks):
        columns.append(EvidenceColumn(f"hva_{number}", "host virtual", VADDR))
        columns.append(EvidenceColumn(f"hpa_{number}", look.when, PADDR))
    table = evidence.table(
        "again", "some of these guest-physical addresses again; * means: elsewhere", columns
    )
    rows = list(
        {one.gpa - one.gpa % PAGE_SIZE: at for at, one in enumerate(looks[0].found)}.items()
    )
    for _, at in sorted(rows)[:NR_AGAIN]:
        seen = [look.found[at] for look in looks]
        cells: list[Cell] = [seen[0].gpa]
        changed = []
        for number, one in enumerate(seen):
            cells += [one.hva, observe.paddr_cell(one.host) if one.host else None]
            changed += [f"hva_{number}"] * (one.hva != seen[0].hva)
            changed += [f"hpa_{number}"] * (cells[-1] != cells[2])
        table.add(*cells, changed=changed)


def _tabulate_memory(evidence: Evidence, looks: list[NestedLook]) -> None:
    table = evidence.table(
        "memory",
        "the guest's memory on the host, in bytes",
        [
            EvidenceColumn("when", "when"),
            EvidenceColumn("size_bytes", "size", SIZE),
            EvidenceColumn("resident_bytes", "resident", SIZE),
            EvidenceColumn("huge_bytes", "in huge pages", SIZE),
            EvidenceColumn("aligned_bytes", "aligned with the guest's", SIZE),
        ],
    )
    for look in looks:
        sums = total(look.parts)
        names = ("size_bytes", "resident_bytes", "huge_bytes", "aligned_bytes")
        table.add(look.when, *(sums[name] for name in names))


def _explain_way(evidence: Evidence, first: FirstBoot) -> None:
    look = first.looks[0]
    paddrs = [(one.gpa, one.host.paddr if one.host else None) for one in look.found]
    same = sum(gpa == paddr for gpa, paddr in paddrs)
    nowhere = sum(paddr is None for _, paddr in paddrs)
    evidence.check(
        "elsewhere",
        same == nowhere == 0,
        f"None of the {len(paddrs)} guest-physical addresses is the host-physical one. Each address"
        " is translated twice: the guest's page tables lead to the guest-physical address, and the"
        f" host's page tables of QEMU (process {look.pid}) lead to the frame.",
        f"{same} of the {len(paddrs)} guest-physical addresses are equal to the host-physical ones,"
        f" and {nowhere} have no frame on the host. By chance a frame can have the same number; a"
        " page without a frame was swapped out.",
    )
    evidence.answer(1 if not same and not nowhere else None)
    wrong = [
        one
        for (_, vaddr, gpa), one in zip(first.report.entries, look.found, strict=True)
        if one.hva is None or len({x % PAGE_SIZE for x in (vaddr, gpa, one.hva)}) > 1
    ]
    evidence.check(
        "offset",
        not wrong,
        "The offset in the page is the same in all four addresses. Both translations replace the"
        " number of the page only.",
        f"{observe.count_words(len(wrong), 'address has', 'addresses have')} another offset on the"
        " host. Guest and host have pages of different sizes.",
    )
    evidence.check(
        "secret",
        all(secret == first.report.secret for secret in first.secrets),
        f"The lab has read the guest's secret ({first.report.secret.hex()}) in QEMU's memory, at"
        " the host virtual address. Whoever may read QEMU's memory may read all of the guest's.",
        "The lab did not find the guest's secret at the host virtual address. The kernel refuses to"
        " show the memory of QEMU, or the guest has moved the page.",
    )
    evidence.check(
        "qemu",
        not first.differences,
        f"QEMU says the same: {first.nr_checks} answers of its gpa2hva and gpa2hpa were compared.",
        f"QEMU says something else: {'; '.join(first.differences[:3])}.",
    )


def _explain_again(evidence: Evidence, first: FirstBoot, looks: list[NestedLook]) -> None:
    work = " and ".join(first.host_work) or "do nothing: this kernel can do neither"
    nr, moved = len(looks[0].pfns()), nr_moved(looks[0], looks[1])
    in_boot = (
        f"The host was made to {work}. {moved} of {nr} guest frames are in other frames of the host"
        " now, at the same host virtual addresses, and the guest still has its secret: it notices"
        " nothing."
        if moved
        else f"The host was made to {work}. All {nr} guest frames stayed: they were in huge pages"
        " already, or memory is so empty that nothing had to move."
    )
    if len(looks) == 2:
        evidence.check("again", bool(moved), in_boot, in_boot)
        evidence.answer(1)
        return
    moved = nr_moved(looks[0], looks[2])
    hvas = [(one.hva, two.hva) for one, two in zip(looks[0].found, looks[2].found, strict=True)]
    shifted = sum(one != two for one, two in hvas)
    unused = sum(pfn is None for pfn in looks[2].pfns().values())
    untouched = f", and {unused} have none, for this guest has not touched them" * bool(unused)
    evidence.check(
        "again",
        moved > 0,
        f"{in_boot} In the second boot, {shifted} of {len(hvas)} addresses have another host"
        " virtual address, because QEMU is a new process with ASLR."
        f" {moved - unused} of the {nr} guest frames are in other frames of the host{untouched}."
        " The guest cannot know any of it. The host may also swap the memory of a guest, or merge"
        " equal pages of two guests (KSM).",
        f"{in_boot} In the second boot they are in the same frames, too: the host gave QEMU the"
        " frames back that it had just freed. Run the lab again.",
    )
    evidence.answer(1 if moved else None)


def _explain_huge_pages(evidence: Evidence, look: NestedLook) -> None:
    sums = total(look.parts)
    huge, aligned = sums["huge_bytes"], sums["aligned_bytes"]
    if huge is None:
        evidence.note("huge pages cannot be found here: no PAGEMAP_SCAN; use Linux 6.7 or later")
        return
    evidence.check(
        "aligned",
        aligned > 0,
        f"{huge >> 20} MiB of the guest's {sums['resident_bytes'] >> 20} resident MiB are in huge"
        f" pages of the host, and {aligned >> 20} MiB of these are aligned with the guest's memory:"
        " guest-physical and host virtual address are equal modulo the size of a huge page. Only"
        " there can the second stage map a huge page by one entry.",
        "None of the guest's memory is in huge pages of the host that are aligned with the guest's."
        " Each TLB entry covers a small page. See /sys/kernel/mm/transparent_hugepage/enabled.",
    )


def _explain_cost(evidence: Evidence, first: FirstBoot) -> None:
    from physview.system import checks

    guest = first.report.nr_levels
    host = (checks.check_paging_levels().details or {}).get("levels")
    if guest is None or host is None:
        evidence.answer(None)
        return
    table = evidence.table(
        "cost",
        "entries that a processor reads for one translation that no TLB has, with two stages",
        [
            EvidenceColumn("guest_page", "page of the guest"),
            EvidenceColumn("host_page", "page of the host"),
            EvidenceColumn("nr_guest", "guest's entries", NUMBER),
            EvidenceColumn("nr_host", "host's entries in a walk", NUMBER),
            EvidenceColumn("nr_reads", "entries in all", NUMBER),
        ],
    )
    names = [size_words(PAGE_SIZE), size_words(PAGE_SIZE * PAGE_SIZE // 8)]
    for less_guest, less_host in ((0, 0), (0, 1), (1, 1)):
        walked, nested = guest - less_guest, host - less_host
        reads = (walked + 1) * (nested + 1) - 1
        table.add(names[less_guest], names[less_host], walked, nested, reads)
    small = (guest + 1) * (host + 1) - 1
    evidence.answer(2 if small == 24 else None)
    rule = (
        f"With {guest} levels in the guest and {host} on the host, two stages cost {small} entries"
        f" instead of {host}: each of the guest's {guest} tables is at a guest-physical address, so"
        " the host's tables are walked for each of them, and once more for the page itself. A huge"
        " page on either side saves a level there."
    )
    if first.uses_kvm:
        text = f"{rule} KVM ran this guest, so the processor paid this at each miss of its TLB."
    else:
        text = (
            f"This guest was emulated (TCG), so it had no second stage: QEMU walked the guest's"
            f" {guest} levels in software, kept the result in a table of its own, and read the"
            " memory at its host virtual address, which the processor translates with the host's"
            f" {host} levels. With KVM it would be different. {rule}"
        )
    evidence.check("cost", True, text, text)


def _note_own_hypervisor(evidence: Evidence) -> None:
    from physview.system import hypervisor

    if found := hypervisor.detect():
        evidence.note(
            f"this machine is itself {found}: what is called host-physical here is guest-physical"
            " for the machine below, and only that machine can show more"
        )
