# SPDX-License-Identifier: GPL-2.0-or-later
"""physview guest: a real QEMU's memory, and sockets at which somebody else answers."""

import json
import mmap
import os
import re
import struct
import time

import numpy as np
import pytest
from failures import one_line
from hypothesis import given
from hypothesis import strategies as st
from memory import PAGE, raw_entry
from plain_reads import plain_values, smaps
from qemus import MARK, MARKS, answers, run_qemu, serve, stop_guest
from users import AS_NOBODY

from physview.analysis.guest_memory import GuestMemory, total
from physview.model import PM_PRESENT
from physview.sources.qemu_memory import MAX_RANGES, parse_mtree
from physview.sources.qmp import Qmp

HUGE = 2 << 20
PFN = (1 << 55) - 1
VIEW = 'FlatView #1\r\n AS "memory", root: system\r\n Root memory region: system\r\n'
NEVER_TOUCHED = 0x3000_0000


@pytest.fixture(scope="module")
def qemu(tmp_path_factory):
    with run_qemu(tmp_path_factory.mktemp("qemu")) as qemu:
        time.sleep(2)  # the BIOS ends with a halted processor
        stop_guest(qemu)
        yield qemu


def document(physview, qemu, *words):
    result = physview("guest", "--qmp", qemu.path, "--json", *words)
    return json.loads(result.stdout) | {"exit": result.returncode, "stderr": result.stderr}


@pytest.mark.needs("qemu", "pfn")
def test_the_ranges_are_all_memory_that_qemu_maps_for_the_guest(physview, qemu):
    found = document(physview, qemu)
    assert (found["exit"], found["stderr"], found["differences"]) == (0, "", [])
    assert found["qemu"]["pid"] == qemu.pid
    assert found["qemu"]["kvm"] is False
    low, high = (part for part in found["ranges"] if part["size_bytes"] > 512 << 20)
    assert int(high["start"], 16) == 1 << 32
    in_ram = [part for part in found["ranges"] if part["name"] == "pc.ram"]
    # The guest's RAM is one mapping of QEMU's, but for the first MiB's shadow of the BIOS.
    assert {int(part["hva"], 16) - part["offset_bytes"] for part in in_ram} == {
        int(low["hva"], 16) - low["offset_bytes"]
    }
    (ram,) = (size for size in smaps(qemu.pid).values() if size["Size"] == 2 << 30)
    resident = sum(part["resident_bytes"] for part in in_ram)
    # The BIOS's data at 0xa0000 to 0xc0000 is hidden behind the VGA card.
    assert 0 <= ram["Rss"] - resident <= 0x20000
    assert found["total"]["size_bytes"] == sum(part["size_bytes"] for part in found["ranges"])
    assert found["nr_hva_checks"] > 2 * len(found["ranges"])
    assert found["nr_hpa_checks"] > 2


def huge_blocks(pid, start, end):
    """The host's huge pages in a range, found page by page in pagemap and kpageflags."""
    for at in range(-(-start // HUGE) * HUGE, end // HUGE * HUGE, HUGE):
        with open(f"/proc/{pid}/pagemap", "rb") as file:
            entries = np.frombuffer(
                os.pread(file.fileno(), HUGE // PAGE * 8, at // PAGE * 8), "<u8"
            )
        first = int(entries[0])
        if not first & PM_PRESENT or (first & PFN) % (HUGE // PAGE):
            continue
        if ((entries & np.uint64(PFN)) == (first & PFN) + np.arange(len(entries))).all():
            flags = plain_values("kpageflags", first & PFN, len(entries))
            if all(value >> 22 & 1 for value in flags):  # thp
                yield at


@pytest.mark.needs("qemu", "pfn", "kpage", "thp")
@pytest.mark.parametrize("use_scan", [pytest.param(True, marks=pytest.mark.needs("scan")), False])
def test_huge_pages_and_the_aligned_ones_are_those_of_a_plain_search(qemu, use_scan):
    with Qmp(qemu.path) as qmp, GuestMemory(qmp, use_scan=use_scan) as memory:
        parts = list(memory.iter_parts())
    seen_shifts = set()
    for part in parts:
        guest, end = part.guest, part.hva + part.guest.end - part.guest.start
        blocks = list(huge_blocks(qemu.pid, part.hva - HUGE, end + HUGE))
        inside = [max(0, min(at + HUGE, end) - max(at, part.hva)) for at in blocks]
        assert part.huge_bytes == sum(inside), guest
        gpas = [guest.start + at - part.hva for at in blocks]
        aligned = [
            gpa
            for gpa in gpas
            if gpa % HUGE == 0 and guest.start <= gpa and gpa + HUGE <= guest.end
        ]
        assert part.aligned_bytes == HUGE * len(aligned), guest
        assert part.shift_bytes == (part.hva - guest.start) % HUGE
        if part.huge_bytes:
            seen_shifts.add(part.shift_bytes)
    sums = total(parts)
    assert 0 < sums["aligned_bytes"] < sums["huge_bytes"] <= sums["resident_bytes"]
    assert 1 << 20 in seen_shifts  # above 4 GiB: huge, but nowhere aligned


@pytest.mark.needs("qemu", "pfn")
def test_each_address_is_where_the_guest_wrote_and_where_qemu_says(physview, qemu):
    found = document(physview, qemu, *map(hex, MARKS))
    assert (found["exit"], found["stderr"], found["ranges"]) == (0, "", None)
    with open(f"/proc/{qemu.pid}/mem", "rb", buffering=0) as memory:
        for gpa, one in zip(MARKS, found["addresses"], strict=True):
            hva, paddr = int(one["hva"], 16), int(one["paddr"], 16)
            assert struct.unpack("<Q", os.pread(memory.fileno(), 8, hva)) == (MARK,)
            assert paddr == (raw_entry(hva, qemu.pid) & PFN) * PAGE + gpa % PAGE
            assert (one["qemu_hva"], one["qemu_hpa"]) == (one["hva"], one["paddr"])
            assert one["name"] == "pc.ram"
            assert "anon" in one["flags"]
    assert found["nr_hpa_checks"] == len(MARKS)


@pytest.mark.needs("qemu", "pfn")
def test_no_memory_is_unknown_with_its_cause(physview, qemu):
    words = ("0xfed00000", "0xffffffffffff0000", hex(NEVER_TOUCHED), hex(MARKS[0]))
    result = physview("guest", "--qmp", qemu.path, *words)
    assert result.returncode == 1
    lines = result.stdout.splitlines()[3:7]
    assert "UNKNOWN" in lines[0]
    assert lines[0].endswith("no memory: a device (i/o)")
    assert lines[1].endswith("the guest has nothing at this address")
    assert "never touched" in lines[2]
    assert "pfn:0x" in lines[3]


@pytest.mark.needs("qemu", "pfn")
def test_looking_leaves_the_memory_as_it_is(physview, qemu):
    # QEMU's gpa2hpa writes to the page that it is asked about.
    (one,) = document(physview, qemu, hex(NEVER_TOUCHED))["addresses"]
    assert one["cause"] == "absent"
    assert one["qemu_hpa"] is None
    assert not raw_entry(int(one["hva"], 16), qemu.pid) & PM_PRESENT
    before = smaps(qemu.pid)
    document(physview, qemu)
    assert smaps(qemu.pid).keys() == before.keys()
    after = smaps(qemu.pid)
    assert {start: each["Rss"] for start, each in after.items() if each["Size"] >= 2 << 30} == {
        start: each["Rss"] for start, each in before.items() if each["Size"] >= 2 << 30
    }


@pytest.mark.needs("qemu", "pfn")
def test_the_text_names_the_ranges_the_sums_and_the_flags(physview, qemu):
    result = physview("guest", "--qmp", qemu.path)
    assert (result.returncode, result.stderr) == (0, "")
    text = result.stdout
    assert re.search(rf"^QEMU [0-9.]+, process {qemu.pid} \(qemu-system-x86\): emulation", text)
    assert re.search(r"^0x000100000000-0x\w+  ram   pc\.ram  .* 0x100000$", text, re.M)
    assert "Aligned with the guest's own 2 MiB boundaries: " in text.replace("\n", " ")
    assert re.search(r"^ *\d+\.\d MiB  .*\banon\b", text, re.M)
    assert "answers of gpa2hva" in text
    assert text.rstrip().endswith("none differs.")


@pytest.mark.needs("qemu", "pfn")
def test_memory_that_is_a_file(physview, tmp_path):
    # Shared memory. QEMU 7.2 maps it one page before a multiple of 2 MiB.
    backend = ("-object", "memory-backend-memfd,id=file,size=2G,share=on")
    with run_qemu(tmp_path, *backend, "-machine", "memory-backend=file") as qemu:
        found = document(physview, qemu, *map(hex, MARKS))
        assert (found["exit"], found["nr_hpa_checks"]) == (0, len(MARKS))
        assert {one["name"] for one in found["addresses"]} == {"file"}
        assert not any("anon" in one["flags"] for one in found["addresses"])
        text = physview("guest", "--qmp", qemu.path).stdout
        sums = document(physview, qemu)["total"]
    assert 0 < sums["resident_bytes"] < sums["size_bytes"]
    if not sums["huge_bytes"]:
        assert "None of it is in host huge pages of 2 MiB." in text


@pytest.mark.needs("qemu", "nobody")
def test_a_guest_of_ones_own_needs_no_root(physview, open_folder):
    with run_qemu(open_folder, prefix=AS_NOBODY) as qemu:
        stop_guest(qemu)  # its BIOS moves memory meanwhile
        result = physview("guest", "--qmp", qemu.path, prefix=AS_NOBODY)
        assert result.returncode == 0, result
        assert "frames of the host are hidden from this user" in result.stderr
        assert re.search(r"resident \(\d+\.\d%\)", result.stdout)
        one = physview("guest", "--qmp", qemu.path, hex(MARKS[0]), prefix=AS_NOBODY)
        assert one.returncode == 1
        assert "hides its frame number" in one.stdout


@pytest.mark.needs("qemu", "nobody", "pfn")
def test_a_qemu_that_sees_no_frames_itself_is_no_difference(physview, open_folder):
    with run_qemu(open_folder, prefix=AS_NOBODY) as qemu:
        stop_guest(qemu)  # its BIOS moves memory meanwhile
        found = document(physview, qemu, hex(MARKS[0]))
    assert (found["exit"], found["differences"], found["nr_hpa_checks"]) == (0, [], 0)
    assert "QEMU runs without CAP_SYS_ADMIN" in found["stderr"]
    assert int(found["addresses"][0]["qemu_hpa"], 16) < PAGE


@pytest.mark.needs("qemu", "nobody")
def test_a_guest_of_root_is_denied_in_one_line(physview, open_folder):
    with run_qemu(open_folder) as qemu:
        os.chmod(qemu.path, 0o777)
        line = one_line(physview("guest", "--qmp", qemu.path, prefix=AS_NOBODY), 1)
    assert f"you may not examine process {qemu.pid}; run as root" in line


@pytest.mark.needs("qemu")
def test_another_process_is_not_believed_to_be_qemu(physview, qemu, sleeper):
    line = one_line(physview("guest", "--qmp", qemu.path, "--pid", str(sleeper.pid)), 1)
    assert f"process {sleeper.pid} (python" in line
    assert "is not the QEMU that answers: it has no memory at 0x" in line
    assert line.endswith("; name QEMU's process with --pid\n")


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("word", ["4194305", "no-such-name"])
def test_a_process_that_is_missing_is_one_line(physview, qemu, word):
    one_line(physview("guest", "--qmp", qemu.path, "--pid", word), 1)


@pytest.mark.parametrize("word", ["12", "x", "pfn:0x1"])
def test_an_address_that_is_none_is_refused_before_anybody_is_asked(physview, word):
    one_line(physview("guest", "--qmp", "/no/socket", word), 2)


class Liar:
    """Who answers as QEMU would, but what he likes. His memory is this process's."""

    def __init__(self, ranges, hva=lambda gpa: None, hpa=None):
        self.ranges, self.hva, self.hpa = ranges, hva, hpa

    def __call__(self, line):
        if line.startswith("info mtree"):
            return self.ranges
        answer = (self.hva if "gpa2hva" in line else self.hpa)(int(line.split()[1], 16))
        return answer if isinstance(answer, str) else f"Host address for 0 (x) is {answer:#x}\r\n"


def ask(physview, tmp_path, liar, *words):
    with serve(tmp_path, lambda connection: answers(connection, liar)) as path:
        return physview("guest", "--qmp", path, *words)


def line_of(start, end, name="a", kind="ram"):
    return f"  {start:016x}-{end - 1:016x} (prio 0, {kind}): {name}\r\n"


@pytest.mark.parametrize(
    ("ranges", "why"),
    [
        ("", "info mtree -f names no memory: ''"),
        ("a\x1b[31m\u202e\n" * 99, r"names no memory: 'a\x1b[31m\u202e\n"),
        (VIEW + line_of(0, 4096, kind="i/o"), "names no memory"),
        (
            VIEW + "".join(line_of(at, at + 1) for at in range(MAX_RANGES + 1)),
            f"names {MAX_RANGES + 1} ranges, more than {MAX_RANGES}",
        ),
        (VIEW + line_of(0, 1 << 46), "it has no memory at 0x10, where QEMU has a"),
        (VIEW + line_of(0, 4096), "it has no memory at 0x10, where QEMU has a"),
        (VIEW + line_of(0, 4096, "\x1b[31m\r" + "n" * 999), r"where QEMU has \x1b[31m\rnnn"),
    ],
)
def test_memory_that_no_qemu_has_is_one_short_line(physview, tmp_path, ranges, why):
    line = one_line(ask(physview, tmp_path, Liar(ranges, lambda gpa: gpa + 16)), 1)
    assert why in line
    assert line[:-1].isprintable()
    assert len(line) < 600


def test_ranges_that_repeat_the_same_memory_are_limited(physview, tmp_path):
    # Otherwise 1000 ranges could each be all of the memory of a large process.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    with mmap.mmap(-1, 1 << 40, flags) as region:
        start = np.frombuffer(region, dtype=np.uint8).ctypes.data
        names = [line_of(at << 40, (at + 1) << 40) for at in range(3)]
        liar = Liar(VIEW + "".join(names), lambda gpa: start + gpa % (1 << 40))
        assert "more than the process can have" in one_line(ask(physview, tmp_path, liar), 1)


def test_a_range_without_or_with_torn_answers_is_a_difference(physview, tmp_path):
    for hva in ("No memory is mapped", lambda gpa: 4096 if gpa else 77):
        liar = Liar(
            VIEW + line_of(0, 4096, "\x1b[31m"), hva if callable(hva) else lambda _, a=hva: a
        )
        result = ask(physview, tmp_path, liar)
        assert result.returncode == 1
        assert r"0x0-0x1000 \x1b[31m: info mtree -f tells one range, but gpa2hva" in result.stderr
        assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.needs("pfn")
def test_an_answer_that_differs_is_named(physview, tmp_path):
    with mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        region.write(b"x" * 64 * PAGE)
        start = np.frombuffer(region, dtype=np.uint8).ctypes.data
        names = VIEW + line_of(0, 64 * PAGE, "\x1b]0;x\x07" + "n" * 99)
        truth = lambda gpa: (raw_entry(start + gpa) & PFN) * PAGE + gpa % PAGE  # noqa: E731
        good = Liar(names, lambda gpa: start + gpa, truth)
        assert ask(physview, tmp_path, good, hex(PAGE)).returncode == 0
        liar = Liar(names, lambda gpa: start + gpa, lambda gpa: truth(gpa) + PAGE)
        result = ask(physview, tmp_path, liar, hex(PAGE))
        told, ours = truth(PAGE) + PAGE, truth(PAGE)
        assert result.returncode == 1
        assert result.stderr == (
            f"physview: QEMU's answer differs: {PAGE:#x}: gpa2hpa tells {told:#x}, but it is"
            f" {ours:#x}\n"
        )
        assert "\x1b" not in result.stdout
        wrong = Liar(names, lambda gpa: start + gpa + (gpa == 2 * PAGE), truth)
        result = ask(physview, tmp_path, wrong, hex(2 * PAGE))
        assert "gpa2hva tells" in result.stderr


@given(st.text(alphabet=st.sampled_from("0f-(), :@\r\nramo/iKV2 "), max_size=300))
def test_any_text_is_parsed_to_ranges_in_order(text):
    found = parse_mtree(VIEW + text)
    ends = [0, *(one.end for one in found)]
    assert all(end <= one.start < one.end <= 1 << 64 for end, one in zip(ends, found, strict=False))


def test_only_the_processors_view_is_taken():
    other = VIEW.replace('"memory"', '"vga"') + line_of(0, 1 << 40, "other")
    text = other + VIEW + line_of(0, 4096, "mine") + other
    assert [one.name for one in parse_mtree(text)] == ["mine"]


def test_overlapping_ranges_are_left_out():
    text = VIEW + line_of(0, 8192) + line_of(4096, 9999) + line_of(8192, 8192 + 1)
    assert [(one.start, one.end) for one in parse_mtree(text)] == [(0, 8192), (8192, 8193)]
