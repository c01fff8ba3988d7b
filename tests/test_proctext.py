# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsers of /proc text with user-chosen names: every byte value, and real processes."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physview.sources.procfs import MemoryMap, ProcDir, parse_maps_line, parse_vm_flags
from physview.text import proctext

# All but the end of a string, and often those that programs split at.
names = st.lists(
    st.one_of(
        st.integers(1, 255).map(lambda byte: bytes([byte])),
        st.sampled_from([b" ", b"\t", b"\n", b"\v", b"\f", b"\r", b"\\", b"\\040", b" - ", b"#"]),
        st.sampled_from(
            [b"\x1c", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"tracefs", b" (deleted)"]
        ),
    ),
    min_size=1,
    max_size=12,
).map(b"".join)


def mangle(name, special):
    """Escape a name as the kernel's mangle_path() does."""
    return b"".join(b"\\%03o" % byte if byte in special else bytes([byte]) for byte in name)


@given(names)
def test_escapes_are_undone(name):
    for special in (b" \t\n\\", b" \t\n\\#"):
        assert proctext.unescape(mangle(name, special)) == name


@pytest.mark.parametrize("byte", range(1, 256))
def test_each_byte_of_a_mount_is_the_names_or_the_kernels(byte):
    name = b"/" + bytes([byte]) + b"tracefs"
    point = mangle(name, b" \t\n\\")
    source = mangle(name, b" \t\n\\#")
    line = b"7 6 0:99 / %s rw shared:1 master:2 - fuse.x %s rw,size=3\n" % (point, source)
    (mount,) = proctext.parse_mountinfo(line)
    assert mount == (99, "/", os.fsdecode(name), "fuse.x", ("rw", "size=3"))


@given(st.lists(names, min_size=1, max_size=4))
def test_no_mount_point_is_two_lines_or_another_field(points):
    text = b"".join(
        b"7 6 0:99 %s %s rw - %s %s rw\n"
        % (*[mangle(b"/" + point, b" \t\n\\")] * 2, *[mangle(point, b" \t\n\\#")] * 2)
        for point in points
    )
    mounts = proctext.parse_mountinfo(text)
    assert [mount.path for mount in mounts] == [os.fsdecode(b"/" + point) for point in points]
    assert [mount.root for mount in mounts] == [mount.path for mount in mounts]
    assert [mount.kind for mount in mounts] == [os.fsdecode(point) for point in points]


@given(st.binary())
def test_any_bytes_are_some_mounts_or_none(text):
    for mount in proctext.parse_mountinfo(text):
        assert mount.options


@given(names)
def test_a_path_of_maps_is_all_that_follows_its_column(name):
    name = name.replace(b"\\", b"/")
    head = b"7f00-8f00 r-xp 00001000 fe:01 42 "
    line = head.ljust(73) + mangle(b"/" + name, b"\n") + b"\n"
    vma = parse_maps_line(line)
    assert vma.path == os.fsdecode(b"/" + name)
    assert vma[:6] == (0x7F00, 0x8F00, "r-xp", 0x1000, "fe:01", 42)


@given(names)
def test_no_name_in_status_is_another_field(name):
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    text = b"Name:\t%s\nUid:\t1\t2\nCapEff:\t000f\n" % escaped
    fields = proctext.fields_by_name(text)
    assert set(fields) == {b"Name", b"Uid", b"CapEff"}
    assert fields[b"CapEff"] == b"000f"


@given(names)
def test_a_value_loses_the_kernels_newline_only(name):
    assert proctext.value(name + b"\n") == name


IN_NAMESPACE = ["unshare", "-m", sys.executable, "-c"]

MOUNTS_OF_EVERY_BYTE = r"""
import os, sys
from memory import PAGE, libc
from physview.text import proctext
folder = sys.argv[1].encode()
SIZE = b"size=%dk" % (PAGE // 1024)
assert libc.mount(b"t", folder, b"tmpfs", 0, None) == 0
wanted = []
for byte in set(range(1, 256)) - set(b"/"):
    path = folder + b"/a" + bytes([byte]) + b"b"
    os.mkdir(path)
    assert libc.mount(b"source " + bytes([byte]), path, b"tmpfs", 0, SIZE) == 0
    wanted.append((os.stat(path).st_dev, os.fsdecode(path), "tmpfs"))
found = [m for m in proctext.read_mounts() if os.fsencode(m.path).startswith(folder + b"/")]
assert [(m.device, m.path, m.kind) for m in found] == wanted
assert all(SIZE.decode() in m.options for m in found)
"""


@pytest.mark.needs("mountns")
def test_mount_points_with_every_byte_are_read_as_they_were_made(tmp_path, tests_on_path):
    subprocess.run([*IN_NAMESPACE, MOUNTS_OF_EVERY_BYTE, tmp_path], check=True, env=tests_on_path)


NAMES = [b"a" + bytes([byte]) + b"b" for byte in range(1, 256) if byte not in b"/"]
NAMES += [b"x\r7fff-8000 VmFlags: pf", b"y\n1-2 r--p 0 0:0 0 ", b"z\\012", b" w (deleted)"]
MAPPED = r"""
import mmap, os
kept = []
for name in NAMES:
    path = FOLDER + b"/" + name
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4096)
    kept.append(mmap.mmap(fd, 4096))
    memfd = os.memfd_create(os.fsdecode(name))
    os.ftruncate(memfd, 4096)
    kept.append(mmap.mmap(memfd, 4096))
    os.close(fd), os.close(memfd)
os.unlink(FOLDER + b"/" + NAMES[0])
"""


@pytest.fixture
def mapped(python, tmp_path):
    """A process that maps files and memfds with every byte value in their names."""
    return python(f"FOLDER, NAMES = {os.fsencode(tmp_path)!r}, {NAMES!r}\n{MAPPED}")


@pytest.mark.needs("root")
def test_mapped_files_with_every_byte_are_read_as_they_are_called(mapped, tmp_path):
    r"""Also "\n" and "\012", which look the same in maps."""
    proc = ProcDir(mapped.pid)
    paths = {vma.path for vma in proc.iter_vmas()}
    names = list(map(os.fsdecode, NAMES))
    assert f"{tmp_path}/{names[0]} (deleted)" in paths
    assert paths >= {f"{tmp_path}/{name}" for name in names[1:]}
    assert paths >= {f"/memfd:{name} (deleted)" for name in names}
    assert paths == {vma.path for vma in MemoryMap(proc).vmas}
    proc.close()


def test_the_flags_of_mappings_are_theirs_whatever_files_are_called(mapped):
    r"""A "\r" once ended a line, and the rest of the name was parsed as a mapping."""
    proc = ProcDir(mapped.pid)
    memory = MemoryMap(proc)
    for vma in memory.vmas:
        if not vma.path.startswith("[v"):  # those are the kernel's own
            assert not memory.has_flag(vma, "pf")
            told = [memory.has_flag(vma, flag) for flag in ("rd", "wr", "ex")]
            assert told == [letter in vma.perms for letter in "rwx"]
    flags = parse_vm_flags(proc.iter_lines("smaps"))
    assert set(flags) == {vma.start for vma in memory.vmas}
    proc.close()


@pytest.mark.parametrize(
    "comm", [b"a) R 1 1", b"a\nb) Z 0", b"\n\n", b" x ", b"\rCapEff:\tff", b"\\n\x85\xff", b"()"]
)
def test_a_name_is_a_name_and_nothing_else(python, comm):
    child = python(f"from memory import libc; assert libc.prctl(15, {comm!r}, 0, 0, 0) == 0")
    proc = ProcDir(child.pid)
    stat = proc.stat()
    assert os.fsencode(proc.comm()) == comm
    assert stat.state in "RS"
    assert not stat.has_ended
    assert (stat.start_time, stat.start_stack > 1 << 20) == (plain_start_time(child.pid), True)
    proc.close()


def plain_start_time(pid):
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split(b" ")[20])
