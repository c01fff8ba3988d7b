# SPDX-License-Identifier: GPL-2.0-or-later
"""The size of a huge page, and the smallest size of large folios in anonymous memory."""

from __future__ import annotations

import os

from physview.model import PAGE_SIZE
from physview.text import proctext

THP = "/sys/kernel/mm/transparent_hugepage"
HUGETLB = "/sys/kernel/mm/hugepages"
# Reading one flag takes as long as reading four contiguous ones. So skipping frames inside folios
# of fewer than 16 pages would save little.
MIN_ORDER = 4


def huge_page_size() -> int:
    """Bytes in a huge page that a PMD entry maps. Source: /sys/kernel/mm/transparent_hugepage"""
    try:
        with open(f"{THP}/hpage_pmd_size", "rb") as file:
            return int(file.read())
    except OSError:
        return PAGE_SIZE * PAGE_SIZE // 8  # what one page of page table entries maps


def smallest_anon_order(thp: str = THP, hugetlb: str = HUGETLB) -> int:
    """The order of the smallest large folio that anonymous memory of this machine may be in.

    A size counts if the kernel reports folios of this size, or is allowed to make them while
    physview reads. Pages of hugetlb count, too.

    Args:
        thp: Folder of transparent huge pages in /sys.
        hugetlb: Folder of hugetlb in /sys.

    Returns:
        log2 of the base pages in the folio. 0 if the order is unknown, or below MIN_ORDER.

    Source: transparent_hugepage/hugepages-*/stats/nr_anon (Linux 6.12), and enabled beside it;
        Documentation/admin-guide/mm/transhuge.rst
    """
    sizes = [_size_kib(name) for name in _names(hugetlb)]
    nr_counted = 0
    for name in _names(thp):
        try:
            nr_anon = _read(f"{thp}/{name}/stats/nr_anon")
            enabled = _read(f"{thp}/{name}/enabled")
        except FileNotFoundError:
            continue  # this size exists only for files
        nr_counted += 1
        if nr_anon != b"0" or b"[never]" not in enabled:
            sizes.append(_size_kib(name))
    if not nr_counted or not sizes:
        return 0
    order = (min(sizes) * 1024 // PAGE_SIZE).bit_length() - 1
    return order if order >= MIN_ORDER else 0


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith("hugepages-")]
    except FileNotFoundError:
        return []


def _size_kib(name: str) -> int:
    return int(name.removeprefix("hugepages-").removesuffix("kB"))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return proctext.value(file.read())
