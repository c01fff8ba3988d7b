# SPDX-License-Identifier: GPL-2.0-or-later
"""The module's walk, for every kind of page, against pagemap. Runs where the module is loaded."""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import subprocess

import pytest
from conftest import AS_NOBODY, one_line
from memory import HUGE, PAGE, SHARED, Region, libc, pfnmap_ranges, raw_entry

from physview import AccessDenied, Cause, NoUserMemory, Process, ProcessGone, Unsupported, module
from physview import kmod as abi
from physview.analysis.compare import Comparer, Verdict
from physview.kmod import Kmod
from physview.model import PageKind
from physview.procfs import ProcDir

pytestmark = pytest.mark.needs("root", "pfn", "kmod")

MADV_PAGEOUT, MADV_MERGEABLE = 21, 12


@pytest.fixture
def kmod():
    proc = ProcDir()
    kmod = Kmod(proc)
    yield kmod
    kmod.close()
    proc.close()


def agree(kmod, vaddr):
    """Both witnesses' answer to one address, which has to be the same."""
    with Process() as process:
        said = process.translate(vaddr)
        walk = kmod.walk(vaddr)
        with Process(source="kmod") as walker:
            walked = walker.translate(vaddr)
    assert walk.paddr == walked.paddr == said.paddr, (said, walk)
    return walk


def test_info_is_what_the_machine_is(kmod):
    with Process() as process:
        assert kmod.info.user_end == process.user_end()
    assert kmod.info.nr_levels == (5 if kmod.info.user_end > 1 << 47 else 4)
    assert 1 << kmod.info.page_shift == PAGE


def test_a_page_and_its_levels(kmod):
    region = Region(1).touch()
    walk = agree(kmod, region.start + 0x10)
    assert walk.kind is PageKind.PRESENT
    assert walk.page_size_bytes == PAGE
    assert [level.name for level in walk.levels] == ["pgd", "p4d", "pud", "pmd", "pte"]
    assert [level.leaf for level in walk.levels] == [False] * 4 + [True]
    assert walk.levels[1].folded == (kmod.info.nr_levels == 4)
    assert walk.levels[-1].entry & 1
    # Each entry names the table in which the next one lies.
    table_mask = (1 << 52) - PAGE
    real = [level for level in walk.levels if not level.folded]
    for above, below in itertools.pairwise(real):
        assert above.entry & table_mask == below.address & ~(PAGE - 1)
    assert real[-1].entry & table_mask == walk.paddr & ~(PAGE - 1)


def test_text_stack_heap_and_vdso(kmod):
    with Process() as process:
        vmas = list(process.iter_vmas())
    for vma in vmas:
        if vma.path in ("[stack]", "[heap]", "[vdso]") or vma.perms == "r-xp":
            for page in range(vma.start, min(vma.end, vma.start + 50 * PAGE), PAGE):
                agree(kmod, page)


@pytest.mark.needs("pfnmap")
def test_vvar_is_seen_by_the_walk_only(kmod):
    vvar = pfnmap_ranges()[0].start
    with Process() as process:
        assert process.translate(vvar).cause is Cause.DEVICE
    ctypes.string_at(vvar, 1)
    assert kmod.walk(vvar).kind is PageKind.PRESENT


def test_the_zero_page_and_prot_none_and_a_hole(kmod):
    region = Region(3)
    region.read(0)
    region.touch(1)
    assert agree(kmod, region.start).kind is PageKind.PRESENT
    assert agree(kmod, region.start + 2 * PAGE).kind is PageKind.NONE
    region.mprotect(0)
    walk = agree(kmod, region.start + PAGE)
    assert walk.kind is PageKind.PROT_NONE
    assert walk.paddr
    assert not walk.levels[-1].entry & 1


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_files_and_shared_memory(kmod, tmp_path, flags):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3 * PAGE)
    with open(path, "r+b") as file:
        from_file = Region(3, flags=flags, fd=file.fileno())
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 3 * PAGE)
    from_memory = Region(3, flags=flags, fd=fd)
    os.close(fd)
    anonymous = Region(3, flags=SHARED)
    for region in (from_file, from_memory, anonymous):
        region.touch(0)
        region.read(1)
        for page in region.pages:
            agree(kmod, page)


@pytest.mark.needs("guard")
def test_a_guard_region(kmod):
    region = Region(2).touch()
    region.madvise(Region.MADV_GUARD_INSTALL)
    assert agree(kmod, region.start).kind is PageKind.MARKER
    with Process(source="kmod") as process:
        assert process.translate(region.start).cause is Cause.GUARD


@pytest.mark.needs("swap")
def test_swapped_pages_are_swapped_to_the_same_place(kmod):
    region = Region(64).touch()
    region.madvise(MADV_PAGEOUT)
    kinds = []
    for page in region.pages:
        with Process() as process:
            said = process.translate(page)
        walk = kmod.walk(page)
        if said.entry.raw == raw_entry(page) and said.cause is Cause.SWAPPED:
            assert walk.kind is PageKind.SWAP
            assert walk.swap == said.entry.swap
            kinds.append(walk.kind)
    assert len(kinds) > 32, "MADV_PAGEOUT swapped nothing out"


@pytest.mark.needs("thp")
def test_huge_pages_split_ones_and_huge_prot_none(kmod):
    with Region.huge(2) as region:
        region.touch()
        walk = agree(kmod, region.start + 5 * PAGE)
        assert walk.page_size_bytes == HUGE
        assert [level.name for level in walk.levels][-1] == "pmd"
        part = Region.__new__(Region)
        part.start, part.size = region.start, HUGE
        part.mprotect(0)
        walk = agree(kmod, region.start + 7 * PAGE)
        assert walk.kind is PageKind.PROT_NONE
        assert walk.page_size_bytes == HUGE
        part.size = PAGE
        part.mprotect(mmap.PROT_READ)  # splits the mapping
        assert agree(kmod, region.start).page_size_bytes == PAGE
        assert agree(kmod, region.start + PAGE).kind is PageKind.PROT_NONE
        part.size = 0


@pytest.mark.needs("hugetlb")
def test_hugetlb_pages(kmod):
    region = Region(HUGE // PAGE, flags=0x40000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.touch(0)
    walk = agree(kmod, region.start + 3 * PAGE)
    assert walk.page_size_bytes == HUGE


def test_above_47_bits(kmod):
    if kmod.info.nr_levels == 4:
        pytest.skip("4 levels of page tables have nothing there")
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(1 << 52, PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert address == 1 << 52
    ctypes.memset(address, 1, 1)
    walk = agree(kmod, address)
    assert not walk.levels[1].folded
    assert walk.paddr
    libc.munmap(address, PAGE)


@pytest.mark.parametrize(
    "vaddr",
    [
        1 << 63,
        (1 << 64) - 1,
        0xFFFF888000000000,
        0xFFFFFFFF81000000,
        1 << 57,
        0x8000_0000_0000_0000,
    ],
)
def test_kernel_and_non_canonical_addresses_are_refused(kmod, vaddr):
    walk = kmod.walk(vaddr)
    assert (walk.kind, walk.paddr, walk.levels) == (PageKind.BEYOND, None, [])
    buffer = bytearray(abi.TRANSLATE.pack(vaddr, 77))
    with open(abi.DEVICE, "rb", buffering=0) as device:
        fcntl.ioctl(device, abi.IOCTL_TRANSLATE, buffer)
    assert abi.TRANSLATE.unpack(buffer) == (vaddr, 0)


def test_another_process_and_a_thread_of_it(kmod, python):
    child = python(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    with Process(child.pid) as process, Process(child.pid, source="kmod") as walker:
        for vma in process.iter_vmas():
            pages = range(vma.start, min(vma.end, vma.start + 20 * PAGE), PAGE)
            for said, walked in zip(
                process.translate_many(pages), walker.translate_many(pages), strict=True
            ):
                assert said.cause is Cause.DEVICE or said.paddr == walked.paddr
    thread = max(int(tid) for tid in os.listdir(f"/proc/{child.pid}/task"))
    assert thread != child.pid
    with Process(thread, source="kmod") as walker:
        assert walker.translate(vma.start).vaddr == vma.start


def test_processes_that_have_no_memory(kmod, python):
    with pytest.raises(NoUserMemory, match="kernel thread"), Process(2, source="kmod") as process:
        process.translate(0)
    child = python()
    with Process(child.pid, source="kmod") as process:
        process.translate(0)
        child.kill()
        child.wait()
        with pytest.raises(ProcessGone):
            process.translate(0)


# The ABI


def call(request, buffer):
    """The errno of an ioctl, or 0."""
    with open(abi.DEVICE, "rb", buffering=0) as device:
        try:
            fcntl.ioctl(device, request, buffer)
        except OSError as error:
            return error.errno
    return 0


@pytest.mark.parametrize(
    ("request_number", "argument", "code"),
    [
        (0x6B01, b"", errno.ENOTTY),
        (abi.IOCTL_TRANSLATE + 5, b"", errno.ENOTTY),
        (abi.IOCTL_TRANSLATE + (1 << 16), b"", errno.ENOTTY),  # another size is another command
        (abi.IOCTL_WALK, abi.WALK.pack(0, 0, *[0] * 26, 1), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 0, 1), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1 << 31, 0, 0), errno.EINVAL),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 8, 0), errno.EFAULT),
        (abi.IOCTL_BATCH, abi.BATCH.pack(0, 1, 1 << 63, 0), errno.EFAULT),
        (abi.IOCTL_BATCH, abi.BATCH.pack(4194305, 1, 0, 0), errno.ESRCH),
        (abi.IOCTL_BATCH, abi.BATCH.pack(-1, 1, 0, 0), errno.ESRCH),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, PAGE, 0, 0, 1), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 0, 0, PAGE, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 1, PAGE, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, PAGE, 0, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, 1 << 63, 0, 0, 0), errno.EINVAL),
        (abi.IOCTL_RANGE, abi.RANGE.pack(0, 1, 0, 1 << 46, 8, 0, 0), errno.EFAULT),
    ],
)
def test_what_is_wrong_is_refused(request_number, argument, code):
    assert call(request_number, bytearray(argument or 16)) == code


def test_bad_pointers_are_efault():
    with open(abi.DEVICE, "rb", buffering=0) as device:
        for number in (abi.IOCTL_TRANSLATE, abi.IOCTL_INFO, abi.IOCTL_WALK, abi.IOCTL_RANGE):
            for pointer in (0, 8, 1 << 63, 0xFFFF888000000000):
                result = libc.ioctl(
                    device.fileno(), ctypes.c_ulong(number), ctypes.c_ulong(pointer)
                )
                assert (result, ctypes.get_errno()) == (-1, errno.EFAULT)


@pytest.mark.parametrize("nr", [1, 2, 7, 255, 256, 257, 4096])
def test_a_range_is_the_same_however_little_room_there_is(kmod, nr):
    region = Region(3000).touch(*range(1500), *range(1500, 3000, 2))
    pages = {}
    for extents in kmod.iter_extents(region.start, region.end, nr=nr):
        assert len(extents) <= nr
        for extent in extents:
            for i in range(int(extent["length"]) // PAGE):
                vaddr = int(extent["vaddr"]) + i * PAGE
                assert vaddr not in pages
                pages[vaddr] = int(extent["paddr"]) + i * PAGE
    with Process() as process:
        said = {t.vaddr: t.paddr for t in process.translate_many(region.pages) if t.paddr}
    assert pages == said


def test_open_descriptors_keep_the_module(kmod):
    assert module.status().users == 1
    with pytest.raises(Unsupported, match="in use"):
        module.unload()
    assert module.status().loaded


def test_the_courses_client_as_root_and_not_as_nobody(compiled):
    client = compiled("course_client")
    result = subprocess.run([client], capture_output=True, text=True, check=True)
    found = {line.split()[0]: int(line.split()[2], 16) for line in result.stdout.splitlines()}
    assert found["untouched"] == found["kernel"] == 0
    assert all(found[name] for name in ("string", "local", "main"))
    result = subprocess.run([*AS_NOBODY, client], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Permission denied" in result.stderr


def test_nobody_is_refused():
    os_stat = os.stat(abi.DEVICE)
    assert os_stat.st_mode & 0o777 == 0o600
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            Kmod(ProcDir(1))
        except AccessDenied:
            os._exit(42)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


# compare


def test_compare_finds_nothing_unexplained_in_processes_that_run(python):
    child = python(
        "import threading, memory\n"
        "kept = memory.Region(20000).touch(*range(0, 20000, 3))\n"
        "def churn():\n"
        "    while True:\n"
        "        memory.Region(300).touch()\n"
        "threading.Thread(target=churn, daemon=True).start()",
        wait="import time; time.sleep(600)",
    )
    for pid in (1, os.getpid(), child.pid):
        proc = ProcDir(pid)
        comparer = Comparer(proc)
        comparison = comparer.compare()
        comparer.close()
        proc.close()
        assert comparison.nr_unexplained == 0, (comparison.counts, comparison.examples)
        assert comparison.counts[Verdict.SAME_FRAME] > 100
        assert comparison.counts.get(Verdict.MOVED, 0) < 100


def test_the_commands(physview):
    result = physview("memview", "--source", "kmod")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 41), result
    assert "UNKNOWN" not in result.stdout
    result = physview("compare", "self")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("0 unexplained\n")
    result = physview("walk", "self", "0")
    assert result.returncode == 1
    assert "UNKNOWN  no entry" in result.stdout
    assert "nothing is mapped" not in one_line(physview("walk", "2", "0"), 1)
