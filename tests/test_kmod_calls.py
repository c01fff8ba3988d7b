# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's raw ioctls: invalid arguments, ranges in several calls, and signals."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import time

import numpy as np
import pytest
from kmod_calls import call, open_kmod
from memory import PAGE, Region, libc

from physview import Process
from physview.model import PageKind
from physview.sources import kmod as abi
from physview.sources import page_tables

pytestmark = pytest.mark.needs("root", "pfn", "kmod")


@pytest.mark.parametrize(
    "vaddr",
    [
        # With bit 55, so that physview does not take the bits above for a tag on arm64.
        1 << 63 | 1 << 55,
        (1 << 64) - 1,
        0xFFFF888000000000,
        0xFFFFFFFF81000000,
        3 << 55,
    ],
)
def test_kernel_and_non_canonical_addresses_are_refused(kmod, vaddr):
    walk = kmod.walk(vaddr)
    assert (walk.kind, walk.paddr, walk.levels) == (PageKind.BEYOND, None, [])
    buffer = bytearray(abi.TRANSLATE.pack(vaddr, 77))
    with open(abi.DEVICE, "rb", buffering=0) as device:
        fcntl.ioctl(device, abi.IOCTL_TRANSLATE, buffer)
    assert abi.TRANSLATE.unpack(buffer) == (vaddr, 0)


@pytest.mark.parametrize(
    ("request_number", "argument", "code"),
    [
        (0x6B01, b"", errno.ENOTTY),
        (abi.IOCTL_TRANSLATE + 5, b"", errno.ENOTTY),
        (abi.IOCTL_TRANSLATE + (1 << 16), b"", errno.ENOTTY),  # another size is another command
        (abi.IOCTL_WALK, page_tables.WALK.pack(0, 0, *[0] * 26, 1), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 0, 0, 1), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1 << 31, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 8, 8, 0), errno.EFAULT),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 1 << 63, 8, 0), errno.EFAULT),
        (abi.IOCTL_BATCH, abi.BATCH.pack(4194305, 1, 0, 0, 0), errno.ESRCH),
        (abi.IOCTL_BATCH, abi.BATCH.pack(-1, 1, 0, 0, 0), errno.ESRCH),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, PAGE, 0, 0, 1), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 0, 0, PAGE, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 1, PAGE, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, PAGE, 0, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, 1 << 63, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, 1 << 46, 8, 0, 0), errno.EFAULT),
    ],
)
def test_what_is_wrong_is_refused(request_number, argument, code):
    assert call(request_number, bytearray(argument or 16)) == code


def test_bad_pointers_are_efault():
    with open(abi.DEVICE, "rb", buffering=0) as device:
        for number in (abi.IOCTL_TRANSLATE, abi.IOCTL_INFO, abi.IOCTL_WALK, abi.IOCTL_RANGE):
            for pointer in (0, 8, 1 << 63, 0xFFFF888000000000):
                result = libc.ioctl(
                    device.fileno(), ctypes.c_ulong(number), ctypes.c_ulong(pointer)
                )
                assert (result, ctypes.get_errno()) == (-1, errno.EFAULT)


@pytest.mark.parametrize("nr", [1, 2, 7, 255, 256, 257, 4096])
def test_a_range_is_the_same_however_little_room_there_is(kmod, nr):
    region = Region(3000).touch(*range(1500), *range(1500, 3000, 2))
    pages = {}
    for extents in kmod.iter_extents(region.start, region.end, nr=nr):
        assert len(extents) <= nr
        for extent in extents:
            for i in range(int(extent["length"]) // PAGE):
                vaddr = int(extent["vaddr"]) + i * PAGE
                assert vaddr not in pages
                pages[vaddr] = int(extent["paddr"]) + i * PAGE
    with Process() as process:
        said = {t.vaddr: t.paddr for t in process.translate_many(region.pages) if t.paddr}
    assert pages == said


def test_a_structure_that_ends_out_of_reach_is_efault():
    region = Region(2).touch()
    libc.munmap(region.start + PAGE, PAGE)
    numbers = (
        abi.IOCTL_TRANSLATE,
        abi.IOCTL_INFO,
        abi.IOCTL_WALK,
        abi.IOCTL_BATCH,
        abi.IOCTL_RANGE,
    )
    with open(abi.DEVICE, "rb", buffering=0) as device:
        for number in numbers:
            pointer = ctypes.c_ulong(region.start + PAGE - 8)
            result = libc.ioctl(device.fileno(), ctypes.c_ulong(number), pointer)
            assert (result, ctypes.get_errno()) == (-1, errno.EFAULT), hex(number)


def range_once(device, start, end, extents):
    """One RANGE call: (errno, number of extents, next address). An error leaves the last two."""
    buffer = bytearray(abi.RANGE.pack(0, len(extents), start, end, extents.ctypes.data, 0, 0))
    address = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    result = libc.ioctl(device.fileno(), ctypes.c_ulong(abi.IOCTL_RANGE), address)
    code = ctypes.get_errno() if result else 0
    _, nr, _, _, _, following, _ = abi.RANGE.unpack(buffer)
    return code, nr, following


def test_next_says_where_a_range_with_little_room_goes_on():
    region = Region(12).touch(2, 3, 5, 7, 9, 11)
    there = [region.start + i * PAGE for i in (2, 3, 5, 7, 9, 11)]
    extents = np.full(5, 0xAA, dtype=page_tables.WALK_EXTENT_DTYPE)
    found, start, nr_calls = [], region.start, 0
    with open(abi.DEVICE, "rb", buffering=0) as device:
        while start < region.end:
            extents[:] = 0xAA
            code, nr, following = range_once(device, start, region.end, extents[:2])
            assert (code, extents["vaddr"][2:].tolist()) == (0, [0xAA] * 3)
            assert start < following <= region.end
            part = extents[:nr]
            # Nothing that was passed over, nothing that lies ahead.
            expected = [page for page in there if start <= page < following]
            assert [
                page
                for extent in part
                for page in range(
                    int(extent["vaddr"]), int(extent["vaddr"] + extent["length"]), PAGE
                )
            ] == expected
            if following < region.end:
                assert nr == 2  # else the room was not used
            found += expected
            start = following
            nr_calls += 1
    assert found == there
    assert nr_calls >= 2


# Signals


@pytest.fixture
def dense():
    """Many pages that are one extent each: all map the zero page."""
    region = Region(60_000)
    for index in range(region.size // PAGE):
        region.read(index)
    return region


@pytest.fixture
def timer():
    """Runs a signal handler periodically; returns a counter of its runs."""
    runs = []
    before = signal.signal(signal.SIGALRM, lambda *_: runs.append(0))

    def start(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        return runs

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def storm(number):
    """Another process sends this process signals as fast as it can."""
    target = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            while os.getppid() == target:
                os.kill(target, number)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def columns(extents):
    return extents[["vaddr", "paddr", "length", "kind", "page_shift"]].tolist()


def whole(region):
    """The result of a walk without signals."""
    with open_kmod() as kmod:
        return [row for e in kmod.iter_extents(region.start, region.end) for row in columns(e)]


def test_a_signal_in_a_long_range_loses_nothing(dense, timer):
    expected = whole(dense)
    assert len(expected) == dense.size // PAGE
    extents = np.zeros(len(expected) + 1, dtype=page_tables.WALK_EXTENT_DTYPE)
    nr_part = 0
    deadline = time.monotonic() + 120
    runs = timer(0.002)
    with open(abi.DEVICE, "rb", buffering=0) as device:
        while nr_part < 5:
            assert time.monotonic() < deadline, "no signal fell into a call"
            found, start = [], dense.start
            while start < dense.end:
                code, nr, following = range_once(device, start, dense.end, extents)
                if code:
                    assert (code, following) == (errno.EINTR, 0)
                    continue
                assert following > start
                nr_part += following < dense.end
                found += columns(extents[:nr])
                start = following
            assert found == expected
    assert len(runs) >= nr_part


def test_without_any_progress_a_signal_is_eintr(dense):
    extents = np.zeros(10, dtype=page_tables.WALK_EXTENT_DTYPE)
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    codes = set()
    deadline = time.monotonic() + 120
    try:
        with storm(signal.SIGUSR1), open(abi.DEVICE, "rb", buffering=0) as device:
            while codes != {0, errno.EINTR}:
                assert time.monotonic() < deadline, codes
                code, nr, following = range_once(device, dense.start, dense.end, extents)
                assert (code, nr, following) in (
                    (0, 10, dense.start + 10 * PAGE),
                    (errno.EINTR, 10, 0),  # as it was
                )
                codes.add(code)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_do_not_come_out_of_the_python_side(dense, kmod):
    """After a handler that returns, the walk continues (PEP 475)."""
    expected = whole(dense)
    runs = []
    before = signal.signal(signal.SIGUSR1, lambda *_: runs.append(0))
    vaddrs = np.arange(dense.start, dense.end, PAGE, dtype=np.uint64)
    deadline = time.monotonic() + 3
    try:
        with storm(signal.SIGUSR1):
            while time.monotonic() < deadline:
                assert whole(dense) == expected
                assert (kmod.pages(vaddrs)["kind"] == PageKind.PRESENT).all()
                assert kmod.walk(dense.start).kind is PageKind.PRESENT
                assert kmod.next_populated(dense.start, dense.end) == dense.start
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert runs
