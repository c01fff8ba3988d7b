# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files `file` examines, and which it shows: analysis/cached_files.py, commands/file.py."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from failures import one_line
from memory import PAGE

from physview import UsageError
from physview.commands.file import MAX_NAME, iter_names, parse_range
from physview.reporters.file import bar


@pytest.fixture
def tree(tmp_path):
    """Files with 1 to 5 pages, and an empty one."""
    for at, name in enumerate(["empty", "a.so", "b.txt", "below/c.so", "below/d.txt", "x y/e.so"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(at * PAGE))
    return tmp_path


def names(result, top):
    files = json.loads(result.stdout)["files"]
    return [os.path.relpath(file["path"], top) for file in files]


def test_patterns_choose_files(physview, tree):
    def found(*options):
        result = physview("file", "--json", *options, str(tree))
        assert result.returncode == 0, result.stderr
        return names(result, tree)

    assert found("--include", "*.so") == ["a.so", "below/c.so", "x y/e.so"]
    assert found("--include", "*.so", "--include", "empty", "--exclude", "a*") == [
        "empty", "below/c.so", "x y/e.so",
    ]  # fmt: skip
    assert found("--exclude", "below") == ["a.so", "b.txt", "empty", "x y/e.so"]
    assert found("--include", "*/below/*") == ["below/c.so", "below/d.txt"]
    assert found("--exclude", f"{tree}/x*") == [
        "a.so", "b.txt", "empty", "below/c.so", "below/d.txt",
    ]  # fmt: skip


def test_a_pattern_that_matches_nothing_is_a_failure(physview, tree):
    result = physview("file", "--include", "*.sos", str(tree))
    assert result.returncode == 1
    assert "no file matches --include and --exclude" in result.stderr


def test_top_shows_the_largest_first_and_sums_over_all(physview, tree):
    lines = physview("file", "--top", "2", str(tree)).stdout.splitlines()[1:]
    assert [line.partition("/")[2] for line in lines[:2]] == [
        f"{tree}/x y/e.so"[1:], f"{tree}/below/d.txt"[1:],
    ]  # fmt: skip
    assert lines[2].endswith("(6 files)")
    document = json.loads(physview("file", "--top", "1", "--json", str(tree)).stdout)
    assert [file["nr_cached"] for file in document["files"]] == [5]
    assert document["total"]["nr_files"] == 6
    assert document["total"]["nr_cached"] == 15
    assert "do not go together" in physview("file", "--top", "1", "--frames", "/").stderr


def test_cached_leaves_out_files_without_cached_pages(physview, tree):
    found = names(physview("file", "--cached", "--json", str(tree)), tree)
    assert "empty" not in found
    assert len(found) == 5
    lines = physview("file", "--cached", str(tree)).stdout.splitlines()
    assert len(lines) == 1 + 5 + 1


def test_a_range_in_bytes(physview, tree):
    kib = PAGE // 1024
    for text, nr_pages in (
        (f"1-{PAGE + 1}", 2), (f"{PAGE}-{2 * PAGE}", 1), (f"{2 * kib}K-", 3), (f"{kib}K", 1),
        (f"-{2 * kib}k", 2), ("1G-", 0),
    ):  # fmt: skip
        result = physview("file", "--json", "-p", text, f"{tree}/x y/e.so")
        (file,) = json.loads(result.stdout)["files"]
        assert (file["nr_pages"], file["nr_cached"]) == (nr_pages, nr_pages), text


@pytest.mark.parametrize("text", ["x", "5-4", "4-4", "0", "-", "-0", "1-2-3", "4KB", "1.5K", "٣"])
def test_a_text_that_is_no_range(text):
    if text == "-":  # from the start to the end
        assert parse_range(text) == (0, None)
        return
    with pytest.raises(UsageError, match="is no range"):
        parse_range(text)


def test_ranges_at_the_limits():
    assert parse_range("0-8E") == (0, (1 << 63) // PAGE)
    assert parse_range(f"0-{'9' * 5000}") == (0, (1 << 63) // PAGE)


@pytest.mark.parametrize(("end", "option"), [(b"\n", []), (b"\0", ["--null"])])
def test_paths_from_a_list(physview, tree, end, option):
    strange = os.fsencode(tree) + (b"/\xff \x1b[31m" if end == b"\n" else b"/a\nb\xff")
    with open(strange, "wb") as file:
        file.write(b"x")
    paths = [os.fsencode(tree / "a.so"), strange, os.fsencode(tree / "below")]
    (tree / "list").write_bytes(end.join([*paths, b"", paths[0]]))
    stdin = open(tree / "list", "rb")  # noqa: SIM115
    for source, options in (("-", {"stdin": stdin}), (str(tree / "list"), {})):
        result = physview("file", "--json", "--files-from", source, *option, **options)
        assert result.returncode == 0, result.stderr
        found = [os.fsencode(file["path"]) for file in json.loads(result.stdout)["files"]]
        assert found == [*paths[:2], paths[2] + b"/c.so", paths[2] + b"/d.txt"]
    stdin.close()
    text = physview("file", "--files-from", str(tree / "list"), *option).stdout
    assert "\x1b" not in text
    assert r"\xff" in text


def test_bad_lists(physview, tree, tmp_path):
    assert "cannot read" in one_line(physview("file", "--files-from", "/not/there"), 1)
    (tmp_path / "long").write_bytes(b"/" * 50000 + b"\n")
    result = physview("file", "--files-from", f"{tmp_path}/long")
    assert result.returncode == 1
    assert "longer than 4096 bytes; if NUL bytes end the paths, give --null" in result.stderr
    (tmp_path / "mixed").write_bytes(b"/not/there\n" + os.fsencode(tree / "a.so") + b"\n")
    result = physview("file", "--files-from", f"{tmp_path}/mixed")
    assert result.returncode == 1
    assert "/not/there" in result.stderr
    assert f"{tree}/a.so" in result.stdout
    for arguments in ([], ["--null", "/"], ["--all", "/"], ["--pid", "1", "--all"]):
        assert physview("file", *arguments).returncode == 2


def test_a_list_without_ends_is_not_read_to_its_end():
    class Endless(io.RawIOBase):
        nr_read = 0

        def read(self, size):
            self.nr_read += size
            return b"a" * size

    source = Endless()
    (name,) = iter_names(source, b"\n")
    assert MAX_NAME < len(name) <= source.nr_read <= 1 << 17


def test_a_file_with_several_names_counts_once(physview, tree):
    os.link(tree / "a.so", tree / "below" / "same")
    (tree / "link").symlink_to("a.so")
    paths = [str(tree), str(tree / "a.so"), str(tree / "link"), f"{tree}/below/../below"]
    found = json.loads(physview("file", "--json", *paths).stdout)
    assert found["total"]["nr_files"] == 6
    assert found["total"]["nr_cached"] == 15
    assert json.loads(physview("file", "--json", str(tree)).stdout)["total"] == found["total"]


def test_histograms_are_drawn(physview, tree):
    result = physview("file", "--histogram", f"{tree}/x y/e.so", f"{tree}/empty")
    assert "█████   " in result.stdout.splitlines()[1]
    document = json.loads(physview("file", "--histogram", "--json", f"{tree}/x y/e.so").stdout)
    assert document["files"][0]["histogram"] == [1] * 5
    assert bar([], 0) == ""


@pytest.mark.needs("kpage", "pfn")
def test_state_in_a_folder_is_that_of_each_file(physview, tree):
    each = json.loads(physview("file", "--state", "--json", str(tree)).stdout)["files"]
    for file in each:
        alone = json.loads(physview("file", "--frames", "--json", file["path"]).stdout)["files"][0]
        assert sum(run["nr_pages"] for run in alone.pop("extents")) == file["nr_cached"]
        for name in ("nr_cached", "nr_pages", "nr_mapped", "nr_runs", "nr_large", "size_bytes"):
            assert alone[name] == file[name], name


def test_a_reader_that_stops_early_ends_the_examination(tree):
    command = [sys.executable, "-m", "physview", "file", "--each", "/usr/lib", "/usr/share"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
    assert reader.stdout.readline().startswith(b"cached")
    reader.stdout.close()
    _, stderr = reader.communicate(timeout=120)
    assert reader.returncode == -signal.SIGPIPE
    assert b"Traceback" not in stderr
