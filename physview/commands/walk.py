# SPDX-License-Identifier: GPL-2.0-or-later
"""Walk the page tables for one address, as the processor does, and show the entry of each level.

The kernel module walks them if it is loaded, or else a BPF program. Exits with 1 if the address has
no page.
"""

from __future__ import annotations

import argparse
import os
import sys

from physview.commands import _common, _numbers
from physview.reporters import documents
from physview.reporters import walk as reporter
from physview.runtime.resolve_pid import find_pid
from physview.sources.choice import open_page_tables
from physview.sources.procfs import ProcDir

NAME = "walk"
HELP = "the page-table entry of each level for one address"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("process", metavar="PID", help="a pid, self, or the name of one process")
    parser.add_argument("address", metavar="ADDR", help="a virtual address, 0x…")
    _common.add_walker_option(parser, "kmod if the module is loaded, or else bpf")
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the walk."""
    vaddr = _numbers.parse_address(args.address)
    with ProcDir(find_pid(args.process)) as proc, open_page_tables(proc, args.source) as tables:
        walk = tables.walk(vaddr)
    names = _bit_names() if os.uname().machine == "x86_64" else (lambda _level: [])
    if args.json:
        documents.write(reporter.document(tables.name, proc.pid, walk, names))
    else:
        sys.stdout.write(reporter.walk_tree(walk, names))
    return int(walk.paddr is None)


def _bit_names() -> reporter.BitNames:
    from physview.analysis.entry_bits import bit_names

    return bit_names
