# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel tells of a file's pages, and what it does not: sources/page_cache.py."""

import ctypes
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

import pytest
from memory import PAGE, libc, resident
from users import AS_NOBODY

from physview import AccessDenied, PhysviewError
from physview.sources.page_cache import PageCache

CACHESTAT = 451  # the same on all architectures
COUNTS = ("nr_cached", "nr_dirty", "nr_writeback", "nr_evicted", "nr_recently_evicted")
EIB = 1 << 60
# A second of CPU time is hundreds of times what one of these look-ups takes.
MOST_SECONDS = 1


def cachestat(path):
    """The five counts of cachestat(2), through ctypes; None if the kernel does not have it."""
    counts = (ctypes.c_uint64 * 5)()
    size = -(-os.path.getsize(path) // PAGE) * PAGE
    with open(path, "rb") as file:
        everything = (ctypes.c_uint64 * 2)(0, size)
        failed = libc.syscall(CACHESTAT, file.fileno(), everything, counts, 0)
    return None if failed else dict(zip(COUNTS, counts, strict=True))


def look(path, **options):
    with PageCache(**({"with_frames": False} | options)) as cache:
        return cache.look_at(str(path))


@pytest.fixture
def has_cachestat(tmp_path):
    (tmp_path / "probe").write_bytes(b"x")
    if cachestat(tmp_path / "probe") is None:
        pytest.skip("no cachestat(): Linux 6.5 or later has it")


@pytest.fixture
def in_memory():
    """A folder in a tmpfs, whose files can have any size."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


def sparse(folder, size, *places):
    """A file with a page of data at each place, in bytes."""
    path = f"{folder}/sparse"
    with open(path, "wb") as file:
        os.ftruncate(file.fileno(), size)
        for place in places:
            os.pwrite(file.fileno(), b"x" * PAGE, place)
    return path


def test_the_counts_are_those_of_cachestat(has_cachestat, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(700 * PAGE + 5))
    for _ in range(20):  # the kernel may write pages at any moment
        before = cachestat(path)
        found = look(path)
        if before == cachestat(path):
            break
    assert {name: getattr(found, name) for name in COUNTS} == before
    assert found.nr_pages == 701
    assert found.nr_mapped is None
    assert found.nr_runs is None


def write_and_evict(path, nr_pages, first, nr_evicted):
    """Write a file to the disk, and evict some of its pages; 0 means all up to the end."""
    path.write_bytes(bytes(nr_pages * PAGE))
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), first * PAGE, nr_evicted * PAGE, os.POSIX_FADV_DONTNEED)


@pytest.mark.needs("evicts")
def test_without_cachestat_mincore_counts_the_same(tmp_path):
    path = tmp_path / "file"
    write_and_evict(path, 9000, 100, 4200)
    expected = len(resident(path))
    assert 0 < expected < 9000
    for with_cachestat in (True, False):
        assert look(path, with_cachestat=with_cachestat).nr_cached == expected
    assert look(path, with_cachestat=False).nr_dirty is None


@pytest.mark.needs("kpage", "pfn")
@pytest.mark.parametrize("with_cachestat", [True, False])
def test_frames_are_found_wherever_the_pages_are(in_memory, with_cachestat):
    places = [0, 4095 * PAGE, 4096 * PAGE, 10**9 // PAGE * PAGE, (1 << 30) - PAGE]
    path = sparse(in_memory, 1 << 30, *places)
    found = look(path, with_frames=True, with_cachestat=with_cachestat)
    assert found.nr_cached == len(resident(path)) >= 5
    assert found.nr_active is not None
    with PageCache(with_cachestat=with_cachestat) as cache, cache.open(path) as file:
        runs = [run for found in file.iter_cached() for run in found.tolist()]
    pages = {page + at for page, _, nr, _ in runs for at in range(nr)}
    assert pages == resident(path)


@pytest.mark.parametrize("size", [16 << 40, 8 * EIB - PAGE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_cachestat": False},
        pytest.param({"with_frames": True}, marks=pytest.mark.needs("kpage", "pfn")),
        pytest.param(
            {"with_frames": True, "with_cachestat": False}, marks=pytest.mark.needs("kpage", "pfn")
        ),
    ],
    ids=str,
)
def test_the_time_for_a_sparse_file_does_not_grow_with_its_size(in_memory, size, options):
    middle = size // 2 // PAGE * PAGE
    path = sparse(in_memory, size, 0, middle, size - PAGE)
    start = time.process_time()
    found = look(path, **options)
    assert time.process_time() - start < MOST_SECONDS
    nr_large = 512 if found.nr_cached > 3 else 1  # huge=always: huge pages in tmpfs
    assert 3 <= found.nr_cached <= 3 * nr_large
    assert found.nr_pages == size // PAGE
    assert found.nr_holes == found.nr_pages - found.nr_cached


def test_a_range_of_a_huge_sparse_file(in_memory):
    middle = 4 * EIB
    path = sparse(in_memory, 8 * EIB - PAGE, 0, middle)
    for first, end, nr_cached in ((0, 1, 1), (1, middle // PAGE, 0), (middle // PAGE, None, 1)):
        found = look(path, pages=(first, end))
        assert found.nr_cached >= nr_cached
        assert (found.nr_cached > 0) == (nr_cached > 0) or found.nr_cached == 511
    assert look(path, pages=(1 << 52, None)).nr_pages == 0


@pytest.mark.needs("evicts")
def test_a_range_counts_its_pages_only(tmp_path):
    path = tmp_path / "file"
    write_and_evict(path, 100, 32, 32)
    kept = resident(path)
    for with_cachestat in (True, False):
        for first, end in ((0, 10), (16, 48), (40, 200), (99, None)):
            found = look(path, pages=(first, end), with_cachestat=with_cachestat)
            within = range(first, min(100, end or 100))
            assert found.nr_pages == len(within)
            assert found.nr_cached == len(kept & set(within))


@pytest.mark.needs("evicts")
def test_a_histogram_adds_up_and_shows_where_pages_are(tmp_path):
    path = tmp_path / "file"
    write_and_evict(path, 1000, 512, 0)
    kept = resident(path)
    for with_cachestat in (True, False):
        cache = PageCache(with_frames=False, with_cachestat=with_cachestat)
        with cache, cache.open(str(path)) as file:
            parts = file.histogram(32)
            assert file.summary().nr_cached == len(kept)  # it is not disturbed
    ends = [1000 * at // 32 for at in range(33)]
    expected = [len(kept & set(range(a, b))) for a, b in itertools.pairwise(ends)]
    assert parts == expected


def test_files_without_a_page_cache_are_refused_and_not_opened():
    with PageCache() as cache:
        for path in ("/proc/self/maps", "/sys/kernel/mm/transparent_hugepage/enabled"):
            if os.path.exists(path):
                with pytest.raises(PhysviewError, match="keeps no pages of it there"):
                    cache.look_at(path)


@pytest.mark.needs("mountns", "nobody")
def test_through_overlayfs_cachestat_is_not_believed(open_folder, physview):
    mount = (
        f"cd {open_folder} && mkdir lower upper work merged && mount -t overlay overlay"
        " -o lowerdir=lower,upperdir=upper,workdir=work merged && head -c 4194304 /dev/zero"
        ' > merged/file && chown 65534:65534 merged/file && exec "$@"'
    )
    in_overlay = ["unshare", "-m", "sh", "-c", mount, "sh"]
    path = f"{open_folder}/merged/file"
    result = physview("file", "--json", path, prefix=[*in_overlay, *AS_NOBODY])
    if "unknown filesystem" in result.stderr or "not supported as upperdir" in result.stderr:
        pytest.skip("the kernel has no overlayfs, or cannot have it over this file system")
    assert result.returncode == 0, result.stderr
    (file,) = json.loads(result.stdout)["files"]
    assert file["nr_cached"] == (4 << 20) // PAGE
    assert [file[name] for name in COUNTS[1:]] == [None] * 4
    assert "dirty and evicted pages of 1 files are not known" in result.stderr


@pytest.mark.needs("root", "mountns", "kpage", "pfn")
def test_through_overlayfs_root_sees_dirty_pages_by_their_frames(tmp_path, physview):
    mount = (
        f"cd {tmp_path} && mkdir lower upper work merged && mount -t tmpfs t upper && mkdir upper/u"
        " upper/w && mount -t overlay overlay -o lowerdir=lower,upperdir=upper/u,workdir=upper/w"
        ' merged && head -c 409600 /dev/zero > merged/file && exec "$@"'
    )
    prefix = ["unshare", "-m", "sh", "-c", mount, "sh"]
    result = physview("file", "--state", "--json", f"{tmp_path}/merged/file", prefix=prefix)
    if "unknown filesystem" in result.stderr:
        pytest.skip("the kernel has no overlayfs")
    (file,) = json.loads(result.stdout)["files"]
    assert file["nr_cached"] == file["nr_dirty"] == -(-409600 // PAGE)
    assert file["nr_evicted"] is None


@pytest.mark.needs("nobody")
@pytest.mark.parametrize("with_cachestat", [True, False])
def test_nobody_is_not_told_that_all_of_a_file_is_cached(open_folder, with_cachestat):
    path = open_folder / "file"
    write_and_evict(path, 200, 0, 100)
    path.chmod(0o644)
    kept = len(resident(path))
    program = (
        "from physview.sources.page_cache import PageCache\n"
        f"with PageCache(with_cachestat={with_cachestat}) as cache:\n"
        f"    print(cache.look_at({str(path)!r}).nr_cached)"
    )
    command = [*AS_NOBODY, sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:  # refused: always by mincore(), by cachestat() since Linux 6.13
        assert AccessDenied.__name__ in result.stderr
    else:
        assert with_cachestat
        assert int(result.stdout) == kept
