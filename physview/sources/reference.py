# SPDX-License-Identifier: GPL-2.0-or-later
"""The source reference: pagemap read in the simplest way, by ctypes, without a compiler.

The compiled core is tested against it. It is also the fallback if the core is not built. It reads
one entry per call, and decodes only what Documentation/admin-guide/mm/pagemap.rst documents.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, TypeVar

from physview.errors import PhysviewError
from physview.files.descriptor import Descriptor
from physview.model import NO_ENTRY, NO_PADDR, PAGE_SIZE, Probe
from physview.sources.procfs import ProcDir

T = TypeVar("T")

ENTRY_SIZE = 8
WORD = ctypes.sizeof(ctypes.c_void_p)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
_libc.pread.restype = ctypes.c_ssize_t
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]


class ReferencePagemap(Descriptor):
    """Reads the pagemap of a process with pread() through ctypes; see `pagemap.Pagemap`.

    Args:
        proc: The process.

    Raises:
        PhysviewError: The pagemap cannot be opened.
    """

    name = "reference"
    sees_pfnmaps = False
    names_every_page = True

    def __init__(self, proc: ProcDir) -> None:
        self._path = f"{proc.path}/pagemap"
        self._fd = proc.open_pagemap()

    def read_entry(self, vaddr: int) -> int | None:
        """Read the pagemap entry of one virtual address; None past the end of the pagemap.

        Raises:
            OSError: The kernel reports an error.
        """
        entry = ctypes.c_uint64()
        offset = vaddr // PAGE_SIZE * ENTRY_SIZE
        got = _libc.pread(self._fd, ctypes.byref(entry), ENTRY_SIZE, offset)
        if got < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), self._path)
        return entry.value if got == ENTRY_SIZE else None

    def fill(self, vaddrs: Any, entries: Any, paddrs: Any) -> int:
        """Look up virtual addresses one by one; arguments and result are those of `Pagemap.fill()`.

        Raises:
            OSError: The kernel reports an error.
        """
        without = 0
        for i, vaddr in enumerate(map(int, vaddrs)):
            entry = self.read_entry(vaddr)
            entries[i], paddrs[i] = NO_ENTRY, NO_PADDR
            if entry is None:
                without += 1
                continue
            entries[i] = entry
            present, pfn = entry >> 63, entry & ((1 << 55) - 1)
            if present and pfn:
                paddrs[i] = pfn * PAGE_SIZE + vaddr % PAGE_SIZE
        return without

    def next_populated(self, start: int, end: int) -> int:
        """Return `start`: the reference cannot search, because it only reads single entries."""
        return start


def visit_stand_ins(visit: Callable[[list[Probe]], T]) -> T:
    """Take similar probes without the compiled core: the fallback of `probes.visit_probes()`.

    argv and envp are the real arrays of the process. Objects of Python and of the C library replace
    the other variables: lmsg is a string of ctypes, gmsg is tzname[0] of the C library, main is a
    function of the C library, and buf is an array of ctypes with thirty results of malloc().

    Args:
        visit: Called once, with the 40 probes in memview2's order.

    Returns:
        What `visit` returns.

    Raises:
        PhysviewError: /proc/self/stat cannot be read.
    """
    argv = _start_of_stack() + WORD
    argc = ctypes.c_long.from_address(argv - WORD).value
    envp = argv + (argc + 1) * WORD

    lmsg = ctypes.create_string_buffer(b"Local message")
    lmsg_pointer = ctypes.pointer(lmsg)
    gmsg = ctypes.c_void_p.in_dll(_libc, "tzname")
    allocated: list[int] = [_libc.malloc(4096) for _ in range(30)]
    for address in allocated:
        ctypes.memset(address, 0, 1)  # a page gets a frame only when it is touched
    buf = (ctypes.c_void_p * 30)(*allocated)

    addresses: dict[str, int | None] = {
        "argv": argv,
        "argv[0]": ctypes.c_void_p.from_address(argv).value,
        "envp": envp,
        "envp[0]": ctypes.c_void_p.from_address(envp).value,
        "lmsg": ctypes.addressof(lmsg),
        "&lmsg": ctypes.addressof(lmsg_pointer),
        "gmsg": gmsg.value,
        "&gmsg": ctypes.addressof(gmsg),
        "main": ctypes.cast(_libc.getpid, ctypes.c_void_p).value,
        "&buf": ctypes.addressof(buf),
        **{f"buf[{i:02}]": address for i, address in enumerate(allocated)},
    }
    for touched in filter(None, addresses.values()):
        ctypes.string_at(touched, 1)
    try:
        return visit([Probe(label, address or 0) for label, address in addresses.items()])
    finally:
        for address in allocated:
            _libc.free(address)


def _start_of_stack() -> int:
    """The address of argc on the stack; argv and envp follow it."""
    proc = ProcDir()
    stat = proc.stat()
    proc.close()
    if stat is None:
        raise PhysviewError("cannot take the probes", "/proc/self/stat cannot be read")
    return stat.start_stack
