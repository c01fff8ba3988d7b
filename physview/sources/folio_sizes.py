# SPDX-License-Identifier: GPL-2.0-or-later
"""How large huge pages are, and how small the large folios of anonymous memory can be."""

from __future__ import annotations

import os

from physview.model import PAGE_SIZE
from physview.text import proctext

THP = "/sys/kernel/mm/transparent_hugepage"
HUGETLB = "/sys/kernel/mm/hugepages"
# To read one flag takes as long as four in a row do: what smaller folios would spare is little.
MIN_ORDER = 4


def huge_page_size() -> int:
    """Bytes in a huge page of a PMD. Source: /sys/kernel/mm/transparent_hugepage"""
    try:
        with open(f"{THP}/hpage_pmd_size", "rb") as file:
            return int(file.read())
    except OSError:
        return PAGE_SIZE * PAGE_SIZE // 8  # a page of entries


def smallest_anon_order(thp: str = THP, hugetlb: str = HUGETLB) -> int:
    """The smallest large folio that anonymous memory of this machine is in, hugetlb with it.

    By the kernel's own count of them, and for those that come meanwhile by what it may make.

    Returns:
        Base pages, as a power of two; 0 if that is not known, or so small that to know it is of
        no use.

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
            continue  # of files only
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
