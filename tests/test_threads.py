# SPDX-License-Identifier: GPL-2.0-or-later
"""Many threads use the core and the library at once, also in a Python without the GIL.

In a free-threaded Python these tests also show that physview leaves the GIL off.
"""

import ctypes
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

import physview
from physview.sources.probes import visit_probes

NR_THREADS = 8
NR_PAGES = 64
RESIDENT = (None, physview.Cause.HIDDEN)


def in_threads(work):
    """Call `work(number)` in each thread; all begin at the same moment."""
    start = Barrier(NR_THREADS)

    def begin(number):
        start.wait(timeout=60)
        return work(number)

    with ThreadPoolExecutor(NR_THREADS) as pool:
        return list(pool.map(begin, range(NR_THREADS)))


def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_each_thread_reads_its_own_memory():
    """Every second page is resident, and a thread never sees the pages of another."""

    def read(number):
        with mmap.mmap(-1, NR_PAGES * mmap.PAGESIZE) as memory, physview.Process() as process:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(number % 2, NR_PAGES, 2):
                memory[page * mmap.PAGESIZE] = number + 1
            begin = address_of(memory)
            addresses = [begin + page * mmap.PAGESIZE for page in range(NR_PAGES)]
            seen = set()
            for _ in range(20):
                answers = process.translate_many(addresses)
                seen.add(tuple(answer.cause in RESIDENT for answer in answers))
            return number % 2, seen

    for odd, seen in in_threads(read):
        assert seen == {tuple(page % 2 == odd for page in range(NR_PAGES))}


def test_probes_extents_and_schemas_at_once():
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[0] = 1
    begin = address_of(memory)

    def read(_number):
        labels = {tuple(visit_probes(lambda found: [p.label for p in found])) for _ in range(10)}
        names = set()
        for _ in range(10):
            table = physview.extents("self", start=begin, end=begin + mmap.PAGESIZE)
            names.add(tuple(table.column_names))
            # The core gives the table back when a capsule is released, in whichever thread.
            capsules = [table.__arrow_c_stream__(), table.__arrow_c_schema__()]
            del table, capsules
        return labels, names

    results = in_threads(read)
    assert len(results) == NR_THREADS
    assert all(result == results[0] for result in results)
    assert [len(part) for part in results[0]] == [1, 1]


@pytest.mark.needs("free-threaded")
def test_physview_leaves_the_gil_off():
    code = (
        "import sys, physview, physview.api.memory; from physview import _ffi; _ffi.load();"
        " physview.extents('self', start=0, end=4096); print(sys._is_gil_enabled())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("False\n", "")
