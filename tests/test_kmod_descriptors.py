# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of the module's device that are passed to other users, and their memory cost."""

import contextlib
import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kmod_calls import NOBODY, call_on, in_child
from memory import PAGE, Region
from users import AS_NOBODY

from physview import Process
from physview.sources import kmod as abi
from physview.sources import page_tables

pytestmark = pytest.mark.needs("root", "pfn", "kmod")

CALLS = {
    "TRANSLATE": (abi.IOCTL_TRANSLATE, abi.TRANSLATE),
    "INFO": (abi.IOCTL_INFO, abi.INFO),
    "WALK": (abi.IOCTL_WALK, page_tables.WALK),
    "BATCH": (abi.IOCTL_BATCH, abi.BATCH),
    "RANGE": (abi.IOCTL_RANGE, abi.RANGE),
}
LEVEL_FOLDED, LEVEL_LEAF, LEVEL_HIDDEN = 1, 2, 4


def answers(fd, vaddr, pid=0):
    """The answers of WALK, BATCH and RANGE for one page: an errno, or the fields of the answer."""
    buffer = bytearray(page_tables.WALK.pack(pid, 0, vaddr, *[0] * 25, 0))
    if code := call_on(fd, abi.IOCTL_WALK, buffer):
        return code
    fields = page_tables.WALK.unpack(buffer)
    nr_levels, paddr, entry = fields[1], fields[3], fields[4]
    levels = [fields[8 + 4 * i : 12 + 4 * i] for i in range(5)]
    page = ctypes.create_string_buffer(page_tables.PAGE.size)
    extent = ctypes.create_string_buffer(page_tables.EXTENT.size)
    of_batch = ctypes.c_uint64(vaddr)
    batch = abi.BATCH.pack(pid, 1, ctypes.addressof(of_batch), ctypes.addressof(page), 0)
    of_range = abi.RANGE.pack(pid, 1, vaddr, vaddr + PAGE, ctypes.addressof(extent), 0, 0)
    assert call_on(fd, abi.IOCTL_BATCH, bytearray(batch)) == 0
    assert call_on(fd, abi.IOCTL_RANGE, bytearray(of_range)) == 0
    in_page, in_extent = page_tables.PAGE.unpack(page.raw), page_tables.EXTENT.unpack(extent.raw)
    return {
        "paddrs": [paddr, in_page[0], in_extent[1]],
        "entries": [entry, in_page[1], in_extent[3]],
        "levels": [level[:2] for level in levels],
        "flags": [level[3] for level in levels[:nr_levels]],
    }


def is_whole(answer, paddr):
    """Whether an answer has the addresses of all tables and all entries."""
    assert set(answer["paddrs"]) == {paddr}
    real = [at for at, flags in enumerate(answer["flags"]) if not flags & LEVEL_FOLDED]
    return (
        all(answer["entries"])
        and not any(flags & LEVEL_HIDDEN for flags in answer["flags"])
        and all(address and entry for address, entry in map(answer["levels"].__getitem__, real))
    )


def is_without_tables(answer, paddr):
    """Whether an answer has the physical address, but no table addresses and no entries."""
    assert set(answer["paddrs"]) == {paddr}
    assert answer["flags"][-1] & LEVEL_LEAF
    return (
        answer["entries"] == [0, 0, 0]
        and all(flags & LEVEL_HIDDEN for flags in answer["flags"])
        and answer["levels"] == [[0, 0]] * 5
    )


@pytest.fixture
def page():
    """The virtual and physical address of a page that this process shares with its children."""
    region = Region(1).touch()
    with Process() as process:
        yield region.start, process.translate(region.start).paddr


def open_device():
    return os.open(abi.DEVICE, os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def device():
    """A descriptor that root opened."""
    fd = open_device()
    yield fd
    os.close(fd)


def passed_to_nobody(fd, function):
    """Send a descriptor to a process of user nobody; return what a function of it returns there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    def receive():
        ours.close()
        os.close(fd)  # what fork() has copied: the one that is sent is to be used
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        return function(fds[0])

    with ours, theirs:
        socket.send_fds(ours, [b"x"], [fd])
        return in_child(receive, uid=NOBODY)


def every_errno(fd):
    return {
        name: call_on(fd, number, bytearray(layout.size))
        for name, (number, layout) in CALLS.items()
    }


REFUSED = dict.fromkeys(CALLS, errno.EPERM)


def test_root_that_becomes_another_user_keeps_nothing(device):
    assert every_errno(device)["INFO"] == 0
    assert in_child(lambda: every_errno(device), uid=NOBODY) == REFUSED


def test_a_descriptor_that_root_sends_is_of_no_use(device, page):
    assert passed_to_nobody(device, every_errno) == REFUSED
    assert passed_to_nobody(device, lambda fd: answers(fd, page[0])) == errno.EPERM
    # The number of an unknown call is no way to find out more.
    unknown = abi.IOCTL_RANGE + 1
    assert passed_to_nobody(device, lambda fd: call_on(fd, unknown, bytearray(8))) == errno.EPERM


def test_a_child_of_roots_may_use_what_root_opened(device, page):
    vaddr, paddr = page
    assert is_whole(in_child(lambda: answers(device, vaddr)), paddr)
    assert is_whole(in_child(lambda: answers(device, vaddr, os.getppid())), paddr)


@pytest.mark.needs("kmods")
def test_with_insecure_tables_are_roots_only(load_instead, page):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    vaddr, paddr = page

    def look():
        fd = open_device()
        return [answers(fd, vaddr), answers(fd, vaddr, os.getpid()), answers(fd, vaddr, 1)]

    ours, of_self, of_init = in_child(look, uid=NOBODY)
    assert is_without_tables(ours, paddr)
    assert (of_self, of_init) == (errno.EPERM, errno.EPERM)
    fd = open_device()
    try:
        assert is_whole(json.loads(json.dumps(answers(fd, vaddr))), paddr)
        # Root's descriptor does not show nobody more.
        passed = passed_to_nobody(fd, lambda fd: answers(fd, vaddr))
        assert is_without_tables(passed, paddr)
        assert passed_to_nobody(fd, lambda fd: answers(fd, vaddr, 1)) == errno.EPERM
    finally:
        os.close(fd)


@pytest.mark.needs("kmods")
def test_with_insecure_root_gets_no_more_from_nobodys_descriptor(load_instead, page):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    vaddr, paddr = page
    ours, theirs = socket.socketpair(socket.AF_UNIX)

    def send():
        socket.send_fds(theirs, [b"x"], [open_device()])

    with ours, theirs:
        assert in_child(send, uid=NOBODY) is None
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    try:
        assert is_without_tables(json.loads(json.dumps(answers(fd, vaddr))), paddr)
        assert answers(fd, vaddr, 1) == errno.EPERM
    finally:
        os.close(fd)


@pytest.mark.needs("kmods", "nobody")
def test_with_insecure_commands_say_what_is_hidden(load_instead, physview):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    code = """
import os, sys
from physview.commands import main
sys.exit(main(["walk", "self", hex(id(sys.argv)), *sys.argv[1:]]))
"""

    def walk(*options):
        command = [*AS_NOBODY, sys.executable, "-c", code, *options]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)

    result = walk()
    assert (result.returncode, result.stderr) == (0, "")
    levels = [line.split()[1:] for line in result.stdout.splitlines() if "└─" in line]
    assert levels[0] == ["pgd", "hidden"]
    assert {words[1] for words in levels} == {"hidden"}
    assert "hidden: addresses and entries of the page tables; run as root" in result.stdout
    document = json.loads(walk("--json").stdout)
    assert document["paddr"]
    assert {(v["address"], v["entry"], *v["bits"]) for v in document["levels"]} == {(None, None)}
    result = physview("lab", "levels", prefix=AS_NOBODY)
    assert (result.returncode, result.stderr) == (0, "")
    assert "hides the addresses of page tables" in result.stdout


# Memory

CGROUPS = Path("/sys/fs/cgroup")
NR_DESCRIPTORS = 800
KERNEL_BYTES = 14 << 10  # of each: more than all else that the kernel keeps of a descriptor


@contextlib.contextmanager
def memory_cgroup():
    """A cgroup with memory accounting."""
    (CGROUPS / "cgroup.subtree_control").write_text("+memory")
    folder = Path(tempfile.mkdtemp(dir=CGROUPS, prefix="physview-test-"))
    try:
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.needs("memcg")
def test_descriptors_are_charged_to_who_opens_them():
    with memory_cgroup() as folder:

        def grow():
            (folder / "cgroup.procs").write_text(str(os.getpid()))
            fds = [open_device()]
            before = int((folder / "memory.current").read_text())
            fds += [open_device() for _ in range(NR_DESCRIPTORS)]
            return int((folder / "memory.current").read_text()) - before

        grown = in_child(grow)
    assert grown > NR_DESCRIPTORS * KERNEL_BYTES, grown
