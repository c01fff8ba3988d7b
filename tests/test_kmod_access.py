# SPDX-License-Identifier: GPL-2.0-or-later
"""Permissions of the module's device, and other modules that may be loaded instead of ours."""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from detect import can_walk_by_bpf
from drawings import words_of
from failures import one_line, without_vm_note
from kmod_calls import NOBODY, call, call_on, in_child, insert_module, open_kmod, walk_errno
from memory import PAGE, Region
from users import AS_NOBODY

from physview import Process, Unsupported
from physview.errors import AbiMismatch
from physview.sources import kmod as abi
from physview.sources import page_tables
from physview.sources.kmod import Kmod
from physview.sources.procfs import ProcDir
from physview.system import module

pytestmark = pytest.mark.needs("root", "pfn", "kmod")


@pytest.fixture
def client(compiled):
    """The course's client program, in a folder where user nobody can run it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield shutil.copy(compiled("course_client"), folder)


def test_open_descriptors_keep_the_module(kmod):
    assert module.status().users == 1
    with pytest.raises(Unsupported, match="in use"):
        module.unload()
    assert module.status().loaded


def run_client(client, prefix=()):
    """The addresses that the course's client prints, by label."""
    result = subprocess.run([*prefix, client], capture_output=True, text=True, check=True)
    found = {line.split()[0]: int(line.split()[2], 16) for line in result.stdout.splitlines()}
    assert found["untouched"] == found["kernel"] == 0
    assert all(found[name] for name in ("string", "local", "main"))
    return found


@pytest.mark.needs("cc")
def test_the_courses_client_as_root_and_not_as_nobody(client):
    run_client(client)
    result = subprocess.run([*AS_NOBODY, client], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, f"{abi.DEVICE}: Permission denied\n")


def test_nobody_is_refused():
    assert os.stat(abi.DEVICE).st_mode & 0o777 == 0o600
    assert in_child(lambda: Kmod(ProcDir(1)), uid=NOBODY).startswith("AccessDenied: ")
    # Nor is a node enough that lets everybody in.
    os.chmod(abi.DEVICE, 0o666)
    try:
        assert in_child(lambda: os.open(abi.DEVICE, os.O_RDONLY), uid=NOBODY).startswith("Perm")
    finally:
        os.chmod(abi.DEVICE, 0o600)


def own_and_others(fd):
    """The errno of WALK, BATCH and RANGE for the caller's own memory, and for another process's."""
    region = Region(1).touch()
    answers = []
    for pid in (0, 1, os.getppid()):
        page = ctypes.create_string_buffer(page_tables.PAGE.size)
        vaddr = ctypes.c_uint64(region.start)
        extent = ctypes.create_string_buffer(page_tables.EXTENT.size)
        batch = abi.BATCH.pack(pid, 1, ctypes.addressof(vaddr), ctypes.addressof(page), 0)
        of_range = abi.RANGE.pack(pid, 1, region.start, region.end, ctypes.addressof(extent), 0, 0)
        answers.append([
            walk_errno(fd, pid, region.start),
            call_on(fd, abi.IOCTL_BATCH, bytearray(batch)),
            call_on(fd, abi.IOCTL_RANGE, bytearray(of_range)),
        ])  # fmt: skip
        untouched = (0,) * 5, (0,) * 7
        found = page_tables.PAGE.unpack(page.raw), page_tables.EXTENT.unpack(extent.raw)
        assert (found == untouched) == (pid != 0)  # a call that is refused tells nothing
    return answers


OWN_ONLY = [[0, 0, 0], [errno.EPERM] * 3, [errno.EPERM] * 3]


@pytest.mark.parametrize("capability", ["sys_ptrace", "sys_admin"])
def test_another_process_takes_both_capabilities(physview, capability):
    without = ["setpriv", f"--bounding-set=-{capability}"]
    line = one_line(physview("walk", "1", "0", prefix=without), 1)
    assert f"root lacks CAP_{capability.upper()} here" in line
    result = physview("walk", "self", "0", prefix=without)
    assert ("no entry" in result.stdout) == (capability == "sys_ptrace"), result


@pytest.mark.needs("cc", "kmods")
def test_with_insecure_nobody_sees_memory_of_their_own(load_instead, client):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    assert module.status().insecure
    assert os.stat(abi.DEVICE).st_mode & 0o777 == 0o666
    run_client(client)
    run_client(client, AS_NOBODY)

    def look():
        with open(abi.DEVICE, "rb", buffering=0) as device:
            return own_and_others(device.fileno())

    assert in_child(look, uid=NOBODY) == OWN_ONLY
    assert in_child(lambda: Kmod(ProcDir(1)).walk(0), uid=NOBODY).startswith("AccessDenied: ")
    # What nobody is told is true: the page is still the parent's, too.
    region = Region(1).touch()
    with Process() as process:
        paddr = process.translate(region.start).paddr

    def walk():
        with open_kmod() as kmod:
            return kmod.walk(region.start).paddr

    assert in_child(walk, uid=NOBODY) == paddr
    # And root is not kept from anything.
    with open_kmod(1) as kmod, Process(1) as process:
        stack = next(vma for vma in process.iter_vmas() if vma.path == "[stack]").end - PAGE
        assert kmod.walk(stack).paddr == process.translate(stack).paddr


@pytest.mark.needs("kmods", "nobody")
def test_with_insecure_memview_works_as_nobody(load_instead, physview):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    for source in ("kmod", "auto"):
        result = physview("memview", "--source", source, prefix=AS_NOBODY)
        assert (result.returncode, len(result.stdout.splitlines())) == (0, 41)
        assert without_vm_note(result.stderr) == ""
        assert "UNKNOWN" not in result.stdout
    assert json.loads(physview("memview", "--json").stdout)["source"] == "pagemap"
    document = json.loads(physview("memview", "--json", prefix=AS_NOBODY).stdout)
    assert document["source"] == "kmod"
    # What pagemap hides the walk names: that is no difference.
    document = json.loads(physview("compare", "self", "--json", prefix=AS_NOBODY).stdout)
    by_name = {verdict["verdict"]: verdict["nr_pages"] for verdict in document["verdicts"]}
    assert by_name["hidden"] > (4 << 20) // PAGE
    assert document["nr_unexplained"] == 0
    assert not {"same_frame", "same_swap"} & set(by_name)
    assert "CAP_SYS_ADMIN" in one_line(physview("walk", "1", "0", prefix=AS_NOBODY), 1)


@pytest.mark.needs("kmods", "nobody")
def test_with_insecure_a_drawn_walk_says_what_is_hidden(load_instead, physview, open_folder):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    path = open_folder / "walk.svg"
    result = physview("walk", "self", "--picture", str(path), prefix=AS_NOBODY)
    assert result.returncode == 0, result
    assert "-> 0x" in result.stdout
    assert "addresses and entries of page tables are hidden; run as root" in result.stderr
    words = words_of(path)
    with open_kmod() as kmod:
        nr_tables = min(kmod.info.nr_levels, 4)  # arm64 with pages of 64 KiB has 3
    assert words.count("hidden from this user") >= nr_tables
    assert not {"empty", "a table", "a page"} & set(words)


@pytest.mark.needs("kmods")
def test_load_and_unload_commands_on_what_is_loaded(load_instead, physview):
    load_instead(os.environ["PHYSVIEW_KMOD"], "insecure=1")
    assert "for every user" in physview("module", "status").stdout
    assert physview("module", "unload").returncode == 0
    assert not os.path.exists(abi.DEVICE)
    assert "not loaded" in one_line(physview("module", "unload"), 1)
    assert physview("module", "status").returncode == 1
    for command in (("walk", "self", "0"), ("memview",)):
        line = one_line(physview(*command, "--source", "kmod"), 1)
        assert "the module is not loaded" in line
    insert_module(os.environ["PHYSVIEW_KMOD"])
    assert "for root" in physview("module", "status").stdout


# The course's own


@pytest.fixture
def course(load_instead):
    """Loads the course's module, which cannot walk huge pages: memview must get none."""
    choice = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    before = choice.read_text().partition("[")[2].partition("]")[0]
    choice.write_text("never")
    load_instead(os.environ["PHYSVIEW_COURSE_KMOD"])
    yield
    choice.write_text(before)


@pytest.mark.needs("kmods")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTTY])
def test_the_courses_module_is_known_by_either_error(load_instead, code):
    load_instead(os.environ["PHYSVIEW_COURSE_KMOD"], f"unknown_errno={code}")
    assert call(abi.IOCTL_INFO, bytearray(abi.INFO.size)) == code
    with open_kmod() as kmod:
        assert kmod.info is None


@pytest.mark.needs("kmods")
def test_with_the_courses_module_memview_works_and_the_rest_says_what_it_lacks(
    course, physview, sleeper
):
    result = physview("memview", "--source", "kmod")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 41)
    assert without_vm_note(result.stderr) == ""
    assert "UNKNOWN" not in result.stdout
    result = physview("memview", "--source", "kmod", "--json")
    assert (result.returncode, without_vm_note(result.stderr)) == (0, ""), result.stdout
    walks = [("walk", "self", "0x400000"), ("walk", str(sleeper.pid), "0x400000")]
    walks += [("compare", "self"), ("compare", str(sleeper.pid))]
    for command in (*walks, ("translate", str(sleeper.pid), "0x400000")):
        line = one_line(physview(*command, "--source", "kmod"), 1)
        assert "the loaded module is the course's" in line, command
        assert " module load" in line
    for command in walks:
        result = physview(*command)
        if can_walk_by_bpf():
            assert (result.returncode, result.stderr) == (0, ""), result
        else:
            assert "the loaded module is the course's" in one_line(result, 1)


@pytest.mark.needs("kmods")
def test_what_the_courses_module_says_is_what_pagemap_says(course):
    region = Region(300).touch(*range(200))
    with Process() as process, Process(source="kmod") as walker:
        said = process.translate_many(region.pages)
        walked = walker.translate_many(region.pages)
    assert [t.paddr for t in walked] == [t.paddr for t in said]
    assert all(t.paddr for t in said[:200])


@pytest.mark.needs("kmods")
def test_status_and_doctor_with_the_courses_module(course, physview):
    result = physview("module", "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "3000physicalview is loaded: not physview's own, for every user, 0 users\n"
    )
    status = json.loads(physview("module", "status", "--json").stdout)
    assert (status["loaded"], status["version"], status["insecure"]) == (True, "", True)
    result = physview("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    findings = json.loads(result.stdout)["findings"]
    (found,) = (finding for finding in findings if finding["name"] == "module")
    assert found["details"]["loaded"]
    assert found["details"]["device"]


@pytest.mark.needs("kmods")
def test_a_module_of_another_abi_version(load_instead, physview, sleeper):
    load_instead(os.environ["PHYSVIEW_COURSE_KMOD"], "abi_version=99")
    with pytest.raises(AbiMismatch, match="speaks version 99 of the ABI, not 1"):
        Kmod(ProcDir())
    for command in (
        ("memview",),
        ("walk", "self", "0"),
        ("compare", "self"),
        ("translate", str(sleeper.pid), "0"),
    ):
        line = one_line(physview(*command, "--source", "kmod"), 1)
        assert "version 99 of the ABI, not 1" in line
        assert " module load" in line
