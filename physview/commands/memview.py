# SPDX-License-Identifier: GPL-2.0-or-later
"""Report where a program's own memory is, as the course program memview2 does.

Takes the addresses of the argument vector, the environment, a local and a global string, a
function and thirty buffers from malloc(), all in its own process, and prints the physical address
of each. Exits with 1 if any of them has no physical address; the cause is on stderr. In a VM,
stderr says once that the addresses are guest-physical.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from physview import _ffi
from physview.analysis.stability import compare_repetitions
from physview.commands import _common
from physview.errors import PhysviewError
from physview.model import Probe, Translation
from physview.process import Process
from physview.reporters import documents
from physview.reporters import memview as reporter
from physview.runtime import child_python
from physview.sources.probes import visit_probes

NAME = "memview"
HELP = "where this program's own memory is: argv, envp, globals, locals, 30 mallocs"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    _common.add_source_option(parser)
    _common.add_json_option(parser)
    parser.add_argument(
        "--virtual",
        action="store_true",
        help="virtual addresses only, as the course program memview does; needs no root",
    )
    parser.add_argument(
        "--repeat",
        type=_common.count(10_000),
        metavar="N",
        help="run N new processes and show which addresses stayed the same",
    )
    parser.add_argument(
        "--sleep",
        type=_common.duration(),
        metavar="S",
        help="print the pid on stderr and sleep S seconds (or 5m) first, so that a tracer can be"
        " attached",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    if args.repeat:
        return _repeat(args)
    if args.sleep is not None:
        _common.say(f"pid {os.getpid()} sleeps for {args.sleep:g} s: attach now")
        time.sleep(args.sleep)
    _common.say_if_core_is_missing(args.source)
    if args.virtual:
        return _visit(args.source, lambda probes: _print_virtual(probes, args.json))

    def report(probes: list[Probe]) -> int:
        with Process("self", source=args.source) as process:
            translations = process.translate_many([probe.vaddr for probe in probes])
            labelled = [(p.label, t) for p, t in zip(probes, translations, strict=True)]
            if args.json:
                documents.write(documents.translations(process.source, process.pid, labelled))
            else:
                sys.stdout.write(reporter.memview_report(labelled))
        unknown = _common.say_causes(translations)
        if any(translation.paddr is not None for translation in translations):
            _common.say_if_guest_physical()
        return int(unknown)

    return _visit(args.source, report)


def _visit(source: str, visit: Callable[[list[Probe]], int]) -> int:
    if source != "pagemap" and _ffi.why_unavailable():
        from physview.sources.reference import visit_stand_ins

        return visit_stand_ins(visit)
    return visit_probes(visit)


def _print_virtual(probes: list[Probe], as_json: bool) -> int:
    if as_json:
        nowhere = [(p.label, Translation(p.vaddr, None, None)) for p in probes]
        documents.write(documents.translations("virtual", os.getpid(), nowhere))
    else:
        sys.stdout.write(reporter.virtual_report(probes))
    return 0


def _repeat(args: argparse.Namespace) -> int:
    """Run the report in new processes, one after the other."""
    words = ["memview", "--json", "--source", args.source, *["--virtual"] * args.virtual]
    if args.sleep is not None:
        words += ["--sleep", str(args.sleep)]
    repetitions = [_run_repetition(words, first=i == 0) for i in range(args.repeat)]
    stabilities = compare_repetitions([run["entries"] for run in repetitions])
    if args.json:
        labels = [stability._asdict() for stability in stabilities]
        documents.write({"source": repetitions[0]["source"], "runs": repetitions, "labels": labels})
    else:
        reporter.print_stability(stabilities, args.repeat, with_physical=not args.virtual)
    known = [e["paddr"] is not None for r in repetitions for e in r["entries"]]
    if any(known):
        _common.say_if_guest_physical()
    return int(not args.virtual and not all(known))


def _run_repetition(words: list[str], *, first: bool) -> dict[str, Any]:
    import json
    import subprocess

    # Only the first repetition prints on stderr: the others would print the same. With --sleep
    # each one prints its own pid.
    quiet = not first and "--sleep" not in words
    with child_python.start(
        "physview.commands",
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
    ) as child:
        stdout, _ = child.communicate()
    try:
        document: dict[str, Any] = json.loads(stdout)
    except ValueError:
        raise PhysviewError(
            "a run of memview failed",
            f"it ended with {child.returncode}",
            "run it without --repeat",
        ) from None
    return document
