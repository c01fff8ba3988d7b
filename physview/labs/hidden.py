# SPDX-License-Identifier: GPL-2.0-or-later
"""Why frame numbers are hidden, and from whom: the opener of pagemap counts."""

from __future__ import annotations

import ctypes
import json
import os
from array import array

from physview.labs import look
from physview.labs.base import PADDR, TEXT, VADDR, Cell, Column, Evidence, Lab, Question
from physview.labs.memory import Forked, Memory, libc
from physview.model import PAGE_SHIFT, PAGE_SIZE, PagemapEntry

NAME = "hidden"
TITLE = "why frame numbers are hidden"
NOBODY = 65534
PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h
PLAN = (
    "Reads the pagemap entry of one page, forks, and in the child opens pagemap, gives up all"
    " privilege (as user nobody), and reads the entry twice: from the file that was opened before,"
    " and from one that is opened now."
)
QUESTIONS = (
    Question(
        "A process opens its pagemap as root, becomes nobody, and reads it. What does it see?",
        (
            "the frame number: it was root when it opened the file",
            "0: it is nobody when it reads",
            "an error: nobody may not read pagemap",
        ),
    ),
)


def run() -> Evidence:
    """Look as who we are, and as nobody, before and after."""
    evidence = Evidence(NAME)
    is_root = os.geteuid() == 0
    with Memory(1) as memory:
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

        with Forked(step) as child:
            raw_before, raw_after = json.loads(child.tell())
    before, after = PagemapEntry(raw_before), PagemapEntry(raw_after)
    table = evidence.table(
        "looks",
        "one page, looked at three times; * is hidden",
        [
            Column("who", "who reads"),
            Column("opened", "opened by"),
            Column("vaddr", "virtual", VADDR),
            Column("entry", "entry", TEXT),
            Column("paddr", "physical", PADDR),
        ],
    )
    me = f"uid {os.geteuid()}"
    child_is = "nobody" if is_root else me
    looks = [(me, me, ours), (child_is, me, before), (child_is, child_is, after)]
    for who, opened, entry in looks:
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
    # Who drops privilege is no longer dumpable, and then /proc/self is root's.
    libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)


def _explain(
    evidence: Evidence, ours: PagemapEntry, before: PagemapEntry, after: PagemapEntry
) -> None:
    if ours.pfn is None:
        evidence.check(
            "hidden_already",
            os.geteuid() != 0 and after.pfn is None,
            "The frame number is hidden from this user already: the entry says that the page is in"
            " memory, and 0 where its frame should be. There is no privilege to drop.",
            "The frame number is hidden, though this is root: a container without CAP_SYS_ADMIN, or"
            " a user namespace, where it does not count.",
        )
        look.note_hidden(evidence)
        evidence.answer(None)
        return
    evidence.check(
        "shown_to_root",
        before.pfn is not None,
        f"Root sees frame {ours.pfn:#x}. The child, which is nobody by then, sees"
        f" {before.pfn or 0:#x} in the file that it had opened as root: what counts is who opened"
        " it, not who reads.",
        "The child, which is nobody by then, sees 0 even in the file that it had opened as root:"
        " this kernel asks who reads.",
    )
    evidence.answer(0 if before.pfn is not None else 1)
    evidence.check(
        "hidden_from_nobody",
        after.present and after.pfn is None,
        "In the file that it opens as nobody the same page is in memory, too, but the frame number"
        " is 0: not an address, a refusal. The kernel hides it since 4.2 from all without"
        " CAP_SYS_ADMIN, because of Rowhammer: who knows which frames are neighbours can flip bits"
        " in another's memory.",
        f"As nobody it sees the frame {after.pfn} as well: this process kept CAP_SYS_ADMIN, or"
        " this kernel does not hide frame numbers.",
    )


LAB = Lab(NAME, TITLE, (), PLAN, QUESTIONS, lambda: None, run)
