# SPDX-License-Identifier: GPL-2.0-or-later
"""A process whose addresses can be translated, by a source of the caller's choice."""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from physview import _ffi
from physview.errors import PhysviewError, Unsupported, UsageError
from physview.files.descriptor import Closable
from physview.memory.translations import Translations
from physview.model import (
    NO_ENTRY,
    NO_PADDR,
    PAGE_SIZE,
    PM_PRESENT,
    PM_SWAP,
    Cause,
    Gap,
    PagemapEntry,
    Translation,
    Vma,
)
from physview.sources.choice import open_bpf, open_kmod
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import MemoryMap, ProcDir
from physview.sources.tagged_pointers import (
    TAG_SHIFT,
    untagged,
    untagged_array,
    untagged_column,
    untagged_range,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ADDRESS_SPACE = 1 << 64
FIRST_STEP_PAGES = 512
POPULATED = PM_PRESENT | PM_SWAP


class Source(Protocol):
    """A source of pagemap entries, as `Process` needs it. `pagemap.Pagemap` describes the methods.

    `sees_pfnmaps`: whether it shows device mappings (VM_PFNMAP). `names_every_page`: whether it
    shows every page that is present; the course's module does not.
    """

    name: str
    sees_pfnmaps: bool
    names_every_page: bool

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int: ...
    def next_populated(self, start: int, end: int) -> int: ...
    def close(self) -> None: ...


def _reference(proc: ProcDir) -> Source:
    from physview.sources.reference import ReferencePagemap

    return ReferencePagemap(proc)


def _auto(proc: ProcDir) -> Source:
    """Choose pagemap; or the module, if there is no pagemap, or if only the module shows frames."""
    from physview.sources.kmod import DEVICE

    plain = _reference if _ffi.why_unavailable() else Pagemap
    if not os.access(DEVICE, os.R_OK):
        return plain(proc)
    try:
        source: Source = plain(proc)
    except Unsupported:
        return open_kmod(proc)
    # The module shows other processes only to users from whom pagemap hides nothing, either.
    if proc.pid != os.getpid() or not _hides_frames(source):
        return source
    try:
        walker = open_kmod(proc)
    except PhysviewError:  # the device exists, but we may not use it
        return source
    source.close()
    return walker


def _hides_frames(source: Source) -> bool:
    """Whether a source for this process hides the frame of a page that certainly has one."""
    entries, paddrs = array("Q", [0]), array("Q", [0])
    vaddr, _ = entries.buffer_info()
    source.fill(array("Q", [vaddr]), entries, paddrs)
    return paddrs[0] == NO_PADDR


SOURCES: dict[str, Callable[[ProcDir], Source]] = {
    "auto": _auto,
    "pagemap": Pagemap,
    "kmod": open_kmod,
    "bpf": open_bpf,
    "reference": _reference,
}


class Process(Closable):
    """A process whose addresses can be translated. A context manager.

    The kernel shows frame numbers if the caller has CAP_SYS_ADMIN when the object is made.
    Otherwise the cause is `Cause.HIDDEN`. After a fork(), the object in the child still shows the
    parent.

    Args:
        pid: Process id, or "self".
        source: "pagemap" (read by the compiled core), "kmod" (the kernel module), "bpf" (a BPF
            program), "reference" (pagemap read through ctypes, needs no compiler) or "auto". "auto"
            is pagemap; the reference if the core is not built; the module if pagemap hides this
            process's frames and the module was loaded for everybody.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: The process belongs to another user.
        NoUserMemory: The process is a kernel thread or a zombie.
        Unsupported: The kernel has no pagemap.
        CoreUnavailable: `source` is "pagemap" and the core is not built.
        ModuleUnavailable: `source` is "kmod" and the module is not loaded.

    >>> with Process("self") as process:
    ...     vma = next(process.iter_vmas())
    ...     translation = process.translate(vma.start)
    >>> translation.vaddr == vma.start
    True
    """

    def __init__(self, pid: int | str = "self", *, source: str = "auto") -> None:
        if source not in SOURCES:
            raise UsageError(
                f"unknown source '{source}'", "", f"choose one of {', '.join(SOURCES)}"
            )
        self._proc = ProcDir(pid)
        try:
            self._source = SOURCES[source](self._proc)
        except BaseException:
            self._proc.close()
            raise
        self._user_end: int | None = None

    def __repr__(self) -> str:
        return f"<Process {self.pid}, from {self.source}>"

    @property
    def pid(self) -> int:
        """Process id."""
        return self._proc.pid

    @property
    def source(self) -> str:
        """Name of the source that answers: "pagemap", "kmod", "bpf" or "reference"."""
        return self._source.name

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self._source.close()
        self._proc.close()

    def iter_vmas(self) -> Iterator[Vma]:
        """Yield the mappings in address order.

        Raises:
            PhysviewError: The process is gone, or we may not examine it.

        Source: /proc/PID/maps
        """
        return self._proc.iter_vmas()

    def translate(self, vaddr: int) -> Translation:
        """Translate one virtual address.

        Args:
            vaddr: Virtual address. A tag in its top byte is ignored where the processor ignores it,
                as on arm64.

        Returns:
            The physical address, or the cause if there is none.

        Raises:
            UsageError: `vaddr` is not a 64-bit address.
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/pagemap

        >>> with Process("self") as process:
        ...     process.translate(0).cause
        <Cause.UNMAPPED: 'unmapped'>
        """
        return self.translate_many([vaddr])[0]

    def translate_many(self, vaddrs: Iterable[int], *, with_vma: bool = False) -> list[Translation]:
        """Translate virtual addresses.

        Args:
            vaddrs: Virtual addresses in any order, also with tags.
            with_vma: Whether to look up the mapping of every address, not only where it is needed
                to find the cause.

        Returns:
            A translation for each address, in the same order.

        Raises:
            The errors of `translate()`.
        """
        try:
            column = array("Q", vaddrs)
        except OverflowError:
            raise UsageError("not an address", "it is negative or has more than 64 bits") from None
        entries, paddrs = (array("Q", bytes(8 * len(column))) for _ in range(2))
        plain = untagged_array(column)
        without = self._source.fill(plain, entries, paddrs)
        if without:
            self._check_alive(v for v, e in zip(plain, entries, strict=True) if e == NO_ENTRY)
        explain = self._explainer(MemoryMap(self._proc) if with_vma else None)
        return list(map(explain, column, entries, paddrs))

    def translate_array(self, vaddrs: npt.NDArray[np.uint64]) -> Translations:
        """Translate an array of virtual addresses. Contiguous pages are the fastest.

        Args:
            vaddrs: uint64 array, shape (n,): virtual addresses in any order.

        Returns:
            Columns of shape (n,). The cause of a missing address is found when it is asked for.

        Raises:
            TypeError: `vaddrs` is not such an array.
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/pagemap
        """
        import numpy as np

        if not isinstance(vaddrs, np.ndarray) or vaddrs.dtype != np.uint64 or vaddrs.ndim != 1:
            raise TypeError("vaddrs must be a one-dimensional NumPy array of uint64")
        vaddrs = np.ascontiguousarray(vaddrs)
        return self._translate_column(vaddrs, self._explainer(None))

    def iter_range(
        self, start: int, end: int, *, chunk_pages: int = 1 << 18
    ) -> Iterator[Translations | Gap]:
        """Translate every page of a range, in address order and in constant memory.

        The time depends on the number of populated pages, not on the size of the range.

        Args:
            start: First address. The range begins with the page of this address.
            end: First address after the range.
            chunk_pages: Maximum number of base pages in one `Translations`.

        Yields:
            `Translations` of the first address of each page, or a `Gap` for contiguous pages that
            can be skipped without reading their entries.

        Raises:
            UsageError: The range ends before it starts.
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/maps, /proc/PID/pagemap, PAGEMAP_SCAN
        """
        if not 0 <= start < end <= ADDRESS_SPACE:
            raise UsageError(
                f"{start:#x}-{end:#x} is no range", "it must end after it starts, within 64 bits"
            )
        start, end = untagged_range(start, end)
        at = start - start % PAGE_SIZE
        end = end + -end % PAGE_SIZE
        memory = MemoryMap(self._proc)
        explain = self._explainer(memory)
        for vma in memory.vmas[memory.index_after(at) :]:
            if vma.start >= end:
                break
            yield from self._iter_unmapped(at, vma.start)
            at = max(at, vma.start)
            stop = min(vma.end, end)
            if at >= self.user_end():
                yield Gap(at, stop, Cause.BEYOND, vma)  # [vsyscall]
            else:
                is_device = functools.partial(self._is_unseen_device, memory, vma)
                yield from self._iter_mapped(at, stop, vma, chunk_pages, explain, is_device)
            at = stop
        yield from self._iter_unmapped(at, end)

    def user_end(self) -> int:
        """Return the first address after the user address space, such as 2**47 minus a page.

        It is found by asking where the pagemap ends. So it is right for any number of levels of
        page tables, and for 32-bit processes.
        """
        if self._user_end is None:
            # The first page without an entry. The pagemap may ignore tags, and so have entries for
            # larger addresses.
            low, high = 0, (1 << TAG_SHIFT) // PAGE_SIZE
            entry, paddr = array("Q", [0]), array("Q", [0])
            while low < high:
                middle = (low + high) // 2
                page = array("Q", [middle * PAGE_SIZE])
                if self._source.fill(page, entry, paddr):
                    high = middle
                else:
                    low = middle + 1
            if low == 0:
                raise self._proc.gone()
            self._user_end = low * PAGE_SIZE
        return self._user_end

    def _iter_unmapped(self, start: int, end: int) -> Iterator[Gap]:
        if start >= end:
            return
        boundary = min(max(start, self.user_end()), end)
        if start < boundary:
            yield Gap(start, boundary, Cause.UNMAPPED, None)
        if boundary < end:
            yield Gap(boundary, end, Cause.BEYOND, None)

    def _is_unseen_device(self, memory: MemoryMap, vma: Vma) -> bool:
        """Whether a mapping is a device's, and the source shows no page of such a mapping."""
        return not self._source.sees_pfnmaps and memory.is_pfnmap(vma)

    def _iter_mapped(
        self,
        at: int,
        end: int,
        vma: Vma,
        chunk_pages: int,
        explain: Callable[[int, int, int], Translation],
        is_device: Callable[[], bool],
    ) -> Iterator[Translations | Gap]:
        import numpy as np

        # For populated pages, reading is fastest. For empty ranges, asking for the next populated
        # page is fastest. So read in growing steps until a step finds nothing, then ask.
        step = FIRST_STEP_PAGES
        while at < end:
            stop = min(at + min(step, chunk_pages) * PAGE_SIZE, end)
            piece = self._translate_column(np.arange(at, stop, PAGE_SIZE, dtype=np.uint64), explain)
            if int(piece.entries[-1]) & POPULATED or (piece.entries & POPULATED).any():
                yield piece
                at = stop
                step *= 2
                continue
            if is_device():  # asked only at a hole: it may have to read smaps
                yield Gap(at, end, Cause.DEVICE, vma)
                return
            stop = self._source.next_populated(stop, end)
            yield Gap(at, stop, Cause.ABSENT, vma)
            at = stop
            step = FIRST_STEP_PAGES

    def _translate_column(
        self, vaddrs: npt.NDArray[np.uint64], explain: Callable[[int, int, int], Translation]
    ) -> Translations:
        import numpy as np

        # One array for both: from 4 MiB on, NumPy asks the kernel for huge pages. Faulting in
        # small pages would take a third of the time of the translation itself.
        entries, paddrs = np.empty((2, len(vaddrs)), dtype=np.uint64)
        plain = untagged_column(vaddrs)
        if self._source.fill(plain, entries, paddrs):
            self._check_alive(plain[entries == NO_ENTRY])
        return Translations(
            vaddrs, entries, paddrs, explain, pid=self.pid, source=self._source.name
        )

    def _check_alive(self, without_entry: Iterable[int]) -> None:
        """Raise ProcessGone if user addresses have no entry: then the address space is gone."""
        if min(without_entry) < self.user_end():
            raise self._proc.gone()

    def _explainer(self, memory: MemoryMap | None) -> Callable[[int, int, int], Translation]:
        """Make a function that turns (vaddr, entry, paddr) into a `Translation`.

        The function reads the mappings when it first needs them.

        Args:
            memory: The process's mappings. With them, every translation gets its mapping. None: the
                mapping is looked up only if it is needed to find a cause.
        """
        with_vma = memory is not None

        def explain(vaddr: int, raw: int, paddr: int) -> Translation:
            nonlocal memory
            entry = None if raw == NO_ENTRY else PagemapEntry(raw)
            if paddr != NO_PADDR and not with_vma:
                return Translation(vaddr, paddr, None, entry)
            if memory is None:
                memory = MemoryMap(self._proc)
            plain = untagged(vaddr)
            vma = memory.find(plain)
            if paddr != NO_PADDR:
                return Translation(vaddr, paddr, None, entry, vma)
            cause = Cause.BEYOND if entry is None else memory.cause(plain, entry)
            if cause is Cause.DEVICE and self._source.sees_pfnmaps:
                cause = Cause.ABSENT  # the source shows device mappings, so there is no page
            if cause is Cause.ABSENT and not self._source.names_every_page:
                cause = Cause.UNTOLD
            return Translation(vaddr, None, cause, entry, vma)

        return explain
