# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers with a tag: what the uppermost bits of an address mean to the processor.

On arm64 the processor ignores the top byte of a user address. Programs keep a tag in it: heap
checkers, and C libraries that use memory tagging. /proc/PID/pagemap ignores the byte, too. The
module and the BPF program walk plain addresses. So that all sources give one answer, physview
removes the tag before it asks any of them.

An address with bit 55 is of the kernel's half. It has no tag. On other machines every bit counts:
x86-64 ignores bits only for a process that asks for it (LAM), and then pagemap alone removes them.

Source: Documentation/arch/arm64/tagged-pointers.rst; untagged_addr() in
    arch/arm64/include/asm/uaccess.h
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TAG_SHIFT = 56
_KERNEL_HALF = 1 << 55
_PLAIN = (1 << TAG_SHIFT) - 1
_IGNORES_TOP_BYTE = os.uname().machine == "aarch64"


def untagged(vaddr: int, *, ignores_top_byte: bool = _IGNORES_TOP_BYTE) -> int:
    """Return an address without its tag.

    Args:
        vaddr: Virtual address.
        ignores_top_byte: Whether the processor ignores the top byte of user addresses; by default
            as this machine.

    >>> hex(untagged(0xB400_FFFF_8000_1234, ignores_top_byte=True))
    '0xffff80001234'
    >>> kernels = 0xFFFF_8000_0000_1234
    >>> untagged(kernels, ignores_top_byte=True) == kernels
    True
    """
    return vaddr & _PLAIN if ignores_top_byte and not vaddr & _KERNEL_HALF else vaddr


def untagged_range(
    start: int, end: int, *, ignores_top_byte: bool = _IGNORES_TOP_BYTE
) -> tuple[int, int]:
    """Return a range without its tag, if its first and its last address have the same tag.

    Args:
        start: First address.
        end: First address after the range.
        ignores_top_byte: As in `untagged()`.

    >>> tag = 0xB4 << 56
    >>> untagged_range(tag | 0x1000, tag | 0x3000, ignores_top_byte=True)
    (4096, 12288)
    >>> untagged_range(0, 1 << 64, ignores_top_byte=True) == (0, 1 << 64)
    True
    """
    tag = start - untagged(start, ignores_top_byte=ignores_top_byte)
    if end - 1 - untagged(end - 1, ignores_top_byte=ignores_top_byte) != tag:
        return start, end
    return start - tag, end - tag


def untagged_array(vaddrs: array[int], *, ignores_top_byte: bool = _IGNORES_TOP_BYTE) -> array[int]:
    """Return an array of addresses without their tags: the same array if none has one."""
    if not ignores_top_byte or not vaddrs or max(vaddrs) <= _PLAIN:
        return vaddrs
    return array("Q", (untagged(vaddr, ignores_top_byte=True) for vaddr in vaddrs))


def untagged_column(
    vaddrs: npt.NDArray[np.uint64], *, ignores_top_byte: bool = _IGNORES_TOP_BYTE
) -> npt.NDArray[np.uint64]:
    """Return a column of addresses without their tags: the same column if none has one."""
    if not ignores_top_byte or not len(vaddrs) or int(vaddrs.max()) <= _PLAIN:
        return vaddrs
    import numpy as np

    has_tag = vaddrs & np.uint64(_KERNEL_HALF) == 0
    return np.where(has_tag, vaddrs & np.uint64(_PLAIN), vaddrs)
