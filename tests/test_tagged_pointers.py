# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers with a tag in the top byte: looked up without it, where the processor ignores it."""

import os
from array import array

import numpy as np
import pytest
from memory import Region

from physview import Cause, Process
from physview.commands import translate, walk
from physview.sources import tagged_pointers
from physview.sources.procfs import ProcDir
from physview.sources.tagged_pointers import (
    untagged,
    untagged_array,
    untagged_column,
    untagged_range,
)

TAG = 0xB4 << 56
KERNELS = 0xFFFF_8000_0000_1234
IS_ARM64 = os.uname().machine == "aarch64"

ADDRESSES = {
    0: 0,
    0x1234: 0x1234,
    TAG | 0xFFFF_8000_1234: 0xFFFF_8000_1234,
    1 << 63: 0,
    (1 << 55) - 1: (1 << 55) - 1,
    TAG | 1 << 55: TAG | 1 << 55,
    KERNELS: KERNELS,
    (1 << 64) - 1: (1 << 64) - 1,
}


def test_a_tag_is_removed_from_user_addresses_only():
    for vaddr, plain in ADDRESSES.items():
        assert untagged(vaddr, ignores_top_byte=True) == plain
        assert untagged(vaddr, ignores_top_byte=False) == vaddr
    assert untagged(TAG) == (0 if IS_ARM64 else TAG)


def test_arrays_and_columns_as_single_addresses():
    asked, plain = array("Q", ADDRESSES), array("Q", ADDRESSES.values())
    assert untagged_array(asked, ignores_top_byte=True) == plain
    column = untagged_column(np.array(asked), ignores_top_byte=True)
    assert (column.dtype, column.tolist()) == (np.uint64, plain.tolist())
    for few in (array("Q"), array("Q", [1, 2])):
        assert untagged_array(few, ignores_top_byte=True) is few
        some = np.array(few, dtype=np.uint64)
        assert untagged_column(some, ignores_top_byte=True) is some


def test_a_range_has_a_tag_if_both_ends_have_it():
    def of(start, end):
        return untagged_range(start, end, ignores_top_byte=True)

    assert of(TAG | 0x1000, TAG | 0x3000) == (0x1000, 0x3000)
    assert of(0x1000, TAG | 0x3000) == (0x1000, TAG | 0x3000)
    assert of(0, 1 << 64) == (0, 1 << 64)
    assert of(KERNELS, KERNELS + 0x1000) == (KERNELS, KERNELS + 0x1000)
    # The end may be the first address with the next tag.
    assert of(TAG, TAG + (1 << 56)) == (TAG, TAG + (1 << 56))


@pytest.mark.parametrize("source", ["pagemap", "reference"])
def test_a_tagged_pointer_has_the_frame_and_the_mapping_of_the_plain_one(source, monkeypatch):
    """pagemap of x86-64 does not ignore tags: here the address arrives there without its tag."""

    def ignores_top_byte(remove):
        return lambda *args: remove(*args, ignores_top_byte=True)

    for name in ("untagged", "untagged_array", "untagged_column", "untagged_range"):
        remove = getattr(tagged_pointers, name)
        monkeypatch.setattr(f"physview.process.{name}", ignores_top_byte(remove))
    region = Region(3).touch(0, 1)
    vaddrs = [region.start + 5, region.end - 1, 0]
    with Process("self", source=source) as process:
        plain = process.translate_many(vaddrs, with_vma=True)
        tagged = process.translate_many([TAG | vaddr for vaddr in vaddrs], with_vma=True)
        column = process.translate_array(np.array([TAG | vaddr for vaddr in vaddrs], np.uint64))
        causes = [one.cause for one in column]
        pages = [*process.iter_range(TAG | region.start, TAG | region.end)]
    assert [one.vaddr for one in tagged] == [TAG | vaddr for vaddr in vaddrs]
    assert [one[1:] for one in tagged] == [one[1:] for one in plain]
    assert [one.vma is None for one in tagged] == [False, False, True]
    assert causes == [one.cause for one in plain]
    assert pages[0].vaddrs[0] == region.start
    assert plain[2].cause is Cause.UNMAPPED


def test_the_user_address_space_ends_below_all_tags():
    with Process("self") as process:
        assert process.user_end() <= 1 << 56
        assert process.translate(process.user_end()).cause is Cause.BEYOND


def test_the_commands_say_that_there_was_a_tag(monkeypatch, capsys):
    monkeypatch.setattr(translate, "untagged", lambda a: untagged(a, ignores_top_byte=True))
    monkeypatch.setattr(walk, "untagged", lambda a: untagged(a, ignores_top_byte=True))
    assert [translate._is_tagged(each) for each in (TAG, 0x1000, KERNELS)] == [True, False, False]
    assert walk._parse_address(hex(TAG | 0x1000)) == 0x1000
    said = "physview: 1 address has a tag in the top byte, which this processor ignores"
    assert capsys.readouterr().err.startswith(said)
    assert walk._parse_address("0x1000") == 0x1000
    assert capsys.readouterr().err == ""


@pytest.mark.needs("aarch64", "pfn", "bpf")
@pytest.mark.parametrize("source", ["pagemap", "reference", "bpf", "kmod"])
def test_all_sources_ignore_tags_on_arm64(source, request):
    if source == "kmod" and not os.path.exists("/dev/3000physicalview"):
        source = "bpf"
    region = Region(2).touch(0)
    with Process("self", source=source) as process:
        plain = process.translate_many(region.pages, with_vma=True)
        tagged = process.translate_many([TAG | page for page in region.pages], with_vma=True)
    assert plain[0].paddr
    assert [one[1:] for one in tagged] == [one[1:] for one in plain]


@pytest.mark.needs("aarch64", "pfn", "bpf")
def test_a_walk_is_for_the_address_without_its_tag():
    from physview.sources.choice import open_page_tables

    region = Region(1).touch(0)
    with ProcDir() as proc, open_page_tables(proc) as tables:
        plain, tagged = tables.walk(region.start), tables.walk(TAG | region.start)
    assert plain == tagged
    assert plain.paddr
