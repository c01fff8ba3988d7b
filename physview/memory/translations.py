# SPDX-License-Identifier: GPL-2.0-or-later
"""Holds the translations of many addresses as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from physview.model import NO_PADDR, Translation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Translations:
    """The translations of n virtual addresses. Item i is the `Translation` of address i.

    Args:
        vaddrs: uint64 array, shape (n,): virtual addresses.
        entries: uint64 array, shape (n,): pagemap entries; NO_ENTRY past the end of user space.
        paddrs: uint64 array, shape (n,): physical addresses in bytes; NO_PADDR if there is none or
            it is hidden.
        explain: Makes a `Translation` from vaddr, entry and paddr, with the cause.
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
