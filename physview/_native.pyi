"""What cffi builds from csrc/cdef.h, for type checkers. Only physview._ffi may import it."""

from typing import Any

class _Lib:
    PV_NO_ENTRY: int
    PV_NO_PADDR: int
    PV_AGREED_FRAME: int
    PV_AGREED_ZERO: int
    PV_AGREED_SWAP: int
    PV_NR_AGREED: int
    PV_NR_FIRST: int
    visit_probes: Any
    def pv_visit_probes(self, visit: Any, arg: Any) -> int: ...
    def pv_sizeof_probe(self) -> int: ...
    def pv_pagemap_read(self, fd: int, first_page: int, nr_pages: int, entries: Any) -> int: ...
    def pv_translate(
        self, fd: int, page_shift: int, vaddrs: Any, nr: int, entries: Any, paddrs: Any
    ) -> int: ...
    def pv_decode(
        self, page_shift: int, vaddrs: Any, nr: int, entries: Any, paddrs: Any
    ) -> None: ...
    def pv_agree(
        self,
        page_shift: int,
        vaddr: int,
        nr_pages: int,
        entries: Any,
        extents: Any,
        nr_extents: int,
        zero_pfn: int,
        agreed: Any,
        left: Any,
    ) -> int: ...

ffi: Any
lib: _Lib
