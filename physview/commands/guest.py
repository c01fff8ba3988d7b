# SPDX-License-Identifier: GPL-2.0-or-later
"""Show where the memory of a running QEMU or KVM guest is on this host.

QEMU is asked through its QMP socket for the ranges of guest-physical memory. Each range is followed
into QEMU's process and to the frames of the host: how much is resident, swapped, in huge pages, and
in huge pages that are aligned with the guest's. With GPA… it follows these addresses. Each answer
is held against QEMU's own (gpa2hva, gpa2hpa). Exits with 1 if one differs, or if an address has no
frame. Frames need root; the rest needs only a guest of your own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from physview.commands import _common, _numbers

if TYPE_CHECKING:
    from physview.analysis.guest_memory import GuestMemory
    from physview.reporters.guest import GuestReport

NAME = "guest"
HELP = "where the memory of a QEMU or KVM guest is: in QEMU's process, and in the host's frames"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "addresses",
        metavar="GPA",
        nargs="*",
        help="a guest-physical address, 0x…; without one, all ranges of memory are shown",
    )
    parser.add_argument(
        "--qmp",
        metavar="SOCKET",
        required=True,
        help="QEMU's QMP socket; QEMU's option -qmp unix:SOCKET,server=on,wait=off makes it",
    )
    parser.add_argument(
        "--pid",
        metavar="PID",
        help="QEMU's process: a pid, or the name of one process (default: who answers)",
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print where the guest's memory is."""
    from physview.runtime.resolve_pid import find_pid

    gpas = [_numbers.parse_address(word) for word in args.addresses]
    pid = find_pid(args.pid) if args.pid else None

    from physview.analysis.guest_memory import GuestMemory
    from physview.reporters import documents
    from physview.reporters import guest as reporter
    from physview.sources.qmp import Qmp

    with Qmp(args.qmp) as qmp, GuestMemory(qmp, pid) as memory:
        parts = None if gpas else list(memory.iter_parts())
        report = reporter.GuestReport(
            memory.pid,
            memory.name,
            qmp.version,
            memory.uses_kvm(),
            memory.huge_page_bytes,
            parts,
            None if gpas else memory.count_flags(),
            [memory.follow(gpa) for gpa in gpas],
            memory.nr_hva_checks,
            memory.nr_hpa_checks,
            memory.differences,
        )
        if args.json:
            documents.write(reporter.document(report))
        else:
            reporter.print_report(report)
        _say_notes(memory, report)
    unknown = any(one.host is None or one.host.paddr is None for one in report.addresses)
    return int(unknown or bool(report.differences))


def _say_notes(memory: GuestMemory, report: GuestReport) -> None:
    """Say on stderr what differs, and what could not be looked at, with the remedy."""
    for difference in report.differences:
        _common.say(f"QEMU's answer differs: {difference}")
    if memory.is_qemu_blind:
        _common.say(
            "gpa2hpa is not compared: QEMU runs without CAP_SYS_ADMIN, so the kernel hides frame"
            " numbers from it, and it answers with frame 0"
        )
    if not memory.knows_frames:
        _common.say(f"frames of the host are hidden from this user; {_common.root_remedy()}")
    if report.parts is not None and any(part.huge_bytes is None for part in report.parts):
        remedy = "Linux 6.7 or later, or root, can tell"
        _common.say(f"which memory is in huge pages is unknown: no PAGEMAP_SCAN; {remedy}")
