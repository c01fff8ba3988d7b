# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk through a tree of files that others may change: sources/file_tree.py."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time

import pytest
from descriptors import open_files
from users import AS_NOBODY

from physview.sources import file_tree
from physview.sources.file_tree import FileTree


def walk(path, **options):
    errors = []
    files = [
        folder.path + name
        for folder in FileTree(str(path), errors.append, **options)
        for name in folder.names
    ]
    return files, errors


def test_below_a_folder_links_are_not_followed_and_special_files_left_out(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a/file")
    os.mkfifo(tmp_path / "fifo")
    assert walk(tmp_path) == ([str(tmp_path / "a" / "file")], [])


def test_files_come_before_folders_and_both_by_name(tmp_path):
    for name in ("b/2", "b/1", "a/z/9", "a/8", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, _ = walk(tmp_path)
    assert [os.path.relpath(file, tmp_path) for file in files] == [
        "c",
        "a/8",
        "a/z/9",
        "b/1",
        "b/2",
    ]
    assert walk(f"{tmp_path}/b/")[0] == [f"{tmp_path}/b/1", f"{tmp_path}/b/2"]


@pytest.fixture
def deep():
    """A folder with a tree of 2500 levels, in memory: a file, beside the next level, on each."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        folder = f"{top}/deep"
        os.mkdir(folder)
        fd = os.open(folder, os.O_RDONLY)
        for _ in range(2500):
            os.mkdir("a", dir_fd=fd)
            os.mkdir("b", dir_fd=fd)
            beside = os.open("b", os.O_RDONLY, dir_fd=fd)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=beside))
            os.close(beside)
            below = os.open("a", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        yield folder
        # Python's own rmtree() cannot go down so far.
        subprocess.run(["rm", "-rf", folder], check=True)


def test_a_tree_deeper_than_a_path_can_be_long(deep):
    before = open_files()
    nr_files = most_open = 0
    for folder in FileTree(deep, pytest.fail):
        assert folder.names == ["file"]
        assert os.stat("file", dir_fd=folder.fd)
        nr_files += 1
        if nr_files % 100 == 1:
            most_open = max(most_open, len(open_files()))
    assert nr_files == 2500
    assert most_open <= len(before) + file_tree.MOST_OPEN + 8
    assert open_files() <= before


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    top = tmp_path / "top"
    (top / "inner").mkdir(parents=True)
    (top / "file").touch()
    errors = []
    walked = iter(FileTree(str(top), errors.append))
    assert next(walked).names == ["file"]
    (top / "inner").rmdir()
    (top / "inner").symlink_to(outside)
    assert list(walked) == []
    assert len(errors) == 1
    assert "inner" in str(errors[0])


def test_a_folder_that_is_exchanged_while_it_is_closed_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(file_tree, "MOST_OPEN", 2)
    for name in ("a/a/a/a/file", "a/b/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    errors = []
    walked = iter(FileTree(str(tmp_path), errors.append))
    assert next(walked).path.endswith("/a/a/a/a/")
    os.rename(tmp_path / "a", tmp_path / "was-a")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "other").touch()
    assert [folder.names for folder in walked] == []
    assert "another folder has taken its place" in str(errors[0])


def test_names_of_a_large_folder_are_not_all_held(tmp_path, monkeypatch):
    monkeypatch.setattr(file_tree, "NAMES_AT_ONCE", 100)
    for at in range(1050):
        (tmp_path / f"{at}").touch()
    sizes, seen = [], set()
    for folder in FileTree(str(tmp_path), pytest.fail):
        sizes.append(len(folder.names))
        assert folder.names == sorted(folder.names)
        seen.update(folder.names)
    assert max(sizes) <= 100
    assert len(seen) == 1050


@pytest.mark.needs("root")
def test_file_systems_without_a_page_cache_are_left_out():
    for path in ("/sys", "/proc"):
        tree = FileTree(path, pytest.fail)
        assert list(tree) == []
        assert tree.virtual == [path]


def test_sysfs_is_left_out_with_one_line_and_its_files_are_refused(physview):
    result = physview("file", "--each", "/sys/kernel", prefix=["timeout", "60"])
    assert result.returncode == 0
    assert result.stdout.count("\n") == 1  # the header
    assert "/sys/kernel is left out: its file system has no page cache" in result.stderr
    assert result.stderr.count("\n") <= 2
    for path, name in (("/sys/kernel/mm/transparent_hugepage/enabled", "sysfs"),
                       ("/proc/self/maps", "proc")):  # fmt: skip
        if not os.path.exists(path):
            continue
        result = physview("file", path)
        assert result.returncode == 1
        assert f"its file system ({name}) keeps no pages of it there" in result.stderr


@pytest.mark.needs("nobody")
def test_closed_folders_are_named_and_the_others_are_walked(physview, open_folder):
    for name in ("closed", "open", "unlisted"):
        (open_folder / name).mkdir()
        (open_folder / name / "file").touch()
        os.chown(open_folder / name / "file", 65534, 65534)
    (open_folder / "closed").chmod(0)
    (open_folder / "unlisted").chmod(0o711)
    result = physview("file", "--json", str(open_folder), prefix=AS_NOBODY)
    assert result.returncode == 1
    files = [file["path"] for file in json.loads(result.stdout)["files"]]
    assert files == [f"{open_folder}/open/file"]
    for name in ("closed", "unlisted"):
        assert f"cannot list {open_folder}/{name}: Permission denied" in result.stderr


def test_files_that_come_go_and_change_their_kind_meanwhile(physview, tmp_path):
    stop = threading.Event()

    def change():
        at = 0
        while not stop.is_set():
            at += 1
            path = tmp_path / f"{at % 200}"
            make = (
                lambda path=path: os.mkfifo(path),
                lambda path=path: path.symlink_to("/etc/passwd"),
                path.mkdir,
                lambda path=path, size=at % 9000: write(path, size),
            )[at % 4]
            for step in (path.unlink, path.rmdir, make):
                with contextlib.suppress(OSError):
                    step()

    def write(path, size):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW)
        os.write(fd, bytes(size))
        os.close(fd)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            result = physview("file", "--json", str(tmp_path), prefix=["timeout", "60"])
            assert result.returncode == 0, result.stderr
            paths = [file["path"] for file in json.loads(result.stdout)["files"]]
            assert all(path.startswith(f"{tmp_path}/") for path in paths)
    finally:
        stop.set()
        thread.join()
