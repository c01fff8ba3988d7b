# SPDX-License-Identifier: GPL-2.0-or-later
"""The readers of /proc/kpage* agree with plain preads of the same frames."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import PAGE, Region, raw_entry
from plain_reads import plain_values
from readings import extents_of

from physview.errors import UsageError
from physview.model import NO_ENTRY, PM_PFRAME_MASK
from physview.sources.kpage import FRAMES_DTYPE, KpageFile
from physview.sources.page_flags import (
    FLAG_BITS,
    FLAG_NAMES,
    FlagFilter,
    flag_names,
    well_known,
    well_known_array,
)

NR_LOOKED_AT = 1 << 15

pytestmark = pytest.mark.needs("kpage")


def runs_of(*pairs):
    return np.array(sorted(pairs), dtype=FRAMES_DTYPE)


def split(file, runs):
    return [piece for pieces in file.iter_pieces(runs) for piece in pieces.copy().tolist()]


@pytest.fixture(scope="module")
def memory():
    """Memory of this process that no other process maps."""
    region = Region(3000).touch(*range(0, 3000, 3))
    yield region
    del region


@pytest.fixture(scope="module")
def frames(memory):
    extents = extents_of("self", memory.start, memory.end)
    return sorted((entry & PM_PFRAME_MASK, nr) for _, entry, nr in extents)


@pytest.mark.parametrize("name", ["kpagecount", "kpagecgroup"])
def test_splits_and_counts_are_what_plain_reads_give(name, frames):
    expected = {pfn + i: plain_values(name, pfn + i, 1)[0] for pfn, nr in frames for i in range(nr)}
    file = KpageFile(name)
    runs = runs_of(*frames)
    pieces = split(file, runs)
    assert {pfn + i: value for _, pfn, nr, value in pieces for i in range(nr)} == expected
    assert all(runs["pfn"][run] <= pfn for run, pfn, _, _ in pieces)
    assert sum(nr for _, _, nr, _ in pieces) == len(expected) == 1000
    assert file.count(runs) == Counter(expected.values())
    file.close()


def test_pieces_are_as_long_as_they_can_be():
    """All frames beyond the last one have the same value, so a run of them is one piece."""
    file = KpageFile("kpagecount")
    (piece,) = split(file, runs_of((1 << 45, 100_000)))
    assert piece == (0, 1 << 45, 100_000, NO_ENTRY)
    assert file.count(runs_of((1 << 45, 100_000), (1 << 46, 1))) == {NO_ENTRY: 100_001}
    file.close()


def test_the_end_of_memory_is_found_within_a_run():
    low, high = 0, 1 << 45
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle)
            if plain_values("kpagecount", middle, 1)[0] == NO_ENTRY
            else (
                middle + 1,
                high,
            )
        )
    file = KpageFile("kpagecount")
    pieces = split(file, runs_of((low - 10, 30)))
    assert pieces[-1] == (0, low, 20, NO_ENTRY)
    assert sum(nr for _, _, nr, _ in pieces[:-1]) == 10
    file.close()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, NR_LOOKED_AT), st.integers(1, 9000)), min_size=1, max_size=40)
)
@pytest.mark.alone("of frames that others take and free, two readings are compared")
def test_any_runs(pairs):
    """Counts and pieces agree for runs that touch, are apart, or overlap.

    The values of frames in use may change between two reads. So a value is compared only if two
    plain reads of it agree.
    """
    runs = runs_of(*pairs)
    file = KpageFile("kpagecgroup")
    before = plain_values("kpagecgroup", 0, NR_LOOKED_AT + 9000)
    pieces = split(file, runs)
    after = plain_values("kpagecgroup", 0, NR_LOOKED_AT + 9000)
    file.close()
    assert sum(nr for _, _, nr, _ in pieces) == int(runs["nr"].sum())
    at = [(run, pfn) for run, pfn, _, _ in pieces]
    assert at == sorted(at)
    for run, pfn, nr, value in pieces:
        assert runs["pfn"][run] <= pfn
        assert pfn + nr <= runs["pfn"][run] + runs["nr"][run]
        for i in range(pfn, pfn + nr):
            assert value == before[i] or before[i] != after[i]


def test_a_piece_continues_in_the_next_buffer(frames, monkeypatch):
    file = KpageFile("kpagecgroup")
    whole = split(file, runs_of(*frames))
    monkeypatch.setattr("physview.sources.kpage.PIECES", 3)
    parts = split(file, runs_of(*frames))
    pages = [(pfn + i, value) for _, pfn, nr, value in parts for i in range(nr)]
    assert pages == [(pfn + i, value) for _, pfn, nr, value in whole for i in range(nr)]
    file.close()


@pytest.mark.needs("pfn")
def test_the_flags_of_our_own_page():
    region = Region(1).touch()
    pfn = raw_entry(region.start) & PM_PFRAME_MASK
    file = KpageFile("kpageflags")
    ((_, found, _, value),) = split(file, runs_of((pfn, 1)))
    file.close()
    assert found == pfn
    assert {"anon", "mmap", "swapbacked"} <= set(flag_names(value))


@pytest.mark.needs("pfn")
def test_pieces_of_frames_in_any_order_are_sorted_and_know_where_they_come_from(memory):
    from physview.memory.extents import ExtentReader
    from physview.sources.procfs import ProcDir

    proc = ProcDir()
    reader = ExtentReader(proc)
    extents = np.concatenate(list(reader.iter_extents(memory.start, memory.end)))
    reader.close()
    proc.close()
    frames = np.empty(len(extents), dtype=FRAMES_DTYPE)
    frames["pfn"], frames["nr"] = extents["entry"] & np.uint64(PM_PFRAME_MASK), extents["nr_pages"]
    file = KpageFile("kpageflags")
    pieces = file.split(frames)
    file.close()
    assert (np.diff(pieces["pfn"].astype(np.int64)) > 0).all()
    firsts = pieces["pfn"][np.unique(pieces["run"], return_index=True)[1]]
    assert (firsts == frames["pfn"]).all()
    assert int(pieces["nr"].sum()) == 1000
    assert memory.size // PAGE == 3000


def test_names_and_bits_of_flags():
    assert {FLAG_NAMES[bit]: bit for bit in FLAG_NAMES} == FLAG_BITS
    assert flag_names(1 << 55 | 1) == ["locked", "bit_55"]
    assert flag_names(NO_ENTRY) == ["no_frame"]
    assert flag_names(0) == []


@given(st.integers(0, (1 << 64) - 1))
def test_flags_are_hidden_alike_one_by_one_and_in_columns(value):
    (in_column,) = well_known_array(np.array([value], dtype=np.uint64)).tolist()
    assert in_column == well_known(value)
    assert well_known(value) & ~value == 0


@given(
    st.dictionaries(st.sampled_from(sorted(FLAG_BITS)), st.booleans(), min_size=1, max_size=5),
    st.integers(0, (1 << 64) - 1),
)
def test_a_filter_chooses_what_it_says(wanted, value):
    text = ",".join(name if yes else f"!{name}" for name, yes in wanted.items())
    chosen = all((name in flag_names(value)) == yes for name, yes in wanted.items())
    found = FlagFilter.parse(text)
    if value != NO_ENTRY:
        assert found.matches(value) == chosen
        assert found.matches(np.array([value], dtype=np.uint64)).tolist() == [chosen]


@pytest.mark.parametrize("text", ["", "foo", "anon,,lru", "bit_64", "bit_", "!", "ANON x"])
def test_invalid_filters_are_refused(text):
    with pytest.raises(UsageError, match=r"(?:All are|choose one of) locked, "):
        FlagFilter.parse(text)


def test_a_filter_that_can_choose_nothing():
    with pytest.raises(UsageError, match="asked for and forbidden"):
        FlagFilter.parse("anon,~anon")
