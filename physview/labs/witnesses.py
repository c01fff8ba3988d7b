# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own account of a process, against a walk of its page tables."""

from __future__ import annotations

from physview.labs import child, look, needs
from physview.labs.base import NUMBER, TEXT, Column, Evidence, Lab, Question
from physview.runtime import invocation

NAME = "witnesses"
TITLE = "pagemap against the page tables"
PLAN = (
    "Starts a process, reads all of it from /proc/PID/pagemap, and has the kernel module walk its"
    " page tables, page by page. Every page gets a verdict."
)
QUESTIONS = (
    Question(
        "pagemap and the page tables are compared for every page of a process. What differs?",
        (
            "nothing",
            "nothing but what pagemap does not show, or moved just then",
            "frames differ: pagemap is only an estimate",
        ),
    ),
)


def run() -> Evidence:
    """Compare both, for a process of our own."""
    from physview.analysis.compare import Comparer, Verdict
    from physview.sources.procfs import ProcDir

    evidence = Evidence(NAME)
    with child.started() as process:
        proc = ProcDir(process.pid)
        try:
            comparer = Comparer(proc)
            try:
                result = comparer.compare()
            finally:
                comparer.close()
        finally:
            proc.close()
    table = evidence.table(
        "verdicts",
        f"{result.nr_pages} pages of process {process.pid}; * is a difference",
        [
            Column("pages", "pages", NUMBER),
            Column("verdict", "verdict"),
            Column("first", "the first of them", TEXT),
        ],
    )
    alike = {
        Verdict.SAME_FRAME,
        Verdict.ZERO_PAGE,
        Verdict.SAME_SWAP,
        Verdict.SAME_MARKER,
        Verdict.POISONED,
        Verdict.DEVICE_MEMORY,
        Verdict.MIGRATION,
    }
    for verdict, nr in sorted(result.counts.items(), key=lambda item: -item[1]):
        first = hex(result.examples[verdict][0]) if result.examples[verdict] else None
        table.add(nr, verdict.text, first, changed=[] if verdict in alike else ["verdict"])
    nr_same = result.counts.get(Verdict.SAME_FRAME, 0)
    others = {v: nr for v, nr in result.counts.items() if v not in alike}
    evidence.check(
        "frames",
        nr_same > 0 and result.nr_unexplained == 0,
        f"Both name the same frame for {nr_same} of {result.nr_pages} pages, and no difference is"
        " left without a reason: pagemap is made of the very entries that the walk reads.",
        f"For {result.nr_unexplained} of {result.nr_pages} pages they differ and it is not known"
        " why: that would be a bug of the kernel, of the module or of physview. Please report it,"
        f" with what {invocation.physview_as_root('compare self')} says.",
    )
    what = "; ".join(f"{look.count(nr, 'page')}: {verdict.text}" for verdict, nr in others.items())
    if result.nr_unexplained == 0 and others:
        evidence.check("differences", True, f"What differs is explained: {what}.", "")
    evidence.answer(2 if result.nr_unexplained else 1 if others else 0)
    return evidence


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    needs.needs(NAME, needs.core, needs.module, needs.frames),
    run,
)
