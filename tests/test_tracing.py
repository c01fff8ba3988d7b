# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsers of tracing: pages of the buffer, format files, symbols, /proc/kcore, instance names."""

import os
import re
import struct
from pathlib import Path

import pytest
from failures import one_line

from physview import UsageError
from physview.analysis.trace import (
    IMAGES,
    KernelMap,
    address_ranges,
    find_image,
    fold,
    parse_kcore,
)
from physview.reporters.trace import wrapped
from physview.tracing import Event, StackFrame, targets
from physview.tracing.events import parse_format
from physview.tracing.ftrace import FtraceSource
from physview.tracing.instance import InstanceOwner, new_owner
from physview.tracing.processors import PROCESSORS
from physview.tracing.symbols import Symbols
from physview.tracing.targets import find_function
from physview.tracing.trace_buffer import Record, StackMatcher, iter_records
from physview.units import terminal_width


def page(*events, time=1000, more=b""):
    content = b"".join(events)
    flags = 3 << 30  # events were missed, and it is stored how many
    return struct.pack("<QQ", time, len(content) | flags) + content + more


def word(kind, delta):
    return struct.pack("<I", kind | delta << 5)


def test_records_of_a_page_have_their_times_and_contents():
    content = page(
        word(2, 5) + b"12345678",
        word(0, 1) + struct.pack("<I", 4 + 120) + b"x" * 120,
        word(30, 7) + struct.pack("<I", 1),
        word(1, 0) + b"abcd",
        word(29, 2) + struct.pack("<I", 8) + b"-" * 4,
        word(31, 3) + struct.pack("<I", 9),
        word(1, 1) + b"efgh",
        word(29, 0) + b"what was here before",
        more=b"12345678",
    )
    extended = 1006 + 7 + (1 << 27)
    assert list(iter_records(content)) == [
        (1005, b"12345678"),
        (1006, b"x" * 120),
        (extended, b"abcd"),
        (3 + (9 << 27) + 1, b"efgh"),
    ]
    assert list(iter_records(page())) == []


def test_a_stack_is_matched_with_its_record_also_around_an_interrupt():
    def record(time, number, tid, *addresses):
        head = struct.pack("<HBBi", number, 0, 0, tid)
        size = struct.pack("<ii", len(addresses), 0)
        return Record(time, head + size + struct.pack(f"<{len(addresses)}Q", *addresses))

    stacks = StackMatcher(4, 8, 16)
    first, inner, other = record(1, 9, 70), record(2, 8, 70), record(3, 9, 71)
    assert stacks.feed(first) is None
    assert stacks.feed(inner) is None
    assert stacks.feed(record(2, 4, 70, 0x11, (1 << 64) - 1)) == (inner, (0x11,))
    assert stacks.feed(other) is None
    assert stacks.feed(record(4, 4, 70, 0x22, 0x33)) == (first, (0x22, 0x33))
    assert stacks.feed(record(5, 4, 99, 0x44)) is None  # of a record that was lost
    assert stacks.flush(3) == []
    assert stacks.flush() == [(other, ())]


FORMAT = rb"""name: an_event
ID: 77
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned long __probe_ip;	offset:8;	size:8;	signed:0;
	field:const void * ptr;	offset:8;	size:8;	signed:0;
	field:unsigned long pfn;	offset:16;	size:8;	signed:0;
	field:int node;	offset:24;	size:4;	signed:1;
	field:char comm[16];	offset:28;	size:16;	signed:0;
	field:__data_loc char[] file;	offset:44;	size:4;	signed:0;
	field:u64 to;	offset:48;	size:8;	signed:0;
	field:unsigned long gfp_flags;	offset:56;	size:8;	signed:0;

print fmt: "ptr=%p pfn=0x%lx to=0x%Lx f=%s", REC->ptr, (REC->gfp_flags) ? __print_flags(REC->"""
FORMAT += (
    rb"""gfp_flags, "|", {(unsigned long)(((gfp_t)(0x400u|0x800u)) | ((gfp_t)0x40u)), "GFP_X"}, """
)
FORMAT += rb"""{( unsigned long)(( gfp_t)((((1UL))) << (8))), "__GFP_ZERO"}, { 0, ((void *)0)"""
FORMAT += rb"""} ) : "none" """


def test_a_format_tells_the_fields_of_a_record():
    form = parse_format(FORMAT)
    assert (form.name, form.number) == ("an_event", 77)
    assert (form.addresses, form.in_hex) == ({"ptr"}, {"ptr", "to", "pfn"})
    record = struct.pack("<HBBiQQi", 77, 0, 0, 5, 0xFFFF888000001000, 4711, -1)
    record += b"a b".ljust(16, b"\0") + struct.pack("<IQQ", 64 | 5 << 16, 9, 0xD40) + b"/x y\0"
    assert form.decode(record) == {
        "ptr": 0xFFFF888000001000,
        "pfn": 4711,
        "node": -1,
        "comm": "a b",
        "file": "/x y",
        "to": 9,
        "gfp_flags": "GFP_X|__GFP_ZERO",
    }


def test_symbols_name_the_caller_also_where_its_call_is_its_last():
    symbols = Symbols(
        b"0000000000002000 T second\n0000000000001000 t first\n"
        b"0000000000002800 d data\n0000000000003000 t third\t[some_module]\n"
    )
    assert symbols.find("first") == [0x1000]
    assert symbols.find("data") == []
    assert symbols.frame(0x1010) == StackFrame(0x1010, "first", 0x10, "")
    assert symbols.frame(0x2000, is_caller=False).symbol == "second"  # where a probe stopped
    assert symbols.frame(0x2000) == StackFrame(0x2000, "first", 0x1000, "")
    assert symbols.frame(0x2FFF).symbol == "second"
    assert str(symbols.frame(0x3001)) == "third [some_module]"
    assert str(symbols.frame(0xFFF)) == "0xfff"
    assert str(symbols.frame(0x903000)) == "0x903000"
    assert Symbols(b"0000000000000000 T _text\n").is_hidden
    assert not symbols.is_hidden
    assert symbols.find("third", "some_module") == [0x3000]
    assert symbols.find("third", "") == symbols.find("th.rd") == symbols.find("") == []


def test_a_function_that_the_compiler_split_is_found_by_its_own_name():
    symbols = Symbols(
        b"0000000000001000 t copy_strings.isra.0\n0000000000002000 t ioctl\t[some_module]\n"
    )
    assert find_function("copy_strings", symbols) == ("", "copy_strings")
    assert find_function("some_module:ioctl", symbols) == ("some_module", "ioctl")
    for name in ("copy_string", "other_module:ioctl", "copy_strings.is", ""):
        with pytest.raises(UsageError, match=f"no function '{name}'"):
            find_function(name, symbols)


def test_a_value_that_is_no_address_is_not_called_a_user_address():
    def event(value):
        names = frozenset({"to"})
        return Event(0, 0, 1, "x", "put", {"to": value}, names, names, ())

    values = [0x7FFD1C885108, 0, 0x340, 1 << 56, 0x8000000000000025, (1 << 63) - 1]
    found = address_ranges(map(event, values), KernelMap([], []))
    # On arm64 this would be 0x25 with a tag.
    kernels = [("kernel", 0x8000000000000025, 0x8000000000000025, 1)]
    assert [(one.area, one.lowest, one.highest, one.nr) for one in found] == [
        *(kernels if os.uname().machine == "x86_64" else []),
        ("user", 0x7FFD1C885108, 0x7FFD1C885108, 1),
    ]


@pytest.mark.parametrize(
    ("machine", "registers"),
    [
        ("x86_64", {"to": "di", "from": "si", "n": "dx"}),
        ("aarch64", {"to": "x0", "from": "x1", "n": "x2"}),
        ("riscv64", {}),
    ],
)
def test_a_breakpoint_records_the_registers_of_the_machine(machine, registers):
    point = targets.breakpoint_for("copy_to_user", "_copy_to_user", 0x1000, machine)
    assert point.registers == registers
    for name, value in point.registers.items():
        assert value in PROCESSORS[machine].registers, name


def test_the_kernels_image_lies_between_two_symbols():
    """On arm64 it is in the area of vmalloc(), and not at the end of all addresses."""
    text = b"ffffc00080000000 T _text\nffffc00080010000 T _stext\nffffc00082f90000 B _end\n"
    image = find_image(text + b"ffffc0007a000000 t _end\t[some_module]\n")
    assert image == (0xFFFFC00080000000, 0xFFFFC00082F90000)
    kernel = KernelMap([], [(0xFFFFC00080000000, 0xFFFFFE0000000000)], image)
    areas = {vaddr: kernel.area(vaddr) for vaddr in (image[0], image[1], 0xFFFFFFFFFF000000, 1)}
    assert [*areas.values()] == ["kernel image", "vmalloc", "kernel", "user"]
    assert find_image(b"") == (0, 0)


@pytest.mark.needs("root")
def test_a_name_of_several_functions_is_refused_with_the_address_of_each(physview, tracefs):
    """An older kernel probes one of them without a word."""
    functions = re.findall(
        r"^(\w{16}) [tT] (\w+)$", Path("/proc/kallsyms").read_text(), re.MULTILINE
    )
    by_name = {}
    for address, name in functions:
        by_name.setdefault(name, set()).add(int(address, 16))
    name = next(name for name, addresses in by_name.items() if len(addresses) in (2, 3, 4))
    line = one_line(physview("trace", name), 2)
    assert f"'{name}' is ambiguous: {len(by_name[name])} functions have this name" in line
    listed = {int(word, 16) for word in re.findall(r"\b0x[0-9a-f]{16}\b", line)}
    assert listed == by_name[name]


@pytest.mark.needs("root")
def test_an_address_of_no_function_is_refused(physview, tracefs):
    line = one_line(physview("trace", "0x1000"), 2)
    assert "cannot trace 0x1000: no function of this kernel has this address" in line


def test_kcore_tells_the_direct_map_also_of_ram_at_0():
    none, base = (1 << 64) - 1, 0xFFFF888000000000
    rows = [
        (1, 0xFFFFFFFF81000000, 0x3430000, 0x1000),
        (1, 0xFFFFC90000000000, none, 0x10000),
        (1, base, 0, 0x1000),
        (1, base + 0x100000, 0x100000, 0x1000),
        (4, 0, 0, 0),
    ]
    headers = b"".join(struct.pack("<IIQQQQQQ", k, 7, 0, v, p, n, n, 0) for k, v, p, n in rows)
    head = b"\x7fELF".ljust(32, b"\0") + struct.pack("<QQIHHHHHH", 64, 0, 0, 64, 56, 5, 0, 0, 0)
    kernel = parse_kcore(head + headers, IMAGES["x86_64"])
    assert kernel.paddr(base + 0x10) == 0x10
    assert kernel.paddr(base + 0x100020) == 0x100020
    assert kernel.paddr(base + 0x50000) is None
    areas = [
        kernel.area(a) for a in (0x1000, base, 0xFFFFC90000000008, 0xFFFFFFFF81000008, base - 1)
    ]
    assert areas == ["user", "direct map", "vmalloc", "kernel image", "kernel"]


@pytest.mark.parametrize("columns", ["0", "-3"])
def test_lines_are_not_broken_on_a_terminal_that_does_not_know_its_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert wrapped("1.5  [0] 7 sh  kmalloc", terminal_width()) == ["1.5  [0] 7 sh  kmalloc"]


def test_events_are_folded_by_their_stacks():
    def event(comm, size, *functions):
        stack = tuple(StackFrame(i, name, i, "") for i, name in enumerate(functions))
        return Event(0, 0, 1, comm, "kmalloc", {"bytes_req": size}, frozenset(), frozenset(), stack)

    events = [event("a", 1, "f"), event("b", 2, "f", "g"), event("c", 4, "f", "g")]
    first, second = fold([*events, event("c", 8, "f", "g")])
    assert (first.nr_events, first.comms, first.sizes) == (3, ["c", "b"], {"bytes_req": 14})
    assert (second.nr_events, [str(f) for f in second.stack]) == (1, ["f"])


def test_an_owner_has_ended_when_its_pid_belongs_to_another_process():
    mine = new_owner()
    assert not mine.has_ended
    assert mine._replace(start_time=mine.start_time - 1).has_ended
    assert mine._replace(pid=1 << 30).has_ended
    # In another namespace a process may have this pid.
    assert not mine._replace(pid=1 << 30, namespace=1).has_ended
    assert InstanceOwner.parse(mine.instance) == InstanceOwner.parse(mine.group) == mine
    assert new_owner().number > mine.number


@pytest.mark.needs("tracefs")
def test_the_buffer_says_what_the_kernel_prints_of_it(tracefs):
    source = FtraceSource(
        [os.getpid()], follow=False, from_exec=False, stacks=True, buffer_kib=None
    )
    path = f"{tracefs}/instances/{source._instance.owner.instance}"
    try:
        source.add_event("kmem:kmalloc")
        source.start()
        for _ in range(20):
            for fd in os.pipe():
                os.close(fd)
        source.stop()
        with open(f"{path}/trace") as file:
            printed = re.findall(
                r"-(\d+) +\[(\d+)\].*? (\d+)\.(\d{6}): kmalloc: .*bytes_req=(\d+) bytes_alloc=(\d+)"
                r" gfp_flags=(\S+)|^ => (\w[^ \n]*)",
                file.read(),
                re.MULTILINE,
            )
        read = source.read(0.1) + source.flush()
    finally:
        source.close()
    events = [row for row in printed if row[0]]
    assert len(events) >= 20
    assert [
        (
            str(event.tid),
            f"{event.cpu:03}",
            str(event.time_ns // 10**9),
            # Its text is rounded to microseconds, and so may be one off.
            *map(str, (event.fields["bytes_req"], event.fields["bytes_alloc"])),
            event.fields["gfp_flags"],
        )
        for event in read
    ] == [(tid, cpu, seconds, *rest) for tid, cpu, seconds, _, *rest, _ in events]
    assert sum(len(event.stack) for event in read) == len(printed) - len(events)
    assert not os.path.exists(path)


SYSCALL = rb"""name: sys_enter_openat
ID: 5
format:
	field:int __syscall_nr;	offset:8;	size:4;	signed:1;
	field:int dfd;	offset:16;	size:8;	signed:0;
	field:const char * filename;	offset:24;	size:8;	signed:0;
	field:unsigned int flags;	offset:32;	size:8;	signed:0;
	field:umode_t mode;	offset:40;	size:8;	signed:0;
	field:loff_t offset;	offset:48;	size:8;	signed:0;
	field:unsigned long addr;	offset:56;	size:8;	signed:0;

print fmt: "dfd: 0x%08lx", ((unsigned long)(REC->dfd))"""


def test_an_argument_of_a_system_call_has_the_sign_and_width_of_its_type():
    form = parse_format(SYSCALL)
    at_fdcwd, minus_one = -100 & 0xFFFFFFFF, (1 << 64) - 1
    record = struct.pack("<8xi4x6Q", 257, at_fdcwd, 0x7000, minus_one, 0o644, minus_one, 0x5000)
    assert form.decode(record) == {
        "__syscall_nr": 257,
        "dfd": -100,
        "filename": 0x7000,
        "flags": 0xFFFFFFFF,
        "mode": 0o644,
        "offset": -1,
        "addr": 0x5000,
    }
    assert form.addresses == {"filename", "addr"}


ARRAYS = rb"""name: arrays
ID: 6
format:
	field:unsigned long args[6];	offset:8;	size:48;	signed:0;
	field:u8 mac[6];	offset:56;	size:6;	signed:0;
	field:unsigned char digest[2];	offset:62;	size:2;	signed:0;
	field:__data_loc u32[] list;	offset:64;	size:4;	signed:0;
	field:struct in6_addr there;	offset:68;	size:16;	signed:0;

print fmt: "(%lx)", REC->args[0]"""


def test_an_array_of_numbers_is_numbers_and_bytes_are_hexadecimal():
    form = parse_format(ARRAYS)
    record = bytes(8) + struct.pack("<6Q", *range(1, 7)) + bytes(range(8))
    record += struct.pack("<I", 84 | 8 << 16) + b"\xfe\x80".ljust(16, b"\0")
    assert form.decode(record + struct.pack("<II", 7, 1 << 31)) == {
        "args": (1, 2, 3, 4, 5, 6),
        "mac": "000102030405",
        "digest": "0607",
        "list": (7, 1 << 31),
        "there": "fe80" + "00" * 14,
    }
    assert (form.addresses, form.in_hex) == (set(), {"args"})


FAULT = rb"""name: page_fault_user
ID: 8
format:
	field:unsigned long address;	offset:8;	size:8;	signed:0;
	field:unsigned long ip;	offset:16;	size:8;	signed:0;
	field:unsigned long error_code;	offset:24;	size:8;	signed:0;
	field:unsigned long end_pfn;	offset:32;	size:8;	signed:0;
	field:u64 dma_addr;	offset:40;	size:8;	signed:0;

print fmt: "address=0x%lx ip=%ps error_code=0x%lx end_pfn=0x%lx dma_addr=0x%llx", REC->address"""


def test_not_all_that_the_kernel_prints_in_hexadecimal_is_an_address():
    form = parse_format(FAULT)
    assert form.addresses == {"address", "ip"}
    assert form.in_hex == {"address", "ip", "error_code", "end_pfn", "dma_addr"}
