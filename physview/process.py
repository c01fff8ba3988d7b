# SPDX-License-Identifier: GPL-2.0-or-later
"""A process's memory through the witness of one's choice."""

from __future__ import annotations

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
from physview.sources.pagemap import Pagemap
from physview.sources.procfs import MemoryMap, ProcDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ADDRESS_SPACE = 1 << 64
FIRST_STEP_PAGES = 512
POPULATED = PM_PRESENT | PM_SWAP


class Witness(Protocol):
    """What `Process` asks of a source of pagemap entries; see `pagemap.Pagemap`."""

    name: str
    sees_pfnmaps: bool
    names_every_page: bool

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int: ...
    def next_populated(self, start: int, end: int) -> int: ...
    def close(self) -> None: ...


def _reference(proc: ProcDir) -> Witness:
    from physview.sources.reference import ReferencePagemap

    return ReferencePagemap(proc)


def _kmod(proc: ProcDir) -> Witness:
    from physview.sources.kmod import Kmod

    return Kmod(proc)


def _auto(proc: ProcDir) -> Witness:
    """pagemap, unless there is none, or it hides our frames and the module names them."""
    from physview.sources.kmod import DEVICE

    plain = _reference if _ffi.why_unavailable() else Pagemap
    if not os.access(DEVICE, os.R_OK):
        return plain(proc)
    try:
        witness: Witness = plain(proc)
    except Unsupported:
        return _kmod(proc)
    # Of other processes the module tells only those from whom pagemap hides nothing, either.
    if proc.pid != os.getpid() or not _hides_frames(witness):
        return witness
    try:
        walker = _kmod(proc)
    except PhysviewError:  # the device is there, but not for us
        return witness
    witness.close()
    return walker


def _hides_frames(witness: Witness) -> bool:
    """Whether a witness of this process does not tell the frame of a page that surely has one."""
    entries, paddrs = array("Q", [0]), array("Q", [0])
    vaddr, _ = entries.buffer_info()
    witness.fill(array("Q", [vaddr]), entries, paddrs)
    return paddrs[0] == NO_PADDR


WITNESSES: dict[str, Callable[[ProcDir], Witness]] = {
    "auto": _auto,
    "pagemap": Pagemap,
    "kmod": _kmod,
    "reference": _reference,
}


class Process(Closable):
    """A process whose addresses can be translated. A context manager.

    Frame numbers are shown to whoever has CAP_SYS_ADMIN when this is made; everyone else gets
    `Cause.HIDDEN`. After fork() it goes on showing the parent.

    Args:
        pid: Process id, or "self".
        source: "pagemap" (the compiled core), "kmod" (the kernel module), "reference" (ctypes,
            needs no compiler) or "auto": pagemap; the reference if the core is not built; the
            module if pagemap hides this process's frames and the module was loaded for everybody.

    Raises:
        ProcessGone: There is no such process.
        AccessDenied: It is another user's.
        NoUserMemory: It is a kernel thread or a zombie.
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
        if source not in WITNESSES:
            raise UsageError(
                f"unknown source '{source}'", "", f"choose one of {', '.join(WITNESSES)}"
            )
        self._proc = ProcDir(pid)
        try:
            self._witness = WITNESSES[source](self._proc)
        except BaseException:
            self._proc.close()
            raise
        self._user_end: int | None = None

    @property
    def pid(self) -> int:
        """Process id."""
        return self._proc.pid

    @property
    def source(self) -> str:
        """The witness that answers: "pagemap", "kmod" or "reference"."""
        return self._witness.name

    def close(self) -> None:
        """Close the process's files. Closing twice is harmless."""
        self._witness.close()
        self._proc.close()

    def iter_vmas(self) -> Iterator[Vma]:
        """Yield the mappings in address order.

        Raises:
            PhysviewError: The process is gone or not ours to look into.

        Source: /proc/PID/maps
        """
        return self._proc.iter_vmas()

    def translate(self, vaddr: int) -> Translation:
        """Translate one virtual address.

        Args:
            vaddr: Virtual address.

        Returns:
            Its physical address, or the cause why there is none.

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
        """Translate virtual addresses, in any order, into a list of as many.

        Args:
            vaddrs: Virtual addresses.
            with_vma: Say of each which mapping it lies in, also where that is not needed.

        Raises:
            As `translate()`.
        """
        try:
            column = array("Q", vaddrs)
        except OverflowError:
            raise UsageError("not an address", "it is negative or has more than 64 bits") from None
        entries, paddrs = (array("Q", bytes(8 * len(column))) for _ in range(2))
        without = self._witness.fill(column, entries, paddrs)
        if without:
            self._check_alive(v for v, e in zip(column, entries, strict=True) if e == NO_ENTRY)
        explain = self._explainer(MemoryMap(self._proc) if with_vma else None)
        return list(map(explain, column, entries, paddrs))

    def translate_array(self, vaddrs: npt.NDArray[np.uint64]) -> Translations:
        """Translate an array of virtual addresses; addresses in a row are the fastest.

        Args:
            vaddrs: uint64 array, shape (n,): virtual addresses in any order.

        Returns:
            Columns of shape (n,), and the cause of each gap on demand.

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

        The cost follows the pages that are there, not the range.

        Args:
            start: First address; the page it lies in is the first.
            end: First address after the range.
            chunk_pages: How many base pages one piece holds at most.

        Yields:
            `Translations` of the first address of each page, and a `Gap` for pages in a row of
            which nothing need be read to know that they are not there.

        Raises:
            UsageError: The range ends before it starts.
            ProcessGone: The process ended or ran another program meanwhile.

        Source: /proc/PID/maps, /proc/PID/pagemap, PAGEMAP_SCAN
        """
        if not 0 <= start < end <= ADDRESS_SPACE:
            raise UsageError(
                f"{start:#x}-{end:#x} is no range", "it must end after it starts, within 64 bits"
            )
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
            if memory.is_pfnmap(vma) and not self._witness.sees_pfnmaps:
                yield Gap(at, stop, Cause.DEVICE, vma)
            elif at >= self.user_end():
                yield Gap(at, stop, Cause.BEYOND, vma)  # [vsyscall]
            else:
                yield from self._iter_mapped(at, stop, vma, chunk_pages, explain)
            at = stop
        yield from self._iter_unmapped(at, end)

    def user_end(self) -> int:
        """First address after the user address space: 2**47 less a page, 2**56 less a page, ...

        Found by asking where the pagemap ends, so it holds for 4 and 5 levels and for 32 bits.
        """
        if self._user_end is None:
            low, high = 0, ADDRESS_SPACE // PAGE_SIZE  # the first page without an entry
            entry, paddr = array("Q", [0]), array("Q", [0])
            while low < high:
                middle = (low + high) // 2
                page = array("Q", [middle * PAGE_SIZE])
                if self._witness.fill(page, entry, paddr):
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

    def _iter_mapped(
        self,
        at: int,
        end: int,
        vma: Vma,
        chunk_pages: int,
        explain: Callable[[int, int, int], Translation],
    ) -> Iterator[Translations | Gap]:
        import numpy as np

        # Reading is the fastest way through pages that are there, and asking for the next one the
        # fastest across those that are not. So read on, in growing steps, until nothing is there.
        step = FIRST_STEP_PAGES
        while at < end:
            stop = min(at + min(step, chunk_pages) * PAGE_SIZE, end)
            piece = self._translate_column(np.arange(at, stop, PAGE_SIZE, dtype=np.uint64), explain)
            if int(piece.entries[-1]) & POPULATED or (piece.entries & POPULATED).any():
                yield piece
                at = stop
                step *= 2
                continue
            stop = self._witness.next_populated(stop, end)
            yield Gap(at, stop, Cause.ABSENT, vma)
            at = stop
            step = FIRST_STEP_PAGES

    def _translate_column(
        self, vaddrs: npt.NDArray[np.uint64], explain: Callable[[int, int, int], Translation]
    ) -> Translations:
        import numpy as np

        # In one piece: from 4 MiB on NumPy asks the kernel for huge pages, and faulting in small
        # ones takes a third of the time of the translation itself.
        entries, paddrs = np.empty((2, len(vaddrs)), dtype=np.uint64)
        if self._witness.fill(vaddrs, entries, paddrs):
            self._check_alive(vaddrs[entries == NO_ENTRY])
        return Translations(vaddrs, entries, paddrs, explain)

    def _check_alive(self, without_entry: Iterable[int]) -> None:
        """The pagemap also ends early when the address space is gone: then say so."""
        if min(without_entry) < self.user_end():
            raise self._proc.gone()

    def _explainer(self, memory: MemoryMap | None) -> Callable[[int, int, int], Translation]:
        """Make a function of (vaddr, entry, paddr) that reads the mappings when it must."""
        with_vma = memory is not None

        def explain(vaddr: int, raw: int, paddr: int) -> Translation:
            nonlocal memory
            entry = None if raw == NO_ENTRY else PagemapEntry(raw)
            if paddr != NO_PADDR and not with_vma:
                return Translation(vaddr, paddr, None, entry)
            if memory is None:
                memory = MemoryMap(self._proc)
            vma = memory.find(vaddr)
            if paddr != NO_PADDR:
                return Translation(vaddr, paddr, None, entry, vma)
            cause = Cause.BEYOND if entry is None else memory.cause(vaddr, entry)
            if cause is Cause.DEVICE and self._witness.sees_pfnmaps:
                cause = Cause.ABSENT  # the walk would have seen it
            if cause is Cause.ABSENT and not self._witness.names_every_page:
                cause = Cause.UNTOLD
            return Translation(vaddr, None, cause, entry, vma)

        return explain
