# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings of devices are recognised by what the kernel says of them, whatever their path is."""

import ctypes
import fcntl
import json
import mmap
import os
import struct
import subprocess
import sys

import pytest
from detect import mappable_pci_resource
from memory import PAGE, Region
from plain_reads import smaps
from readings import usage_of

from physview.analysis.usage_reader import UsageReader
from physview.memory.snapshot import Snapshot

UDMABUF_CREATE = 0x40187542  # _IOW('u', 0x42, struct udmabuf_create)

# Maps a device's memory, without touching it, through a sysfs that is mounted elsewhere.
MAP_A_DEVICE = """
import mmap, os, subprocess, sys
folder, resource = sys.argv[1:]
subprocess.run(["mount", "-t", "sysfs", "none", folder], check=True)
fd = os.open(folder + resource.removeprefix("/sys"), os.O_RDWR)
page = mmap.mmap(fd, 4096)
print("ready", flush=True)
input()
"""


@pytest.fixture
def mapper(tmp_path):
    """A process that maps a device under a path outside of /sys and /dev, and the path."""
    command = ["unshare", "-m", sys.executable, "-c", MAP_A_DEVICE]
    child = subprocess.Popen(
        [*command, str(tmp_path), mappable_pci_resource()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    yield child.pid, str(tmp_path)
    child.communicate("\n", timeout=20)


def mapping_of(pid, path):
    with open(f"/proc/{pid}/maps") as maps:
        (line,) = [line for line in maps if path in line]
    return [int(word, 16) for word in line.split()[0].split("-")]


@pytest.mark.needs("root", "pci")
@pytest.mark.parametrize("source", ["auto", "reference"])
def test_a_device_is_one_whatever_its_path(physview, mapper, source):
    pid, path = mapper
    start, end = mapping_of(pid, path)
    words = ["translate", str(pid), "--source", source, "--json"]
    for where in (hex(start), f"{start:#x}-{end:#x}"):
        (entry,) = json.loads(physview(*words, where).stdout)["entries"]
        assert (entry["cause"], entry["mapping"]["path"][: len(path)]) == ("device", path)


def udmabuf():
    """A buffer of one page that is shared with devices: /dev/udmabuf makes it of a memfd."""
    memory = os.memfd_create("buffer", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, PAGE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with open("/dev/udmabuf", "rb+", buffering=0) as device:
        request = bytearray(struct.pack("IIQQ", memory, 0, 0, PAGE))  # ioctl() returns the result
        return fcntl.ioctl(device, UDMABUF_CREATE, request)


@pytest.mark.needs("pfn", "udmabuf")
def test_a_buffer_of_a_graphics_card(physview):
    buffer = mmap.mmap(udmabuf(), PAGE)
    buffer[0] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    pid = str(os.getpid())
    (entry,) = json.loads(physview("translate", pid, hex(start), "--json").stdout)["entries"]
    assert entry["mapping"]["path"].startswith("/dmabuf:")
    with open("/proc/self/smaps") as smaps:
        text = smaps.read()
    flags = text[text.index("/dmabuf:") :].partition("VmFlags: ")[2].partition("\n")[0].split()
    if "pf" in flags:  # before Linux 6.12 it has ordinary pages
        assert (entry["paddr"], entry["cause"]) == (None, "device")
        assert json.loads(physview("compare", pid, "--json").stdout)["nr_unexplained"] == 0
    else:
        assert entry["paddr"]


@pytest.fixture
def dax_file(tmp_path):
    """A file of 2 MiB on a DAX file system, whose pages are persistent memory and no RAM."""
    device = "/dev/pmem0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", device], check=True)
    folder = tmp_path / "dax"
    folder.mkdir()
    subprocess.run(["mount", "-t", "ext4", "-o", "dax", device, folder], check=True)
    path = folder / "file"
    path.write_bytes(b"x" * (512 * PAGE))
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        yield file
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.needs("pfn", "kpage", "pmem")
@pytest.mark.parametrize("kind", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("use_scan", [None, False])
def test_memory_of_dax_is_counted_as_smaps_counts_it(dax_file, kind, use_scan):
    region = Region(512, flags=kind, fd=dax_file.fileno(), prot=mmap.PROT_READ)
    for page in range(512):
        region.read(page)
    expected = smaps("self")[region.start]
    for with_flags in (True, False) if kind == mmap.MAP_SHARED else (True,):
        with (
            Snapshot("self", use_scan=use_scan) as snapshot,
            UsageReader(with_flags=with_flags) as reader,
        ):
            usage = usage_of(region, list(reader.iter_usage(snapshot)))
        assert usage.resident_bytes == expected["Rss"]
        assert usage.device_bytes == 512 * PAGE - expected["Rss"]
        assert usage.anon_bytes == expected["Anonymous"]
        assert not usage.nr_extents or expected["Rss"]
