# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of files in the page cache: sources/page_cache.py and physview file."""

import json
import mmap
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from failures import one_line
from memory import PAGE, Region, kpageflags, raw_entry, resident
from users import AS_NOBODY

from physview import AccessDenied, _native
from physview.sources.page_cache import PageCache

PFN = (1 << 55) - 1
NR_PAGES = 3000


@pytest.fixture
def folder(tmp_path_factory):
    """A folder for files whose pages can be evicted. Its tests need "evicts"."""
    return tmp_path_factory.mktemp("cache")


def make(path, nr_pages=NR_PAGES):
    with open(path, "wb") as file:
        file.write(os.urandom(nr_pages * PAGE))
        os.fsync(file.fileno())
    return path


def evict(path, first=0, nr_pages=0):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), first * PAGE, nr_pages * PAGE, os.POSIX_FADV_DONTNEED)


def cached_pages(path):
    with PageCache() as cache, cache.open(str(path)) as file:
        return {
            page + i: (pfn + i if pfn else None, flags)
            for found in file.iter_cached()
            for page, pfn, nr, flags in found.tolist()
            for i in range(nr)
        }


@pytest.mark.needs("kpage", "pfn", "evicts")
def test_cached_pages_and_their_frames_are_those_of_a_plain_mapping(folder):
    path = make(folder / "f")
    evict(path, 512, 1500)
    expected = resident(path)
    assert 0 < len(expected) < NR_PAGES
    found = cached_pages(path)
    assert set(found) == expected == resident(path)  # nothing was pulled in
    with open(path, "rb") as file:
        region = Region(NR_PAGES, flags=mmap.MAP_SHARED, fd=file.fileno(), prot=mmap.PROT_READ)
    for page in sorted(expected)[:: max(1, len(expected) // 50)]:
        region.read(page)
        assert found[page][0] == raw_entry(region.start + page * PAGE) & PFN


@pytest.mark.needs("kpage", "pfn", "evicts")
def test_repeated_reads_do_not_mark_pages_as_active(folder):
    # Written once, a page is referenced; one access more makes it active.
    path = make(folder / "f")
    with PageCache() as cache:
        for _ in range(5):
            found = cache.look_at(str(path))
    assert found.nr_cached == NR_PAGES
    assert found.nr_active <= NR_PAGES // 20
    assert found.nr_mapped == 0  # not by us, either


@pytest.mark.needs("kpage", "pfn", "evicts")
def test_dirty_and_mapped_are_counted(folder):
    path = make(folder / "f", 64)
    with open(path, "r+b") as file:
        region = Region(16, flags=mmap.MAP_SHARED, fd=file.fileno())
        region.touch(*range(4))
        with PageCache() as cache:
            found = cache.look_at(str(path))
        folio = 1 << 22  # of a large folio, more is dirty and mapped than was touched
        is_large = kpageflags(raw_entry(region.start) & PFN) & folio
        assert (found.nr_mapped >= 4) if is_large else (4 <= found.nr_mapped <= 16)
        assert found.nr_dirty >= 4
        assert (found.nr_pages, found.nr_cached) == (64, 64)
        del region
        os.fsync(file.fileno())
    with PageCache() as cache:
        found = cache.look_at(str(path))
    assert (found.nr_mapped, found.nr_dirty) == (0, 0)


@pytest.mark.needs("evicts")
def test_a_file_in_more_than_one_window(folder):
    path = make(folder / "f", 9000)
    evict(path)
    with open(path, "rb") as file:
        os.pread(file.fileno(), PAGE, 8999 * PAGE)
        os.pread(file.fileno(), PAGE, 0)
    expected = resident(path)
    assert {0, 8999} <= expected
    with PageCache() as cache:
        assert cache.look_at(str(path)).nr_cached == len(expected)
    assert resident(path) == expected


@pytest.mark.needs("evicts")
def test_holes_are_counted_in_whole_pages(folder):
    path = folder / "sparse"
    with open(path, "wb") as file:
        os.pwrite(file.fileno(), b"x" * PAGE, 64 * PAGE)
        os.ftruncate(file.fileno(), 128 * PAGE + 5)
        os.fsync(file.fileno())
    with PageCache() as cache:
        found = cache.look_at(str(path))
    if not found.nr_holes:
        pytest.skip("this file system has no holes")
    # Blocks may be larger than pages.
    assert 64 <= found.nr_holes <= 128
    assert found.nr_pages == 129
    with open(path, "r+b") as file:
        os.ftruncate(file.fileno(), 0)
        os.ftruncate(file.fileno(), 10 * PAGE)
    with PageCache() as cache:
        assert cache.look_at(str(path)).nr_holes == 10


@pytest.mark.needs("fincore", "evicts")
def test_fincore_counts_the_same(folder, physview):
    paths = [str(make(folder / name, nr)) for name, nr in (("a", 100), ("b", 3000), ("c", 1))]
    evict(paths[1], 512, 1024)
    paths.append(_native.__file__)  # the kernel tells a plain user of files of his own only
    command = ["fincore", "--bytes", "--noheadings", "--raw", "--output", "PAGES,FILE", *paths]

    def theirs():
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {line.split()[1]: int(line.split()[0]) for line in lines.splitlines()}

    # The kernel may evict a page at any moment: again, until theirs did not change meanwhile.
    for _ in range(10):
        before = theirs()
        document = json.loads(physview("file", "--json", *paths).stdout)
        ours = {file["path"]: file["nr_cached"] for file in document["files"]}
        if before == theirs():
            break
    assert ours == before
    assert 0 < ours[paths[1]] < 3000


@pytest.mark.needs("vmtouch", "evicts")
def test_vmtouch_counts_the_same_of_a_folder(folder, physview):
    (folder / "below").mkdir()
    for name, nr in (("a", 10), ("below/b", 500)):
        make(folder / name, nr)
    evict(folder / "below/b", 0, 256)
    os.link(folder / "a", folder / "below" / "the-same")
    output = subprocess.run(["vmtouch", folder], capture_output=True, text=True, check=True).stdout
    cached, of = map(int, re.search(r"Resident Pages: (\d+)/(\d+)", output).groups())
    files = json.loads(physview("file", "--json", str(folder)).stdout)["files"]
    assert len(files) == 2  # two names of one are one
    assert sum(file["nr_cached"] for file in files) == cached < of
    assert sum(file["nr_pages"] for file in files) == of


@pytest.mark.needs("kpage", "pfn", "evicts")
def test_the_report_and_its_document(physview, folder):
    for name in ("a", "b"):
        make(folder / name, 8)
    one = physview("file", str(folder))
    assert (one.returncode, one.stderr) == (0, "")
    header, line = one.stdout.splitlines()
    assert header.split()[:3] == ["cached", "of", "share"]
    assert line.endswith(f"{folder} (2 files)")
    assert "100.0%" in line
    each = physview("file", "--each", str(folder)).stdout.splitlines()
    assert [row.split()[-1] for row in each[1:3]] == [f"{folder}/a", f"{folder}/b"]
    assert each[3].endswith("(2 files)")
    frames = physview("file", "--frames", str(folder / "a")).stdout
    document = json.loads(physview("file", "--frames", "--json", str(folder)).stdout)
    assert [file["path"] for file in document["files"]] == [f"{folder}/a", f"{folder}/b"]
    for file in document["files"]:
        assert sum(run["nr_pages"] for run in file["extents"]) == file["nr_cached"] == 8
    first = document["files"][0]["extents"][0]
    assert first["page"] == 0
    assert int(first["paddr"], 16) == first["pfn"] * PAGE
    assert f"pfn:{first['pfn']:#x}" in frames
    spans = re.findall(r"^  page (\d+)(?:-(\d+))? ", frames, re.M)
    assert sum(int(end or int(start) + 1) - int(start) for start, end in spans) == 8
    assert "uptodate" in first["flags"]


@pytest.mark.needs("evicts")
@pytest.mark.once("a race")
def test_a_file_that_is_truncated_and_grown_meanwhile_causes_no_sigbus(folder):
    path = make(folder / "f", 5000)
    stop = threading.Event()

    def cut():
        with open(path, "r+b") as file:
            while not stop.is_set():
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), bytes(5000 * PAGE), 0)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        with PageCache() as cache:
            for _ in range(60):
                found = cache.look_at(str(path))
                assert found.nr_cached <= found.nr_pages
    finally:
        stop.set()
        thread.join()


def test_an_empty_file_and_an_empty_folder(physview, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    result = physview("file", str(tmp_path / "empty"))
    assert result.returncode == 0
    assert result.stdout.splitlines()[1].split()[:3] == ["0", "0", "-"]
    result = physview("file", str(tmp_path / "folder"))
    assert "no file below it" in result.stderr


def test_paths_without_pages_are_named_and_the_others_are_read(physview, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "file").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        names = ["fifo", "one", "broken", "socket", "file", "none"]
        paths = [str(tmp_path / name) for name in names]
        result = physview("file", *paths, "/dev/null", prefix=["timeout", "60"])
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if "cannot look up" in line]
    assert len(said) == 6
    for word in ("a FIFO", "levels of symbolic links", "No such file", "a socket",
                 "a character device"):  # fmt: skip
        assert any(word in line for line in said), word
    assert result.stdout.splitlines()[1].endswith("/file")


@pytest.mark.needs("mountns")
def test_a_folder_that_is_mounted_into_itself_is_gone_through_once(physview, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    loop = f'mount --rbind {tmp_path} {tmp_path}/a && exec "$@"'
    prefix = ["timeout", "60", "unshare", "-m", "sh", "-c", loop, "sh"]
    document = json.loads(physview("file", "--json", str(tmp_path), prefix=prefix).stdout)
    assert len(document["files"]) == 1


def test_names_with_any_bytes_in_them(physview, tmp_path):
    name = os.fsencode(tmp_path) + b"/a\nb\xff"
    Path(os.fsdecode(name)).write_bytes(b"x")
    result = physview("file", "--each", str(tmp_path))
    assert result.returncode == 0
    assert result.stdout.splitlines()[1].endswith(r"/a\nb\xff")
    files = json.loads(physview("file", "--json", str(tmp_path)).stdout)["files"]
    assert os.fsencode(files[0]["path"]) == name


@pytest.mark.needs("evicts")
def test_a_reader_that_goes_away_is_no_error(folder):
    make(folder / "f", 5000)
    command = [sys.executable, "-m", "physview", "file", "--json", "--each", *["/usr/bin"] * 1]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    reader.stdout.close()
    _, stderr = reader.communicate()
    assert b"Traceback" not in stderr
    assert reader.returncode in (-signal.SIGPIPE, 0)


@pytest.mark.needs("nobody")
def test_nobody_is_told_counts_of_his_own_files_and_why_no_more(physview, open_folder):
    own, others, closed = (open_folder / name for name in ("own", "others", "closed"))
    for path in (own, others):
        path.write_bytes(bytes(3 * PAGE))
        path.chmod(0o644)
    os.chown(own, 65534, 65534)
    closed.mkdir(mode=0o700)
    result = physview("file", "--json", str(own), prefix=AS_NOBODY)
    assert result.returncode == 0
    assert result.stderr == ""
    (file,) = json.loads(result.stdout)["files"]
    assert (file["nr_cached"], file["nr_mapped"], file["nr_runs"]) == (3, None, None)
    result = physview("file", str(own), str(others), str(closed), prefix=AS_NOBODY)
    assert result.returncode == 1
    assert f"cannot list {closed}: Permission denied; run as root" in result.stderr
    assert result.stdout.splitlines()[1].split()[3:][-1] == str(own)
    for option in ("--frames", "--state"):
        line = one_line(physview("file", option, str(own), prefix=AS_NOBODY), 1)
        assert "cannot read /proc/kpageflags" in line
        assert "run as root" in line


@pytest.mark.needs("nobody")
def test_nobody_is_not_told_that_a_file_of_others_is_cached(physview, tmp_path_factory):
    program = (
        "from physview.sources.page_cache import PageCache\n"
        "with PageCache() as cache, cache.open('/usr/bin/env') as file:\n"
        "    list(file.iter_cached())"
    )
    command = [*AS_NOBODY, sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert AccessDenied.__name__ in result.stderr
    assert "only the file's owner" in result.stderr
