# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab witnesses: a comparison of pagemap with walks, for each page of a process."""

from __future__ import annotations

from physview.labs import observe, probe_process, requirements
from physview.labs.model import NUMBER, TEXT, Evidence, EvidenceColumn, Lab, Question
from physview.runtime import invocation

NAME = "witnesses"
TITLE = "pagemap against the page tables"
PLAN = (
    "Starts a process, reads the entries of all its pages from /proc/PID/pagemap, and walks its"
    " page tables: by a BPF program, by the kernel module if it is loaded, or by both. Then the lab"
    " compares the sources page by page, and gives every page a verdict."
)
QUESTIONS = (
    Question(
        "Every page of a process is read from all sources. On which pages do the sources differ?",
        (
            "none",
            "only pages that pagemap does not show, or that the kernel migrated meanwhile",
            "many: pagemap is only an estimate",
        ),
        1,
        "pagemap is made from the same page tables that the other sources walk. It leaves out"
        " device mappings, such as [vvar]. If a page moves between two readings, the lab reads it"
        " again.",
    ),
)


def run() -> Evidence:
    """Compare the sources for a new process."""
    from physview.analysis.compare import Comparer, Verdict
    from physview.sources.procfs import ProcDir

    evidence = Evidence(NAME)
    with probe_process.start() as process:
        proc = ProcDir(process.pid)
        try:
            comparer = Comparer(proc)
            try:
                result, sources = comparer.compare(), comparer.sources
            finally:
                comparer.close()
        finally:
            proc.close()
    table = evidence.table(
        "verdicts",
        f"{result.nr_pages} pages of process {process.pid}, from {', '.join(sources)}; * means: the"
        " sources differ",
        [
            EvidenceColumn("pages", "pages", NUMBER),
            EvidenceColumn("verdict", "verdict"),
            EvidenceColumn("first", "first page", TEXT),
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
        f"All sources report the same frame for {nr_same} of {result.nr_pages} pages, and every"
        " difference has a known cause. The kernel fills pagemap from the same page-table entries"
        " that the walk reads.",
        f"For {result.nr_unexplained} of {result.nr_pages} pages the sources differ without a known"
        " cause. This can be a bug in the kernel, in the module or in physview. Please report it,"
        f" with the output of {invocation.physview_as_root('compare self')}.",
    )
    what = "; ".join(
        f"{observe.count_words(nr, 'page')}: {verdict.text}" for verdict, nr in others.items()
    )
    if result.nr_unexplained == 0 and others:
        evidence.check("differences", True, f"The differences and their causes: {what}.", "")
    evidence.answer(2 if result.nr_unexplained else 1 if others else 0)
    return evidence


LAB = Lab(
    NAME,
    TITLE,
    (),
    PLAN,
    QUESTIONS,
    requirements.checker(
        NAME, requirements.compiled_core, requirements.page_tables, requirements.frame_numbers
    ),
    run,
)
