# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's ioctls from a 32-bit program agree with pagemap read by a 64-bit program."""

import contextlib
import errno
import struct
import subprocess

import pytest
from kmod_calls import open_kmod
from memory import PAGE
from paths import ROOT

from physview import Process
from physview.model import PageKind
from physview.sources import kmod as abi
from physview.sources import page_tables

pytestmark = pytest.mark.needs("root", "pfn", "kmod", "cc", "ia32")

NR_PAGES = 8
# struct report of client32.c
PARTS = [
    struct.Struct("=Q8i"),
    abi.INFO,
    abi.TRANSLATE,
    page_tables.WALK,
    page_tables.WALK,
    *[page_tables.PAGE] * NR_PAGES,
    abi.RANGE,
    *[page_tables.EXTENT] * NR_PAGES,
    struct.Struct("=Q"),
]
# Freestanding: no part of a 32-bit C library need be on the machine.
FREESTANDING = ("-m32", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector")
HEADERS = ("-I/usr/include/x86_64-linux-gnu",)


class Report:
    """The answers that the 32-bit program got."""

    def __init__(self, data):
        found, offset = [], 0
        for part in PARTS:
            found.append(part.unpack_from(data, offset))
            offset += part.size
        assert (offset, found[-1]) == (len(data), (0x1234567812345678,))
        (self.start, *self.codes), self.info, self.translate, self.walk, self.kernel = found[:5]
        self.pages = found[5 : 5 + NR_PAGES]
        self.range = found[5 + NR_PAGES]
        self.extents = found[6 + NR_PAGES : -1]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The 32-bit program."""
    program = tmp_path_factory.mktemp("bin") / "client32"
    options = [*FREESTANDING, *HEADERS, "-nostdlib", "-static", "-O2", "-Wall", "-Wextra"]
    source = ROOT / "tests/support/client32.c"
    subprocess.run(["cc", *options, "-Werror", "-o", program, source], check=True)
    return program


@pytest.fixture
def client(program):
    """A waiting process of the 32-bit program, and its report."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        stack.callback(process.kill)
        size = sum(part.size for part in PARTS)
        yield process, Report(process.stdout.read(size))


def test_a_32_bit_program_is_told_what_pagemap_says(client):
    process, report = client
    vaddrs = [report.start + i * PAGE + i for i in range(NR_PAGES)]
    with Process(process.pid) as witness:
        said = [t.paddr for t in witness.translate_many(vaddrs)]
    assert [bool(paddr) for paddr in said] == [True, True, True, False, True, False, True, False]
    assert report.codes[:5] == [0, 0, 0, 0, 0]
    assert report.info[:3] == (abi.ABI_VERSION, report.info[1], 12)
    assert report.translate == (report.start + 5, said[0] + 5)
    assert report.walk[2:4] == (report.start + PAGE + 7, said[1] - 1 + 7)
    assert report.walk[6:8] == (PageKind.PRESENT, 12)
    assert [page[0] or None for page in report.pages] == said
    kinds = [page[3] for page in report.pages]
    absent, there = PageKind.NONE, PageKind.PRESENT
    assert kinds == [there, there, there, absent, there, absent, PageKind.PROT_NONE, absent]
    nr, following = report.range[1], report.range[5]
    assert following == report.start + NR_PAGES * PAGE
    by_page = {
        vaddr + at: paddr + at
        for vaddr, paddr, length, *_ in report.extents[:nr]
        for at in range(0, length, PAGE)
    }
    assert by_page == {
        vaddr & ~(PAGE - 1): paddr & ~(PAGE - 1)
        for vaddr, paddr in zip(vaddrs, said, strict=True)
        if paddr
    }


def test_what_does_not_fit_in_32_bits_is_not_cut_off(client):
    _, report = client
    assert report.kernel[6] == PageKind.BEYOND
    assert report.codes[5:] == [-errno.EFAULT, 0, -errno.ENOTTY]


def test_a_32_bit_program_and_a_64_bit_one_are_told_the_same(client):
    process, report = client
    with open_kmod(process.pid) as kmod:
        pages = kmod.pages([report.start + i * PAGE + i for i in range(NR_PAGES)])
        levels = kmod.walk(report.start + PAGE + 7).levels
    assert [tuple(page) for page in pages.tolist()] == report.pages
    addresses = report.walk[8 : 8 + 4 * report.walk[1] : 4]
    assert [level.address or 0 for level in levels] == list(addresses)
    assert len(levels) == 5
