# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds the translations of many addresses as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from physview.memory.columnar import Columnar
from physview.model import NO_ENTRY, NO_PADDR, Translation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from physview.memory.columns import Table


class Translations(Columnar):
    """The translations of n virtual addresses. Item i is the `Translation` of address i.

    As a table, it has the columns vaddr, paddr, entry, and cause: why there is no physical address.

    Args:
        vaddrs: uint64 array, shape (n,): virtual addresses.
        entries: uint64 array, shape (n,): pagemap entries; NO_ENTRY past the end of user space.
        paddrs: uint64 array, shape (n,): physical addresses in bytes; NO_PADDR if there is none or
            it is hidden.
        explain: Makes a `Translation` from vaddr, entry and paddr, with the cause.
        pid: The process.
        source: The source that answered.
    """

    def __init__(
        self,
        vaddrs: npt.NDArray[np.uint64],
        entries: npt.NDArray[np.uint64],
        paddrs: npt.NDArray[np.uint64],
        explain: Callable[[int, int, int], Translation],
        *,
        pid: int | None = None,
        source: str = "",
    ) -> None:
        self.vaddrs = vaddrs
        self.entries = entries
        self.paddrs = paddrs
        self._explain = explain
        self.pid = pid
        self.source = source

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Bool array, shape (n,): whether the physical address is known."""
        known: npt.NDArray[np.bool_] = self.paddrs != NO_PADDR
        return known

    def __len__(self) -> int:
        return len(self.vaddrs)

    def __getitem__(self, index: int) -> Translation:
        return self._explain(
            int(self.vaddrs[index]), int(self.entries[index]), int(self.paddrs[index])
        )

    def __iter__(self) -> Iterator[Translation]:
        columns = (self.vaddrs.tolist(), self.entries.tolist(), self.paddrs.tolist())
        return map(self._explain, *columns)

    def __repr__(self) -> str:
        of = f" of process {self.pid}" if self.pid is not None else ""
        by = f", from {self.source}" if self.source else ""
        return f"<Translations{of}{by}: {len(self)} addresses, {int(self.known.sum())} known>"

    def table(self) -> Table[Translations]:
        """Make a table of the columns; the arrays are not copied.

        The cause is looked up for each address without a physical address. So it takes time for
        many of them, and the `Process` must still be open.
        """
        import numpy as np

        from physview.memory.columns import Table, numbers, words

        codes = np.zeros(len(self), dtype=np.int32)
        causes: dict[str | None, int] = {None: 0}
        for at in np.flatnonzero(~self.known).tolist():
            cause = self[at].cause
            codes[at] = causes.setdefault(cause.value if cause else None, len(causes))
        columns = [
            numbers("vaddr", self.vaddrs, "address", "virtual address"),
            numbers("paddr", self.paddrs, "address", "physical address", none=NO_PADDR),
            numbers("entry", self.entries, "bits", "entry in /proc/PID/pagemap", none=NO_ENTRY),
            words("cause", codes, list(causes), "why there is no physical address"),
        ]
        return Table("translations", columns, self, pid=self.pid, source=self.source)
