# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab copies: the kernel stacks of copy_to_user(), copy_from_user() and put_user()."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from physview.errors import Unsupported
from physview.labs import observe, requirements, traced_process
from physview.labs.model import NUMBER, TEXT, VADDR, Evidence, EvidenceColumn, Lab, Question

if TYPE_CHECKING:
    from physview.tracing import Event

NAME = "copies"
TITLE = "copies to user memory and from user memory"
PLAN = (
    "Starts a process and traces three functions in it. The process calls the ioctl of the kernel"
    " module, as memview2 does, and three other system calls: uname(), nanosleep(), and the ioctl"
    " FIONREAD of a pipe. The lab finds the copies by the addresses that the process passed, and"
    " compares the kernel stacks."
)
QUESTIONS = (
    Question(
        "An ioctl of the module copies its argument from user memory, and copies its answer to user"
        " memory. How do the kernel stacks of the two copies differ?",
        (
            "only in the innermost function",
            "in the system call at the bottom",
            "they have nothing in common",
        ),
        0,
        "The same function of the module calls both. Below it the stacks are the same: ioctl(), and"
        " the entry of the system call. Only the innermost function differs: _copy_from_user() and"
        " _copy_to_user(). put_user() of another ioctl has another function above the system call.",
    ),
    Question(
        "How does put_user() know how many bytes to write?",
        (
            "from an argument, as copy_to_user() does",
            "from the type of the value: there is a function for each size",
            "it always writes 8 bytes",
        ),
        1,
        "The type of the value decides at compile time which function is called: __put_user_1, _2,"
        " _4 or _8. copy_to_user() gets the number of bytes as an argument. On arm64 put_user() is"
        " inlined, so there is no function to trace.",
    ),
)
# The function to trace; the system call, as people call it; and the name of its user memory.
COPIES = (
    ("copy_from_user", "ioctl TRANSLATE", "query"),
    ("copy_to_user", "ioctl TRANSLATE", "query"),
    ("copy_to_user", "uname", "name"),
    ("copy_from_user", "nanosleep", "moment"),
    ("put_user", "ioctl FIONREAD", "nr_bytes"),
)
STACKS = {"from_user": 0, "to_user": 1, "put_user": 4}
"""The copies whose stacks are compared: the column's name, and the index in COPIES."""

_SYSCALL = re.compile(r"__(?:x64|arm64|ia32|do|se)_sys_(\w+)")
_SIZE = re.compile(r"__put_user_(?:nocheck_)?([1248])")


def run() -> Evidence:
    """Trace the functions, and compare the stacks of the copies."""
    evidence = Evidence(NAME)
    found: list[Event | None] = []
    traced = {}
    with traced_process.start() as process:
        for function in dict.fromkeys(function for function, _, _ in COPIES):
            try:
                traced[function] = process.trace(function, "copies")
            except Unsupported as error:  # put_user() is inlined on arm64
                evidence.note(f"{function}: {error.why}; {error.remedy}")
    for function, _, memory in COPIES:
        events, addresses = traced.get(function, ([], {memory: None}))
        side = "from" if function == "copy_from_user" else "to"
        own = [one for one in events if one.fields.get(side) == addresses[memory]]
        found.append(own[-1] if own else None)
    _add_copies(evidence, found)
    _add_stacks(evidence, found)
    nr_others = sum(len(events) for events, _ in traced.values()) - len(list(filter(None, found)))
    nr_traced = len([function for function, _, _ in COPIES if function in traced])
    _explain(evidence, found, nr_traced, nr_others)
    return evidence


def _add_copies(evidence: Evidence, found: list[Event | None]) -> None:
    table = evidence.table(
        "copies",
        "the copies of the system calls",
        [
            EvidenceColumn("call", "system call"),
            EvidenceColumn("function", "function"),
            EvidenceColumn("user", "user address", VADDR),
            EvidenceColumn("kernel", "kernel address", VADDR),
            EvidenceColumn("bytes", "bytes", NUMBER),
        ],
    )
    for (function, call, _), event in zip(COPIES, found, strict=True):
        if event is None:
            table.add(call, function, None, None, None)
            continue
        sides = [_number(event, "from"), _number(event, "to")]
        user, kernel = sides if function == "copy_from_user" else reversed(sides)
        table.add(call, event.name, user, kernel, _size(event))


def _number(event: Event, field: str) -> int | None:
    value = event.fields.get(field)
    return value if isinstance(value, int) else None


def _size(event: Event) -> int | None:
    """The number of bytes that were copied: from the argument, or from the function's name."""
    by_name = _SIZE.fullmatch(event.name)
    return int(by_name[1]) if by_name else _number(event, "n")


def _names(event: Event | None) -> list[str]:
    return [frame.symbol or hex(frame.address) for frame in event.stack] if event else []


def _add_stacks(evidence: Evidence, found: list[Event | None]) -> None:
    table = evidence.table(
        "stacks",
        "three stacks, the innermost function first; * means: differs from the first stack",
        [
            EvidenceColumn(name, f"{COPIES[at][1]}, {name.replace('_', ' ')}", TEXT)
            for name, at in STACKS.items()
        ],
    )
    stacks = [_names(found[at]) for at in STACKS.values()]
    depth = max(map(len, stacks))
    # A stack ends where the kernel was entered. So the last functions are side by side.
    aligned = [[""] * (depth - len(stack)) + stack for stack in stacks]
    for row in zip(*aligned, strict=True):
        names = zip(STACKS, row, strict=True)
        table.add(*row, changed=[name for name, cell in names if cell and cell != row[0]])


def _explain(evidence: Evidence, found: list[Event | None], nr_traced: int, nr_others: int) -> None:
    from_user, to_user, put_user = (found[at] for at in STACKS.values())
    nr = len([event for event in found if event])
    evidence.check(
        "found",
        nr == nr_traced > 0,
        f"All {nr} copies were traced, and each has the user address that the process passed."
        f" {observe.count_words(nr_others, 'other copy', 'other copies')} in the process"
        f" {'belongs' if nr_others == 1 else 'belong'} to other work, such as reading the time.",
        f"Only {nr} of {nr_traced} copies were traced. On this kernel the others go through"
        " another function, which the compiler made part of the system call.",
    )
    _explain_directions(evidence, found)
    inner, outer = _names(from_user), _names(to_user)
    same = bool(inner) and inner[1:] == outer[1:]
    evidence.check(
        "same_ioctl",
        same,
        "The two copies of the module's ioctl have the same stack except for the innermost"
        f" function: {inner[1] if same else ''}() of the module calls both. It copies the argument"
        " in, looks up the physical address, and copies the answer out.",
        "The two copies of the module's ioctl do not have the same stack. The compiler made part of"
        " a function of its own, or a copy is missing from the trace.",
    )
    evidence.answer(0 if same else None)
    _explain_put_user(evidence, put_user)
    stacks = [_names(event) for event in found if event]
    calls = [next(filter(None, map(_SYSCALL.match, reversed(names))), None) for names in stacks]
    entries = {names[-1] for names in stacks if names}
    evidence.check(
        "syscalls",
        all(calls) and len(entries) == 1,
        f"Every stack ends in {' and '.join(entries)}(), where the processor enters the kernel."
        " Above is the system call's own function:"
        f" {', '.join(dict.fromkeys(call[0] for call in calls if call))}.",
        f"{len([c for c in calls if not c])} of {len(calls)} stacks name no system call, and the"
        f" stacks end in {' and '.join(sorted(entries)) or 'nothing'}.",
    )


def _explain_directions(evidence: Evidence, found: list[Event | None]) -> None:
    from physview.analysis.trace import KERNEL_START

    (table, _) = evidence.tables
    low = [one for one in table.column("user") if isinstance(one, int) and one < KERNEL_START]
    high = [one for one in table.column("kernel") if isinstance(one, int) and one >= KERNEL_START]
    copies = [event for event in found if event and _number(event, "n") is not None]
    evidence.check(
        "directions",
        bool(copies) and len(high) == len(copies) and len(low) == len([e for e in found if e]),
        "Each copy has a user address on one side and a kernel address on the other side. In"
        " copy_from_user() the user address is the source, in copy_to_user() the destination.",
        f"{len(low)} of {len(found)} copies have a user address, and {len(high)} have a kernel"
        " address.",
    )


def _explain_put_user(evidence: Evidence, event: Event | None) -> None:
    if event is None:
        evidence.answer(None)
        return
    size, value = _size(event), _number(event, "value")
    wanted = len(traced_process.PIPE_TEXT)
    low_bits = None if value is None or size is None else value & ((1 << 8 * size) - 1)
    evidence.check(
        "put_user",
        low_bits == wanted,
        f"put_user() copies no memory: it writes one value, here {wanted}, the number of bytes in"
        f" the pipe. {event.name}() gets the value in a register. No argument tells the size: it is"
        f" in the function's name, {size} bytes, the type of the value.",
        f"{event.name}() wrote {value}, and the pipe has {wanted} bytes.",
    )
    evidence.answer(1 if size else None)


LAB = Lab(
    NAME,
    TITLE,
    (8,),
    PLAN,
    QUESTIONS,
    requirements.checker(NAME, requirements.kernel_functions, requirements.module),
    run,
)
