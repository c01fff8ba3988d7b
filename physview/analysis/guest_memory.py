# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the memory of a QEMU guest is on this host, and how much of it can be mapped in huge pages.

A guest-physical address (gpa) is no address of this machine. QEMU maps the guest's memory into its
own process, at host virtual addresses (hva). The host's page tables translate these to frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from physview.entry_rules import is_swapped
from physview.errors import PhysviewError
from physview.files.descriptor import Closable
from physview.memory.snapshot import Snapshot
from physview.model import (
    PAGE_SIZE,
    PM_MMAP_EXCLUSIVE,
    PM_PFRAME_MASK,
    PM_PRESENT,
    Translation,
)
from physview.process import Process
from physview.sources import qemu_memory
from physview.sources.folio_sizes import huge_page_size
from physview.sources.kpage import FRAMES_DTYPE, KpageFile
from physview.sources.page_flags import FLAG_BITS
from physview.sources.pagemap import PAGE_IS, scan
from physview.sources.procfs import Range
from physview.sources.qemu_memory import GuestRange
from physview.sources.qmp import Qmp, shortened

if TYPE_CHECKING:
    import numpy.typing as npt

    from physview.memory.extents import Extents

MAX_TIMES_MAPPED = 2
"""The most times that the ranges may be as large as all of QEMU's mappings."""
_IN_HUGE_PAGE = 1 << FLAG_BITS["thp"] | 1 << FLAG_BITS["huge"]


class GuestPart(NamedTuple):
    """A range of the guest's memory, and how it lies in the host's memory.

    Args:
        guest: The guest-physical range.
        hva: Host virtual address of its start, in QEMU's process.
        resident_bytes: In frames of the host.
        swapped_bytes: Swapped out by the host.
        huge_bytes: In host huge pages, each mapped by one entry of a PMD. None if unknown.
        aligned_bytes: The part of huge_bytes in pages that are huge pages of guest-physical memory,
            too: they begin at a multiple of their size there, and are in this range entirely. Only
            these can be mapped by one entry of the second stage. None if unknown.
        shift_bytes: hva - gpa modulo the size of a huge page. Unless it is 0, no host huge page is
            aligned.
    """

    guest: GuestRange
    hva: int
    resident_bytes: int
    swapped_bytes: int
    huge_bytes: int | None
    aligned_bytes: int | None
    shift_bytes: int


class GuestAddress(NamedTuple):
    """A guest-physical address, followed through QEMU's process to a frame of the host.

    Args:
        gpa: The guest-physical address.
        guest: The guest-physical range that contains it; None if nothing is there.
        hva: Host virtual address; None if there is no memory.
        host: Its translation on the host; None without an hva.
        flags: Flags of the host's frame, as in /proc/kpageflags; None if unknown.
        qemu_hva: The answer of QEMU's gpa2hva; None if it names no address.
        qemu_hpa: The answer of QEMU's gpa2hpa; None if it was not asked, or names no address.
    """

    gpa: int
    guest: GuestRange | None
    hva: int | None
    host: Translation | None
    flags: int | None
    qemu_hva: int | None
    qemu_hpa: int | None


class GuestMemory(Closable):
    """A running QEMU, whose guest's memory can be read. A context manager.

    Args:
        qmp: The connection to QEMU.
        pid: QEMU's process; None takes the one that answers.
        use_scan: Whether to find huge pages by PAGEMAP_SCAN; None uses it if the kernel has it.

    Attributes:
        ranges: All ranges of guest-physical addresses, also those of devices.
        differences: Where QEMU's answers differ from what this host shows, in words.
        nr_hva_checks, nr_hpa_checks: How many answers of gpa2hva and gpa2hpa were compared.
        is_qemu_blind: Whether QEMU itself sees no frame numbers, so that gpa2hpa tells none.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: This user may not examine it.
        PhysviewError: QEMU does not tell its memory, or the process does not have it.
    """

    def __init__(
        self, qmp: Qmp, pid: int | str | None = None, *, use_scan: bool | None = None
    ) -> None:
        self._qmp = qmp
        self.differences: list[str] = []
        self.nr_hva_checks = self.nr_hpa_checks = 0
        self.is_qemu_blind = False
        self.huge_page_bytes = huge_page_size()
        self.ranges = qemu_memory.read_ranges(qmp)
        self._flags: KpageFile | None = None
        # Both hold the same process: while it answers, no other process can have its pid.
        self._process = Process(_known(pid or qmp.pid))
        try:
            self._snapshot = Snapshot(self._process.pid, use_scan=use_scan)
        except BaseException:
            self._process.close()
            raise
        self._reader = self._snapshot.reader
        self.knows_frames = self._snapshot.knows_frames
        try:
            self._starts = dict(self._iter_starts())
            self._check_process()
            self._flags = _open_flags()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    @property
    def name(self) -> str:
        """The name of QEMU's process."""
        return self._snapshot.proc.comm()

    def close(self) -> None:
        """Close all files. Closing twice is harmless."""
        self._snapshot.close()
        self._process.close()
        if self._flags:
            self._flags.close()

    def uses_kvm(self) -> bool | None:
        """Ask whether KVM runs the guest. None if QEMU does not tell it."""
        answer = self._qmp.execute("query-kvm")
        enabled = answer.get("enabled") if isinstance(answer, dict) else None
        return enabled if isinstance(enabled, bool) else None

    def _iter_starts(self) -> Iterator[tuple[GuestRange, int]]:
        """Ask where each range of memory starts in QEMU's process, and check where it ends."""
        for guest in self.ranges:
            if not guest.is_memory:
                continue
            first = qemu_memory.ask_hva(self._qmp, guest.start)
            last = qemu_memory.ask_hva(self._qmp, guest.end - 1)
            self.nr_hva_checks += 2
            if first is not None and last == first + (guest.end - 1 - guest.start):
                yield guest, first
                continue
            told = [str(None) if hva is None else hex(hva) for hva in (first, last)]
            self.differences.append(
                f"{guest.start:#x}-{guest.end:#x} {shortened(guest.name)}: info mtree -f tells one"
                f" range, but gpa2hva tells {told[0]} for its first byte and {told[1]} for its last"
            )

    def _check_process(self) -> None:
        """Check that the process has all ranges mapped, as QEMU has.

        Raises:
            PhysviewError: It has not.
        """
        areas = self._reader.memory.areas(1 << 64)
        for guest, hva in self._starts.items():
            end = hva + guest.end - guest.start
            if not any(start <= hva and end <= stop for start, stop in areas):
                what = f"process {self.pid} ({self.name}) is not the QEMU that answers"
                why = f"it has no memory at {hva:#x}, where QEMU has {shortened(guest.name)}"
                raise PhysviewError(what, why, "name QEMU's process with --pid", pid=self.pid)
        size = sum(guest.end - guest.start for guest in self._starts)
        # A few ranges are there twice, such as the BIOS. Reading takes as long as the ranges are.
        if size > MAX_TIMES_MAPPED * sum(stop - start for start, stop in areas):
            why = f"info mtree -f names {size} bytes of memory, more than the process can have"
            raise PhysviewError("QEMU's answer is not believed", why, pid=self.pid)

    def iter_parts(self) -> Iterator[GuestPart]:
        """Yield the ranges of memory in the order of their guest-physical addresses."""
        for guest, hva in self._starts.items():
            span = _pages(guest, hva)
            nr_resident = nr_swapped = 0
            sample: int | None = None
            for extents in self._reader.iter_extents(*span):
                entries, nr = extents["entry"], extents["nr_pages"]
                present, swapped = _is_present(entries), is_swapped(entries)
                nr_resident += int(nr[present].sum())
                nr_swapped += int(nr[swapped].sum())
                if sample is None and present.any():
                    sample = max(int(extents["vaddr"][present][0]), hva)
            huge = self._huge(span)
            shift = (hva - guest.start) % self.huge_page_bytes
            if sample is not None:
                self.follow(guest.start + sample - hva)
            size = guest.end - guest.start
            yield GuestPart(
                guest,
                hva,
                min(nr_resident * PAGE_SIZE, size),
                min(nr_swapped * PAGE_SIZE, size),
                None if huge is None else sum(end - start for start, end in huge),
                None if huge is None else 0 if shift else self._whole_bytes(huge),
                shift,
            )

    def _whole_bytes(self, spans: Iterable[Range]) -> int:
        """The bytes of huge pages that are in one of the ranges entirely."""
        size = self.huge_page_bytes
        return sum(max(0, end // size * size - -(-start // size) * size) for start, end in spans)

    def _huge(self, span: Range) -> list[Range] | None:
        """The parts of a range that are in huge pages; None if they cannot be found."""
        if self._reader.use_scan:
            return list(self._scan_huge(*span))
        if self.knows_frames and self._flags:
            return list(self._find_huge(*span))
        return None

    def _scan_huge(self, start: int, end: int) -> Iterator[Range]:
        # A page of hugetlbfs that was never touched is HUGE, too, but not PRESENT.
        both = PAGE_IS["huge"] | PAGE_IS["present"]
        at = start
        while at < end:
            at, regions = scan(self._reader.fd, at, end, PAGE_IS["huge"], returned=both)
            yield from (
                (max(low, start), min(high, end))
                for low, high, categories in regions
                if categories == both
            )

    def _find_huge(self, start: int, end: int) -> Iterator[Range]:
        """Find huge pages by their frames: whole, contiguous and aligned.

        This takes a huge page that is mapped by single entries for one that is mapped by PMD.
        """
        assert self._flags
        size = self.huge_page_bytes
        # A huge page may begin before the range, or end after it.
        for extents in self._reader.iter_extents(start - start % size, end + -end % size):
            whole = _whole_blocks(extents[_is_present(extents["entry"])], size)
            frames = _frames(whole)
            others: set[tuple[int, int]] = set()
            for run, pfn, nr, value in self._flags.split(frames).tolist():
                if not value & _IN_HUGE_PAGE:
                    at = (pfn - int(frames["pfn"][run])) * PAGE_SIZE
                    last = at + (nr - 1) * PAGE_SIZE
                    others.update((run, block) for block in range(at // size, last // size + 1))
            for run, (vaddr, _, nr) in enumerate(whole.tolist()):
                for block in range(nr * PAGE_SIZE // size):
                    low, high = vaddr + block * size, vaddr + (block + 1) * size
                    if (run, block) not in others and low < end and start < high:
                        yield max(low, start), min(high, end)

    def count_flags(self) -> dict[int, int] | None:
        """Count the frames of the guest's memory by their flags; None if these are hidden."""
        if not self.knows_frames or not self._flags:
            return None
        counts: dict[int, int] = {}
        for guest, hva in self._starts.items():
            for extents in self._reader.iter_extents(*_pages(guest, hva)):
                frames = _frames(extents[_is_present(extents["entry"])])
                frames.sort(order="pfn")
                for value, nr in self._flags.count(frames).items():
                    counts[value] = counts.get(value, 0) + nr
        return counts

    def follow(self, gpa: int) -> GuestAddress:
        """Follow a guest-physical address to the host's frame, and compare QEMU's own answers."""
        guest = next((each for each in self.ranges if each.start <= gpa < each.end), None)
        qemu_hva = qemu_memory.ask_hva(self._qmp, gpa)
        start = self._starts.get(guest) if guest else None
        hva = None if start is None or guest is None else start + gpa - guest.start
        self.nr_hva_checks += 1
        if hva != qemu_hva:
            self._differ("gpa2hva", gpa, hva, qemu_hva)
        if hva is None:
            return GuestAddress(gpa, guest, None, None, None, qemu_hva, None)
        host = self._translate(hva)
        qemu_hpa = None
        if self._may_ask_hpa(host):
            qemu_hpa = qemu_memory.ask_hpa(self._qmp, gpa)
            host = self._compare_hpa(gpa, host, qemu_hpa)
        return GuestAddress(gpa, guest, hva, host, self._flags_of(host), qemu_hva, qemu_hpa)

    def _translate(self, hva: int) -> Translation:
        return self._process.translate_many([hva], with_vma=True)[0]

    @staticmethod
    def _may_ask_hpa(host: Translation) -> bool:
        """Whether gpa2hpa leaves the page as it is.

        QEMU writes to the page before it looks. That would make an absent page resident, and copy
        a page that others share, such as one that KSM has merged.

        Source: vtop() in monitor/hmp-cmds-target.c of QEMU
        """
        if host.paddr is None or not host.entry:
            return False
        is_shared_mapping = host.vma is not None and host.vma.perms.endswith("s")
        return bool(host.entry.raw & PM_MMAP_EXCLUSIVE) or is_shared_mapping

    def _compare_hpa(self, gpa: int, host: Translation, told: int | None) -> Translation:
        """Compare QEMU's answer with ours. A page can move at any time, so look again."""
        if told is not None and told < PAGE_SIZE:
            self.is_qemu_blind = True
            return host
        self.nr_hpa_checks += 1
        if told == host.paddr:
            return host
        again = self._translate(host.vaddr)
        if again.paddr == host.paddr:
            self._differ("gpa2hpa", gpa, host.paddr, told)
        elif told != again.paddr:
            self.nr_hpa_checks -= 1  # it moved twice: nothing was compared
        return again

    def _differ(self, command: str, gpa: int, ours: int | None, told: int | None) -> None:
        ours_words, told_words = ("nothing" if one is None else hex(one) for one in (ours, told))
        self.differences.append(f"{gpa:#x}: {command} tells {told_words}, but it is {ours_words}")

    def _flags_of(self, host: Translation) -> int | None:
        if host.pfn is None or not self._flags:
            return None
        return next(iter(self._flags.count_range(host.pfn, 1)))


def _pages(guest: GuestRange, hva: int) -> Range:
    """The host's pages that contain a range, as (start, end) in QEMU's process."""
    end = hva + guest.end - guest.start
    return hva - hva % PAGE_SIZE, end + -end % PAGE_SIZE


def _whole_blocks(extents: Extents, size: int) -> Extents:
    """Cut extents to the blocks of a size that are whole, and aligned in both address spaces."""
    import numpy as np

    page = np.uint64(PAGE_SIZE)
    paddrs = (extents["entry"] & np.uint64(PM_PFRAME_MASK)) * page
    extents = extents[(extents["vaddr"] - paddrs) % np.uint64(size) == 0]
    cut = -extents["vaddr"] % np.uint64(size) // page  # pages before the first block
    nr = extents["nr_pages"]
    whole = extents[nr > cut]
    cut, nr = cut[nr > cut], nr[nr > cut]
    whole["vaddr"] += cut * page
    whole["entry"] += cut
    whole["nr_pages"] = (nr - cut) // np.uint64(size // PAGE_SIZE) * np.uint64(size // PAGE_SIZE)
    blocks: Extents = whole[whole["nr_pages"] > 0]
    return blocks


def _frames(extents: Extents) -> npt.NDArray[Any]:
    """The frames of extents that are present, as an array of FRAMES_DTYPE."""
    import numpy as np

    frames = np.empty(len(extents), dtype=FRAMES_DTYPE)
    frames["pfn"] = extents["entry"] & np.uint64(PM_PFRAME_MASK)
    frames["nr"] = extents["nr_pages"]
    return frames


def _is_present(entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    present: npt.NDArray[Any] = entries & np.uint64(PM_PRESENT) != 0
    return present


def _known(pid: int | str) -> int | str:
    if pid:
        return pid
    why = "it is in a pid namespace that this process does not see, such as another container's"
    raise PhysviewError("QEMU's process is not known", why, "name it with --pid, or run outside")


def _open_flags() -> KpageFile | None:
    try:
        return KpageFile("kpageflags")
    except PhysviewError:
        return None


def total(parts: Iterable[GuestPart]) -> dict[str, Any]:
    """Add the parts up: the members of GuestPart that are sizes, and size_bytes, by name."""
    sums: dict[str, Any] = dict.fromkeys(("size_bytes", *SIZES), 0)
    for part in parts:
        sums["size_bytes"] += part.guest.end - part.guest.start
        for name in SIZES:
            value = getattr(part, name)
            sums[name] = None if value is None or sums[name] is None else sums[name] + value
    return sums


SIZES = ("resident_bytes", "swapped_bytes", "huge_bytes", "aligned_bytes")
"""Names of the members of GuestPart that can be added up."""
