# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab hidden: which users see frame numbers. The privilege of pagemap's opener decides."""

from __future__ import annotations

import ctypes
import json
import os
from array import array

from physview.labs import observe
from physview.labs.memory import ForkedChild, MappedPages, libc
from physview.labs.model import PADDR, TEXT, VADDR, Cell, Evidence, EvidenceColumn, Lab, Question
from physview.model import PAGE_SHIFT, PAGE_SIZE, PagemapEntry
from physview.units import pfn_text

NAME = "hidden"
TITLE = "why frame numbers are hidden"
NOBODY = 65534
PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
PLAN = (
    "Reads the pagemap entry of one page, and forks. The child opens pagemap, gives up all"
    " privileges (it becomes the user nobody), and opens pagemap again. Then it reads the entry"
    " twice: through the file that it opened with privileges, and through the file that it opened"
    " without."
)
QUESTIONS = (
    Question(
        "A process opens its pagemap as root, becomes the user nobody, and reads the file. What"
        " does the process see?",
        (
            "the frame number: the process was root when it opened the file",
            "0: the process is unprivileged when it reads",
            "an error: an unprivileged process may not read pagemap",
        ),
        0,
        "The kernel checks the privilege of the process that opens the file. Without root the lab"
        " does not decide this question: the number is hidden in both files.",
    ),
)


def run() -> Evidence:
    """Read one pagemap entry as this user, and as nobody through a file opened before and after."""
    evidence = Evidence(NAME)
    is_root = os.geteuid() == 0
    with MappedPages(1) as memory:
        memory.write(0)
        fd = _open()
        try:
            ours = PagemapEntry(_read_entry(fd, memory.start))
        finally:
            os.close(fd)

        def step(_: int) -> str:
            before = _open()
            if is_root:
                _drop_privilege()
            after = _open()
            return json.dumps([_read_entry(fd, memory.start) for fd in (before, after)])

        with ForkedChild(step) as child:
            raw_before, raw_after = json.loads(child.run_step())
    before, after = PagemapEntry(raw_before), PagemapEntry(raw_after)
    table = evidence.table(
        "looks",
        "three readings of one page's entry; * means: the frame number is hidden",
        [
            EvidenceColumn("who", "who reads"),
            EvidenceColumn("opened", "opened by"),
            EvidenceColumn("vaddr", "virtual", VADDR),
            EvidenceColumn("entry", "entry", TEXT),
            EvidenceColumn("paddr", "physical", PADDR),
        ],
    )
    me = f"uid {os.geteuid()}"
    child_is = "nobody" if is_root else me
    readings = [(me, me, ours), (child_is, me, before), (child_is, child_is, after)]
    for who, opened, entry in readings:
        changed = ["paddr"] if entry.cause else []
        paddr: Cell = entry.cause if entry.pfn is None else entry.pfn << PAGE_SHIFT
        table.add(who, opened, memory.start, f"{entry.raw:#018x}", paddr, changed=changed)
    _explain(evidence, ours, before, after)
    return evidence


def _open() -> int:
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def _read_entry(fd: int, vaddr: int) -> int:
    entry = array("Q", os.pread(fd, 8, vaddr // PAGE_SIZE * 8))
    return entry[0]


def _drop_privilege() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # A process that drops privileges is no longer dumpable, and then root owns its /proc/self.
    libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)


def _explain(
    evidence: Evidence, ours: PagemapEntry, before: PagemapEntry, after: PagemapEntry
) -> None:
    if ours.pfn is None:
        evidence.check(
            "hidden_already",
            os.geteuid() != 0 and after.pfn is None,
            "The kernel already hides the frame number from this user. The entry says that the page"
            " is resident, and has 0 in place of the frame number. This user has no privileges to"
            " drop.",
            "The kernel hides the frame number although this user is root. This is a container"
            " without CAP_SYS_ADMIN, or a user namespace, whose capabilities do not count here.",
        )
        observe.note_hidden(evidence)
        evidence.answer(None)
        return
    evidence.check(
        "shown_to_root",
        before.pfn is not None,
        f"Root sees {pfn_text(ours.pfn)}. The child, as nobody, sees {pfn_text(before.pfn or 0)}"
        " through the file that it opened as root. The privilege of the opener counts, not the"
        " privilege of the reader.",
        "The child, as nobody, sees 0 even through the file that it opened as root. This kernel"
        " checks the privilege of the reader.",
    )
    evidence.answer(0 if before.pfn is not None else 1)
    evidence.check(
        "hidden_from_nobody",
        after.present and after.pfn is None,
        "Through the file that the child opened as nobody, the same page is resident, but the frame"
        " number is 0. This 0 means that the kernel refuses the number; it is not an address. Since"
        " Linux 4.2 the kernel hides frame numbers from all processes without CAP_SYS_ADMIN,"
        " because of Rowhammer: an attacker who knows which frames are neighbours can flip bits in"
        " the memory of another process.",
        "Through the file that the child opened as nobody, the child sees"
        f" {pfn_text(after.pfn or 0)} as well. This process kept CAP_SYS_ADMIN, or this kernel does"
        " not hide frame numbers.",
    )


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, lambda: None, run)
