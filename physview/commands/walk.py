# SPDX-License-Identifier: GPL-2.0-or-later
"""Walk the page tables for one address, as the processor does, and show the entry of each level.

The kernel module walks them if it is loaded, or else a BPF program. With --picture the walk is
drawn: the bits of the address, each table with the entry that is taken, and the frame. An .html
file is a page that goes through the walk step by step. Exits with 1 if the address has no page.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from physview import _ffi
from physview.analysis.entry_bits import bit_names
from physview.commands import _common, _numbers, _pictures
from physview.errors import UsageError
from physview.model import Probe, printable
from physview.reporters import documents
from physview.reporters import walk as reporter
from physview.runtime import invocation
from physview.runtime.resolve_pid import find_pid
from physview.sources.choice import open_page_tables
from physview.sources.probes import visit_probes
from physview.sources.procfs import ProcDir
from physview.sources.tagged_pointers import untagged

if TYPE_CHECKING:
    from physview.analysis.walked_addresses import WalkedAddresses

NAME = "walk"
HELP = "the page-table entry of each level for one address; also as a picture"
FIRST_LABEL = "buf[00]"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument(
        "address",
        metavar="ADDR",
        nargs="?",
        help="a virtual address, 0x…; it may be left out in a picture of self, which then begins"
        f" with {FIRST_LABEL} of the report",
    )
    auto = "kmod if the module is loaded and you may use it, or else bpf"
    _common.add_walker_option(parser, auto)
    parser.add_argument(
        "--picture",
        metavar="FILE",
        help="draw the walk instead: .svg, .png or .html; an .html file also has the walks for"
        " other addresses: those of the report for self, or else one in each mapped file",
    )
    _pictures.add_options(parser)
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the walk, or draw it."""
    if args.picture is not None:
        return _draw(args)
    _pictures.refuse_options(args)
    if args.address is None:
        raise _no_address()
    vaddr = _parse_address(args.address)
    with ProcDir(find_pid(args.process)) as proc, open_page_tables(proc, args.source) as tables:
        walk, nr_levels = tables.walk(vaddr), tables.nr_levels()
    if args.json:
        documents.write(reporter.document(tables.name, proc.pid, walk, bit_names))
    else:
        sys.stdout.write(reporter.walk_tree(walk, nr_levels, bit_names))
    return int(walk.paddr is None)


def _draw(args: argparse.Namespace) -> int:
    """Write the picture, and print one line. If reading fails, nothing is written."""
    from physview.pictures import check_path
    from physview.pictures.walk_output import write_walks

    pid = find_pid(args.process)
    vaddr = None if args.address is None else _parse_address(args.address)
    if vaddr is None and not _is_self(pid):
        raise _no_address()
    check_path(args.picture, overwrite=args.force)
    walks = _read(pid, vaddr, args.source)
    size = write_walks(walks, args.picture, theme=args.theme, overwrite=args.force)
    if args.json:
        documents.write(reporter.picture_document(walks, args.picture, size))
    else:
        sys.stdout.write(f"{printable(args.picture)}: {reporter.summary(walks, args.picture)}\n")
    _common.say_if_shared(args.picture)
    if any(level.is_hidden for level in walks.first.levels):
        _common.say(f"addresses and entries of page tables are hidden; {_common.root_remedy()}")
    return int(walks.first.walk.paddr is None)


def _parse_address(text: str) -> int:
    """Read the address, and say if it has a tag. The result has none, as the processor sees it."""
    asked = _numbers.parse_address(text)
    vaddr = untagged(asked)
    _common.say_if_tagged(int(vaddr != asked))
    return vaddr


def _no_address() -> UsageError:
    why = "only a picture of self needs none"
    remedy = f"give ADDR, as 0x…: {invocation.physview('maps PID')} lists the mappings"
    return UsageError("no address is given", why, remedy)


def _is_self(pid: int | str) -> bool:
    return pid in ("self", os.getpid())


def _read(pid: int | str, vaddr: int | None, source: str) -> WalkedAddresses:
    """Walk for the address, and for others that a page offers."""
    from physview.analysis.walked_addresses import check_address, first_addresses, read_walks

    def read(probes: list[Probe]) -> WalkedAddresses:
        with ProcDir(pid) as proc, open_page_tables(proc, source) as tables:
            geometry = tables.geometry()
            others = probes or first_addresses(proc, tables)
            if vaddr is not None:
                check_address(geometry, vaddr)
            asked = [i for i, each in enumerate(others) if _is_asked(each, vaddr)]
            if not asked:
                others = [Probe("", vaddr or 0), *others]
            return read_walks(proc, tables, others, asked[0] if asked else 0)

    if not _is_self(pid):
        return read([])
    if _ffi.why_unavailable():
        from physview.sources.reference import visit_stand_ins

        return visit_stand_ins(read)
    return visit_probes(read)


def _is_asked(probe: Probe, vaddr: int | None) -> bool:
    return probe.label == FIRST_LABEL if vaddr is None else probe.vaddr == vaddr
