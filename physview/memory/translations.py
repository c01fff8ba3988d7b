# SPDX-License-Identifier: GPL-2.0-or-later
"""Many translations as columns of NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from physview.model import NO_PADDR, Translation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Translations:
    """The translations of n virtual addresses; item i is the `Translation` of the i-th.

    Args:
        vaddrs: uint64 array, shape (n,): virtual addresses.
        entries: uint64 array, shape (n,): pagemap entries; NO_ENTRY past the address space.
        paddrs: uint64 array, shape (n,): physical addresses; NO_PADDR where there is none.
        explain: Makes one `Translation` of a (vaddr, entry, paddr), with the cause.
    """

    def __init__(
        self,
        vaddrs: npt.NDArray[np.uint64],
        entries: npt.NDArray[np.uint64],
        paddrs: npt.NDArray[np.uint64],
        explain: Callable[[int, int, int], Translation],
    ) -> None:
        self.vaddrs = vaddrs
        self.entries = entries
        self.paddrs = paddrs
        self._explain = explain

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Bool array, shape (n,): which addresses have a physical one."""
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
