# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab nested: one VM that all tests here share, and plain reads of its memory on the host."""

import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from failures import one_line
from memory import PAGE, raw_entry
from qemus import answers
from users import AS_NOBODY

from physview import labs
from physview.errors import PhysviewError
from physview.labs import nested, nested_vm
from physview.labs.model import Evidence, document
from physview.labs.nested_findings import explain
from physview.labs.nested_guest import SECRET
from physview.labs.nested_look import nr_moved, visit_first
from physview.sources.qmp import Qmp
from physview.system import checks, hypervisor
from physview.vm import qemu

# One accelerator for all. To open a /dev/kvm that does not work can do harm.
os.environ.setdefault("PHYSVIEW_VM_ACCEL", "tcg")

PFN = (1 << 55) - 1
IN_A_VM = pytest.mark.needs("root", "pfn", "kpage", "vm", "kernels")


@pytest.fixture(scope="module")
def visited():
    """The first boot, and what plain reads of /proc told meanwhile."""

    def visit(report, memory):
        first = visit_first(report, memory)
        last = first.looks[-1].found
        return SimpleNamespace(
            first=first,
            entries=[raw_entry(one.hva, memory.pid) for one in last],
            comm=memory.name,
        )

    return nested_vm.visit_vm(visit)


def evidence_of(first, looks):
    evidence = Evidence(nested.NAME)
    explain(evidence, first, looks)
    return evidence


@IN_A_VM
def test_each_address_is_in_the_frame_that_a_plain_read_finds(visited):
    first = visited.first
    assert visited.comm.startswith("qemu-system")
    assert not os.path.exists(f"/proc/{first.looks[0].pid}")  # the VM has ended with the visit
    assert [label for label, _, _ in first.report.entries][-1] == SECRET
    assert len(first.report.entries) == 41
    for one, entry in zip(first.looks[-1].found, visited.entries, strict=True):
        assert one.host.paddr == (entry & PFN) * PAGE + one.gpa % PAGE
        assert one.qemu_hva == one.hva
        assert one.qemu_hpa in (None, one.host.paddr)
    # All of it is RAM of the guest, which is one mapping of QEMU's.
    assert len({one.hva - one.gpa for one in first.looks[0].found}) == 1
    assert first.differences == []
    assert first.nr_checks > 2 * 2 * 41


@IN_A_VM
def test_the_secret_of_the_guest_is_found_in_qemu(visited):
    report = visited.first.report
    assert len(report.secret) == 16
    assert visited.first.secrets == [report.secret, report.secret]


@IN_A_VM
def test_the_evidence_of_a_second_boot_elsewhere(visited):
    first = visited.first
    before = first.looks[0]
    moved = [
        one._replace(hva=one.hva + PAGE, host=one.host._replace(paddr=one.host.paddr + 64 * PAGE))
        for one in before.found
    ]
    looks = [before, before, before._replace(when="in the second boot", found=moved)]
    evidence = evidence_of(first, looks)
    said = document(nested.LAB, evidence)
    assert evidence.is_usual, evidence.findings
    levels = first.report.nr_levels, checks.check_paging_levels().details["levels"]
    assert evidence.answers == [1, 1, 2 if levels == (4, 4) else None]
    addresses, again, memory, cost = said["tables"]
    for row in addresses["rows"]:
        cells = row["cells"]
        columns = ("guest_vaddr", "gpa", "hva", "hpa")
        assert len({int(cells[name], 16) % PAGE for name in columns}) == 1
        assert cells["gpa"] != cells["hpa"]
        assert "anon" in cells["flags"].split(",")
    assert all(row["changed"] == ["hva_2", "hpa_2"] for row in again["rows"])
    assert memory["rows"][0]["cells"]["size_bytes"] >= nested_vm.MEMORY_MIB << 20
    assert [row["cells"]["nr_reads"] for row in cost["rows"]] == [24, 19, 15] or levels != (4, 4)
    notes = " ".join(evidence.notes)
    assert ("guest-physical for the machine below" in notes) == bool(hypervisor.detect())
    (text,) = (finding.text for finding in evidence.findings if finding.check == "cost")
    assert ("no second stage" in text) == (first.uses_kvm is False)


@IN_A_VM
def test_the_evidence_if_the_host_moved_pages_or_nothing_at_all(visited):
    first = visited.first
    before = first.looks[0]
    moved = [
        one._replace(host=one.host._replace(paddr=one.host.paddr + 64 * PAGE))
        for one in before.found
    ]
    other = before._replace(when="after", found=moved)
    evidence = evidence_of(first._replace(looks=[before, other]), [before, other])
    assert evidence.answers[1] == 1
    texts = [finding.text for finding in evidence.findings]
    nr = len(before.pfns())
    assert any(f"{nr} of {nr} guest frames are in other frames" in text for text in texts)
    same = evidence_of(first, [before, before, before])
    assert same.answers[1] is None
    assert not same.is_usual


@pytest.mark.needs("root", "pfn", "collapse")
def test_the_host_is_made_to_move_pages_of_another_process(python):
    child = python(
        "import ctypes, mmap\n"
        "memory = mmap.mmap(-1, 8 << 20)\n"
        "memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n"
        "memory.madvise(15)\n"  # MADV_NOHUGEPAGE: small pages
        "memory.write(b'x' * (8 << 20))\n"
        "memory.madvise(14)\n"
        "print(start)\n"
    )
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    (start,) = (
        int(found[1], 16)
        for found in re.finditer(r"^(\w+)-(\w+) rw-p 0+ 00:00 0 $", maps, re.M)
        if int(found[2], 16) - int(found[1], 16) >= 8 << 20
    )
    block = -(-start // (2 << 20)) * (2 << 20)
    before = raw_entry(block, child.pid) & PFN
    assert "collapse 1 block into huge pages (MADV_COLLAPSE)" in nested_vm.make_host_move(
        child.pid, [block, block + 5 * PAGE]
    )
    assert raw_entry(block, child.pid) & PFN != before


@pytest.mark.needs("qemu")
def test_qemu_gets_the_socket_for_qmp_only_if_there_is_one():
    words = qemu.QemuMachine(Path("/k"), qmp_fd=9).command("tcg", 5, 6, 7)
    assert "socket,id=qmp,fd=9" in words
    assert "chardev=qmp,mode=control" in words
    assert "-mon" not in qemu.QemuMachine(Path("/k")).command("tcg", 5, 6, 7)


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"\xff", b'{"secret": "x", "entries": []}'])
def test_a_report_that_is_none_is_refused(line):
    with pytest.raises(PhysviewError, match="the report in the VM failed"):
        nested_vm._parse(line)


def test_qmp_by_a_socket_that_is_connected_already(tmp_path):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pid = os.fork()
    if not pid:
        answers(theirs, lambda line: line.upper())
        os._exit(0)
    with theirs, Qmp("a socket", ours) as qmp:
        assert (qmp.monitor("info"), qmp.pid) == ("INFO", pid)
        theirs.shutdown(socket.SHUT_RDWR)
    os.waitpid(pid, 0)


def test_the_lab_names_what_it_needs(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    why = labs.find("nested").why_not()
    assert "cannot do the lab nested: " in str(why)
    if os.geteuid() == 0 and checks.can_show_frames():
        assert "QEMU is not installed; " in str(why)


@pytest.mark.needs("nobody")
def test_a_user_is_not_sent_into_a_vm_where_the_lab_would_not_run(physview):
    line = one_line(physview("lab", "nested", prefix=AS_NOBODY), 1)
    assert re.search(r"hides frame numbers from this user; (sudo |as root: )", line)
    assert line.endswith(" lab nested\n")
    assert " vm " not in line


def test_moved_counts_guest_frames_not_addresses():
    def look(*pfns):
        return SimpleNamespace(pfns=lambda: dict(enumerate(pfns)))

    assert nr_moved(look(1, 2, 3), look(1, 5, None)) == 2
