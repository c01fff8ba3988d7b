# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds physview._native from the C core. setup.py runs it; it imports nothing of the package."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
# setuptools expects paths relative to setup.py.
NAMES = (
    "account",
    "arrow",
    "bpf_bits",
    "bpf_find",
    "bpf_flags",
    "bpf_frames",
    "bpf_load",
    "bpf_page",
    "bpf_tables",
    "bpf_pages",
    "bpf_range",
    "bpf_scan",
    "bpf_types",
    "bpf_walk",
    "btf",
    "compare",
    "filecache",
    "filecount",
    "filesystems",
    "filewindows",
    "kpage",
    "listing",
    "listing_text",
    "mappings",
    "page_key",
    "pagemap",
    "probes",
    "process",
    "runs",
    "scan",
    "smaps",
)
# The core's interface, which the C compiler and cffi read.
CDEFS = ("cdef.h", "cdef_files.h", "cdef_arrow.h")
SOURCES = [f"csrc/{name}.c" for name in NAMES]
HEADERS = [
    "csrc/arm64_entry.h",
    "csrc/bpf/walk.h",
    "csrc/bpf/walk_program.h",
    "csrc/bpf_page.h",
    "csrc/bpf_walk.h",
    "csrc/btf.h",
    *(f"csrc/{name}" for name in CDEFS),
    "csrc/entry.h",
    "csrc/filecache.h",
    "csrc/kpage.h",
    "csrc/listing.h",
    "csrc/page_key.h",
    "csrc/table_entry.h",
    "csrc/x86_entry.h",
    "csrc/physview.h",
    "csrc/runs.h",
    "csrc/scan.h",
    "csrc/kmod/uapi/physicalview.h",
]

ffibuilder = FFI()
for name in CDEFS:
    ffibuilder.cdef((HERE / name).read_text(encoding="utf-8"))
ffibuilder.cdef(
    """
    #define PV_NO_ENTRY ...
    #define PV_NO_PADDR ...
    extern "Python" int visit_probes(void *arg, const struct pv_probe *probes, int nr);
    """
)
ffibuilder.set_source(
    "physview._native",
    '#include "physview.h"',
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra"],
)
