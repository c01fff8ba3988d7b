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
    PV_BPF_MAP: int
    PV_BPF_TYPES: int
    PV_BPF_PROGRAM: int
    PV_BPF_DIRECT_MAP: int
    def pv_bpf_open(self, opened: Any, like: Any, stage: Any, log: Any, log_bytes: int) -> int: ...
    def pv_bpf_close(self, bpf: Any) -> None: ...
    def pv_bpf_user_end(self, bpf: Any) -> int: ...
    def pv_bpf_walk(self, bpf: Any, fd: int, walk: Any) -> int: ...
    def pv_bpf_pages(self, bpf: Any, fd: int, vaddrs: Any, nr: int, pages: Any) -> int: ...
    def pv_bpf_extents(
        self, bpf: Any, fd: int, at: Any, end: int, extents: Any, room: int
    ) -> int: ...
    PV_NR_FILLED: int
    def pv_bpf_tables(self, bpf: Any, fd: int, tables: Any) -> int: ...
    def pv_bpf_table(
        self, bpf: Any, fd: int, vaddr: int, level: int, nr: int, entries: Any, uses: Any
    ) -> int: ...
    def pv_bpf_translate(
        self, bpf: Any, fd: int, vaddrs: Any, nr: int, entries: Any, paddrs: Any
    ) -> int: ...
    def pv_bpf_scan(
        self,
        bpf: Any,
        fd: int,
        how: int,
        at: Any,
        end: int,
        cuts: Any,
        doubts: Any,
        nr_cuts: int,
        zero_pfn: int,
        extents: Any,
        room: int,
    ) -> int: ...
    def pv_bpf_find(
        self, bpf: Any, pids: Any, nr_pids: int, runs: Any, nr_runs: int, places: Any
    ) -> None: ...
    PV_DIRTY_BIT: int
    PV_SOFT_DIRTY_BIT: int
    def pv_bpf_bits(
        self, bpf: Any, fd: int, which: int, at: Any, end: int, bits: Any, room: int
    ) -> int: ...
    PV_USE_SCAN: int
    PV_COMMON_BITS: int
    def pv_scan_extents(
        self,
        fd: int,
        page_shift: int,
        how: int,
        at: Any,
        end: int,
        cuts: Any,
        nr_cuts: int,
        zero_pfn: int,
        extents: Any,
        room: int,
    ) -> int: ...
    def pv_count_values(self, fd: int, runs: Any, nr_runs: int, counts: Any, room: int) -> int: ...
    def pv_bpf_count(
        self,
        bpf: Any,
        fd: int,
        runs: Any,
        nr_runs: int,
        max_order: int,
        counts: Any,
        room: int,
        nr_by_key: Any,
    ) -> int: ...
    def pv_bpf_find_frames(self, bpf: Any) -> int: ...
    def pv_split_by_value(
        self, fd: int, runs: Any, nr_runs: int, at: Any, pfn: Any, pieces: Any, room: int
    ) -> int: ...
    def pv_probe_blocks(
        self, fd: int, first: int, nr: int, nr_places: int, step: int, free: int, heads: Any
    ) -> int: ...
    PV_LIST_EACH: int
    PV_LIST_RAW: int
    PV_LIST_FLAGS: int
    PV_LIST_MAPCOUNT: int
    PV_LIST_CGROUP: int
    PV_LIST_NODE: int
    PV_LIST_CSV: int
    PV_LIST_JSON: int
    PV_LIST_FRAMES: int
    PV_LIST_ALL_PAGES: int
    def pv_list(self, listing: Any, extents: Any, nr: int, at: Any, offset: Any) -> int: ...
    def pv_list_end(self, listing: Any) -> int: ...
    PV_FS_VIRTUAL: int
    PV_FILE_WINDOW: int
    PV_FILE_CANNOT_OPEN: int
    PV_FILE_NO_FILE: int
    PV_FILE_NO_PAGES: int
    PV_FILE_HUGETLB: int
    PV_FILE_DENIED: int
    PV_FILE_CANNOT_MAP: int
    PV_FILE_LARGE: int
    def pv_file_system(self, fd: int, device_major: int, fs_type: Any) -> int: ...
    def pv_file_begin(self, query: Any, fd: int, file: Any) -> None: ...
    def pv_file_continue(self, query: Any, fd: int, file: Any, runs: Any) -> int: ...
    def pv_open_in_root(self, root_fd: int, path: bytes) -> int: ...
    def pv_count_files(self, query: Any, dir_fd: int, names: bytes, nr: int, files: Any) -> int: ...
    def pv_order_of_mm(self, one: int, other: int) -> int: ...
    def pv_account(self, account: Any, extents: Any, nr: int, end: int) -> int: ...
    def pv_account_join(self, account: Any, part: Any) -> int: ...
    def pv_account_end(self, account: Any) -> int: ...
    def pv_frames_of(self, extents: Any, nr: int, zero_pfn: int, frames: Any) -> int: ...
    PV_MAP_START: int
    PV_MAP_END: int
    PV_MAP_PERMS: int
    PV_MAP_OFFSET: int
    PV_MAP_DEVICE: int
    PV_MAP_INODE: int
    PV_MAP_NAME: int
    PV_MAP_NAME_LENGTH: int
    PV_MAP_FLAGS: int
    PV_MAP_FLAGS_LENGTH: int
    PV_MAP_SIZES: int
    def pv_read_more(self, fd: int, buffer: Any, room: int) -> int: ...
    def pv_parse_mappings(
        self,
        text: Any,
        length: int,
        is_last: bool,
        last_end: int,
        names: Any,
        nr_names: int,
        columns: Any,
        stride: int,
        used: Any,
    ) -> int: ...
    PV_OF_PRESENT: int
    PV_OF_HIDDEN: int
    PV_OF_EXCLUSIVE: int
    PV_OF_ZERO: int
    PV_OF_HUGETLB: int
    PV_OF_SWAPPED: int
    PV_OF_SPECIAL: int
    PV_OF_DEVICE: int
    PV_OF_FILE: int
    PV_OF_EXTENTS: int
    PV_OF_LARGEST: int
    PV_OF_LARGEST_VPN: int
    PV_OF_LARGEST_PFN: int
    PV_OF_BLOCKS: int
    PV_OF_HUGE_BLOCKS: int
    PV_OF_FOLIOS: int
    PV_NR_OF: int
    def pv_account_parts(
        self,
        like: Any,
        extents: Any,
        nr: int,
        done: Any,
        starts: Any,
        ends: Any,
        perms: Any,
        inodes: Any,
        nr_vmas: int,
        which: Any,
        parts: Any,
        room: int,
    ) -> int: ...
    def pv_join_parts(self, like: Any, accounts: Any, which: Any, parts: Any, nr: int) -> int: ...
    def pv_end_accounts(
        self, accounts: Any, nr: int, huge_order: int, columns: Any, total: Any
    ) -> int: ...
    def pv_arrow_use(self, functions: Any) -> None: ...
    def pv_arrow_stream(self, columns: Any) -> Any: ...
    def pv_arrow_schema(self, columns: Any) -> Any: ...
    def pv_arrow_stream_name(self) -> Any: ...
    def pv_arrow_schema_name(self) -> Any: ...
    pv_arrow_end_stream: Any
    pv_arrow_end_schema: Any
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
