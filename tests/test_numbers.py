# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever address or frame number a command prints can be pasted into every other command."""

import argparse
import csv
import functools
import io
import json
import re
import subprocess
import sys

import pytest
from conftest import missing
from failures import one_line
from memory import PAGE, raw_entry

from physview import UsageError
from physview.commands import COMMANDS, _numbers, make_parser
from physview.model import PM_PFRAME_MASK

# Commands that print neither an address nor a frame number of a process's page.
WITHOUT = {
    "snapshot": "it prints how much it wrote",
    "frames": "it counts; test_the_machines_ranges_can_be_pasted has its ranges",
    "picture": "test_picture_page.py searches for what the page shows",
    "lab": "its addresses are of processes that have ended",
    "tables": "it prints the addresses of page tables; of processes only in `shared`",
    "guest": "a guest-physical address is no physical one; its processes are QEMUs",
    "trace": "test_a_frame_number_in_a_trace_can_be_pasted",
    "memview": "its process has ended; the report's form is the course's",
    "module": "it prints no addresses",
    "record": "it prints how much it read",
    "exporter": "it prints where it listens",
    "fleet": "its data has no addresses",
    "vm": "it passes on another command's output",
    "doctor": "it prints no addresses",
    "completion": "it prints code",
}
# A bare number of JSON or CSV is decimal. It is refused, with both readings.
DECIMAL = re.compile("[0-9]+")


@functools.cache
def takers(*metavars):
    """The commands with such an argument."""
    (choices,) = (
        a.choices for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    return sorted(
        name
        for name, parser in choices.items()
        if any(str(action.metavar) in metavars for action in parser._actions)
        and not (name in ("walk", "compare") and missing("walk"))
    )


class Page:
    """The first page of a process's program, which is in the page cache."""

    def __init__(self, pid):
        self.pid = str(pid)
        with open(f"/proc/{pid}/maps") as file:
            line = file.readline()
        self.range, self.path = line.split(" ")[0], line.split(" ")[-1].strip()
        self.vaddr, self.end = (int(part, 16) for part in self.range.split("-"))
        self.pfn = raw_entry(self.vaddr, pid) & PM_PFRAME_MASK
        assert self.pfn

    def forms(self, command, folder):
        """The command lines that print this page."""
        pid, vaddr = self.pid, hex(self.vaddr)
        both = [f"{folder}/{name}.parquet" for name in ("before", "after")]
        return {
            "translate": [[pid, vaddr], [pid, vaddr, "--json"]],
            "maps": [[pid], [pid, "--json"]],
            "pages": [
                [pid], [pid, "--each"], [pid, "--json"], [pid, "--format", "csv"],
                [pid, "--format", "jsonl"], [pid, "--each", "--format", "csv"],
            ],
            "watch": [[pid, "--ticks", "1"], [pid, "--json", "--ticks", "1"]],
            "touched": [[pid, "--for", "0"], [pid, "--for", "0", "--json"]],
            "diff": [[*both, "--extents"], [*both, "--extents", "--json"]],
            "walk": [[pid, vaddr], [pid, vaddr, "--json"]],
            "compare": [[pid], [pid, "--json"]],
            "owners": [[f"pfn:{self.pfn:#x}", "--pid", pid, *json] for json in ([], ["--json"])],
            "file": [[self.path, "--frames"], [self.path, "--frames", "--json"]],
        }[command]  # fmt: skip

    def tokens(self, text):
        """What a user would select in a text: words that name the page."""
        wanted = {self.vaddr, self.end, self.pfn, self.pfn * PAGE}
        for token in re.findall(r"[0-9A-Za-z:=-]*[0-9a-f][0-9A-Za-z:=-]*", text):
            for number in re.findall(r"(?<![0-9a-z])(?:0x)?[0-9a-f]{4,}(?![0-9a-z])", token):
                if int(number, 16) in wanted or (number.isdigit() and int(number) in wanted):
                    yield token.removesuffix(":")
                    break


@pytest.fixture(scope="module")
def page():
    code = "import time; print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    try:
        yield Page(child.pid)
    finally:
        child.kill()
        child.communicate()


def printed(physview, page, folder):
    """Every word that names the page, with the command that printed it."""
    for name in ("before", "after"):
        assert not physview("snapshot", page.pid, "-o", f"{folder}/{name}.parquet").returncode
    found = {}
    for command in COMMANDS:
        if command in WITHOUT or (command in ("walk", "compare") and missing("walk")):
            continue
        for words in page.forms(command, folder):
            result = physview(command, *words)
            assert result.returncode in (0, 1), result
            tokens = set(page.tokens(result.stdout))
            assert tokens or command == "compare", (command, words)
            is_for_people = not {"--json", "--format"} & set(words)
            for token in tokens:
                found.setdefault(token, []).append(f"{command} {' '.join(words)}")
                assert not (is_for_people and DECIMAL.fullmatch(token)), found[token]
                if is_for_people:
                    assert "0x" in token, found[token]
    return found


def paste(physview, page, command, token):
    """What a command says that the token is: its numbers, or an error's line."""
    words = [token] if command in ("owners", "frames") else [page.pid, token]
    form = ["--each", "--format", "csv"] if command == "frames" else ["--json"]
    result = physview(command, *words, *form)
    if result.returncode == 2:
        return one_line(result, 2)
    if command == "frames":
        return {int(row["pfn"]) for row in csv.DictReader(io.StringIO(result.stdout))}
    document = json.loads(result.stdout)
    if command == "owners":
        return {frame["pfn"] for frame in document["frames"]}
    if command == "translate":
        return {int(entry["vaddr"], 16) for entry in document["entries"]}
    if command == "pages":
        return {int(extent["vaddr"], 16) for extent in document["extents"]}
    return {int(document["vaddr"], 16)}


@pytest.mark.needs("pfn", "kpage")
def test_what_is_printed_can_be_pasted(physview, page, tmp_path):
    found = printed(physview, page, tmp_path)
    assert {token.partition("x")[0] for token in found} >= {"pfn:0", "0", str(page.pfn)}
    nr = 0
    for token, printers in found.items():
        is_range = "-" in token
        if DECIMAL.fullmatch(token):
            line = paste(physview, page, "owners", token)
            for reading in (int(token, 16), int(token)):
                assert f"{reading:#x}" in line, (token, printers)
            continue
        is_virtual = f"{page.vaddr:x}" in token or f"{page.end:x}" in token
        if is_virtual:
            named = page.end if f"{page.vaddr:x}" not in token else page.vaddr
            commands = ["pages", "translate"] if is_range else takers("ADDR")
        else:
            named, commands = page.pfn, takers("FRAME")
        for command in commands:
            answer = paste(physview, page, command, token)
            assert named in answer, (command, token, printers, answer)
            nr += 1
    assert nr > 5
    assert all(takers(metavar) for metavar in ("FRAME", "ADDR", "START-END"))


def test_every_command_is_harvested():
    assert not set(WITHOUT) & {"maps", "pages", "owners", "translate"}
    page = Page("self")
    for command in set(COMMANDS) - set(WITHOUT):
        assert page.forms(command, "/tmp")


@pytest.mark.needs("kpage")
def test_the_machines_ranges_can_be_pasted(physview):
    document = json.loads(physview("frames", "--json").stdout)
    starts = [zone["start"] for zone in document["zones"] if zone["start"]]
    ends = [ram["end"] for ram in document["ram"]]
    assert starts
    assert ends
    for text in (*starts, *ends):
        try:
            first = _numbers.parse_frames(text).first
        except UsageError as error:
            line = str(error)
        else:
            line = f"pfn:{text} or paddr:{text}"
            assert first == int(text, 16) // PAGE
        assert f"pfn:{text} or paddr:{text}" in line


def test_a_frame_number_in_a_trace_can_be_pasted():
    from physview.reporters.trace import field_text
    from physview.tracing import Event

    kinds = (frozenset(), frozenset({"pfn"}))  # addresses, and what is printed in hexadecimal
    event = Event(0, 0, 1, "sh", "mm_page_alloc", {"pfn": 0x115AB0, "order": 0}, *kinds, ())
    assert _numbers.parse_frames(f"pfn={field_text(event, 'pfn')}").first == 0x115AB0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10", "'10' may be 0x10 or, as decimal, 0xa; write one of these"),
        ("00400000", "'00400000' may be 0x400000 or, as decimal, 0x61a80"),
        ("9" * 30, "more than 64 bits"),
    ],
)
def test_an_ambiguous_address_is_refused_with_both_readings(text, why):
    with pytest.raises(UsageError, match=re.escape(why)):
        _numbers.parse_address(text)
    with pytest.raises(UsageError, match=re.escape(why)):
        _numbers.parse_range(f"0-{text}")
    with pytest.raises(UsageError, match=re.escape(why)):
        _numbers.parse_range(f"{text}-0xffffffffffffffff")


def test_a_number_with_letters_or_with_one_reading_is_read():
    assert _numbers.parse_address("7ffd3a5e0b78") == 0x7FFD3A5E0B78
    assert _numbers.parse_address("0X1F") == 31
    assert _numbers.parse_address("000000000009") == 9
    assert _numbers.parse_range("55d0c0000000-55d0c0001000") == (0x55D0C0000000, 0x55D0C0001000)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("pfn:0x115ab0", (0x115AB0, 0x115AB1, 0)),
        ("pfn:0x10-0x12", (0x10, 0x12, 0)),
        ("pfn=ab-pfn=ac", (0xAB, 0xAC, 0)),
        (f"{PAGE + 0x234:#018x}", (1, 2, 0x234)),
        (f"{PAGE:#018x}-{3 * PAGE + 1:#018x}", (1, 4, 0)),
        (f"paddr:{PAGE + 0x234:#x}", (1, 2, 0x234)),
        ("0x7fffffff0123", (0x7FFFFFFF0000 // PAGE, 0x7FFFFFFF0000 // PAGE + 1, 0x123)),
        ("0", (0, 1, 0)),
    ],
)
def test_frames(text, frames):
    assert _numbers.parse_frames(text) == frames


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0x1234", "'0x1234' may be pfn:0x1234 or paddr:0x1234; write one of these"),
        ("1234", "may be pfn:0x1234 or paddr:0x1234 or, as decimal, pfn:0x4d2 or paddr:0x4d2"),
        ("pfn:16", "'pfn:16' may be pfn:0x16 or, as decimal, pfn:0x10; write one of these"),
        ("1000-0x2000", "may be pfn:0x1000-0x2000 or paddr:0x1000-0x2000 or, as decimal,"),
        ("pfn:10-0xb", "'pfn:10-0xb' may be pfn:0x10-0xb or, as decimal, pfn:0xa-0xb"),
    ],
)
def test_an_ambiguous_frame_is_refused_with_all_readings(text, why):
    with pytest.raises(UsageError, match=re.escape(why)):
        _numbers.parse_frames(text)
