# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command runs on arm64, and its addresses are those of plain reads of /proc.

scripts/test --arm64 runs this with pages of 4, 16 and 64 KiB. On x86-64, each command has its own
tests.
"""

import csv
import json
import os
import re
import sys
import time

import pytest
from children import processes
from memory import PAGE, raw_entry, resident

from physview.commands import COMMANDS

pytestmark = pytest.mark.needs("aarch64", "root", "pfn", "kpage", "kmod", "bpf", "tracefs")

# They look at QEMU, or start it: there is none for a VM in the emulated VM.
WITH_QEMU = {"guest": "--qmp", "vm": "QEMU"}
NR_PAGES = 40
PRESENT, PFN = 1 << 63, (1 << 55) - 1
SETUP = f"from memory import Region; region = Region({NR_PAGES}).touch()"


@pytest.fixture(scope="module")
def child():
    with processes() as start:
        yield start(SETUP, wait="print(region.start, flush=True); input()")


@pytest.fixture(scope="module")
def start_vaddr(child):
    return int(child.stdout.readline())


@pytest.fixture
def run(physview):
    """A function that runs a command which must not fail, and returns its output."""

    def run(*words, code=0):
        result = physview(*map(str, words))
        assert (result.returncode, words) == (code, words), result.stdout + result.stderr
        return result.stdout

    return run


def paddr_of(pid, vaddr):
    """The physical address of an address, by a plain read of pagemap."""
    entry = raw_entry(vaddr, pid)
    assert entry & PRESENT
    return (entry & PFN) * PAGE + vaddr % PAGE


def test_memview(run):
    report = run("memview")
    assert len(re.findall(r":  0x[0-9a-f]{16} -> 0x[0-9a-f]{16}$", report, re.MULTILINE)) == 40
    assert "memory map" in report.lower()


@pytest.mark.parametrize("source", ["pagemap", "kmod", "bpf"])
def test_translate(run, child, start_vaddr, source):
    vaddrs = [start_vaddr + index * PAGE + index for index in range(NR_PAGES)]
    words = ["translate", child.pid, *map(hex, vaddrs), "--json", "--source", source]
    entries = json.loads(run(*words))["entries"]
    assert [int(each["paddr"], 16) for each in entries] == [paddr_of(child.pid, v) for v in vaddrs]


@pytest.mark.parametrize("source", ["kmod", "bpf"])
def test_walk(run, child, start_vaddr, source):
    words = ["walk", child.pid, hex(start_vaddr + 5), "--json", "--source", source]
    found = json.loads(run(*words))
    assert int(found["paddr"], 16) == paddr_of(child.pid, start_vaddr + 5)
    assert found["page_size_bytes"] == PAGE


@pytest.mark.parametrize("source", ["kmod", "bpf"])
def test_compare(run, child, source):
    assert run("compare", child.pid, "--source", source).endswith("\n0 unexplained\n")


def test_maps(run, child):
    (found,) = json.loads(run("maps", child.pid, "--json"))["processes"]
    total = found["total"]
    rollup = dict(re.findall(r"(\w+): +(\d+) kB", read(f"/proc/{child.pid}/smaps_rollup")))
    assert total["resident_bytes"] == int(rollup["Rss"]) * 1024


def read(path):
    with open(path) as file:
        return file.read()


def test_pages(run, child, start_vaddr):
    rows = list(csv.DictReader(run("pages", child.pid, "--each", "--format", "csv").splitlines()))
    pfns = {int(row["vaddr"], 16): int(row["pfn"]) for row in rows if row["pfn"]}
    assert start_vaddr in pfns
    assert pfns == {vaddr: raw_entry(vaddr, child.pid) & PFN for vaddr in pfns}


def test_frames_and_owners(run, child, start_vaddr):
    found = json.loads(run("frames", "--json"))
    assert found["page_size_bytes"] == PAGE
    paddr = paddr_of(child.pid, start_vaddr)
    assert re.search(rf"\b{child.pid}\b", run("owners", hex(paddr)))


def test_tables(run, child):
    assert re.search(r"^pgd  (.*\n)+^pte  .*\n^total  ", run("tables", child.pid), re.MULTILINE)


def test_file(run, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(20 * PAGE))
    (found,) = json.loads(run("file", path, "--json"))["files"]
    assert found["nr_cached"] == len(resident(path)) == 20


def test_snapshot_and_diff(run, child, tmp_path):
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    for path in (first, second):
        run("snapshot", child.pid, "-o", path)
    run("diff", first, second)


def test_record_and_fleet(run, tmp_path):
    run("record", "--samples", 1, tmp_path)
    assert "host" in run("fleet", tmp_path, "hosts").lower()


def test_touched_and_watch(run, child):
    assert ", by accessed (" in run("touched", child.pid, "--for", "0.1")
    assert run("watch", child.pid, "--ticks", 1)


def test_exporter(run):
    assert "\n# TYPE physview_group_processes " in run("exporter", "--once")


@pytest.mark.parametrize("kind", ["svg", "html", "png"])
def test_picture(run, child, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    run("picture", child.pid, "-o", path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("event", ["kmalloc", "mm_page_alloc", "copy_to_user"])
def test_trace(run, event):
    words = ["trace", event, "-n", "2", "--seconds", "60", "--", "true"]
    assert re.search(rf"[1-9]\d* events? of \S*{event}", run(*words))


def test_the_clock_of_the_vm_is_not_in_1970():
    """Debian's arm64 kernels have no driver of the hardware clock built in."""
    assert time.time() > os.stat(__file__).st_mtime


def test_the_rest(run):
    assert run("module", "status").startswith("3000physicalview is loaded")
    assert "levels" in run("doctor")
    assert "physview" in run("completion", "bash")
    assert "heap" in run("lab")


@pytest.mark.parametrize("name", WITH_QEMU)
def test_without_qemu_a_command_says_so_in_one_line(physview, name):
    words = {"guest": ["guest", "--qmp", "/no/socket"], "vm": ["vm", "--", "true"]}[name]
    result = physview(*words)
    assert result.returncode in (1, 125)
    assert result.stderr.count("\n") == 1


def test_every_command_is_here():
    words = set(re.findall(r'"([a-z]+)"', read(sys.modules[__name__].__file__)))
    assert set(COMMANDS) <= words
