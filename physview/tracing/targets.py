# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be traced by a name, and where in this kernel that is: found by trying."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from physview.errors import Unsupported, UsageError
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.breakpoints import ARGUMENTS, MAX_BREAKPOINTS, Place
from physview.tracing.ftrace import FtraceSource
from physview.tracing.symbols import Symbols
from physview.tracing.tracefs import Tracefs


class Function(NamedTuple):
    """A function of the kernel's that has several symbols, or others on other machines.

    Args:
        symbols: Where it may be; those that are there are probed, all of them.
        fields: What to fetch, as (name, register of x86-64, number of the argument or 0, whether
            it is an address).
        absent: Why there may be none.
    """

    symbols: tuple[str, ...]
    fields: tuple[tuple[str, str, int, bool], ...]
    absent: str


_COPY = (("to", "di", 1, True), ("from", "si", 2, True), ("n", "dx", 3, False))
_INLINE = "this kernel has it inlined wherever it is used"

FUNCTIONS = {
    # arm64 has the first of these inlined, and copies in the second.
    "copy_to_user": Function(("_copy_to_user", "__arch_copy_to_user"), _COPY, _INLINE),
    "copy_from_user": Function(("_copy_from_user", "__arch_copy_from_user"), _COPY, _INLINE),
    # One for each size; arch/x86/lib/putuser.S has a convention of its own.
    "put_user": Function(
        ("__put_user_1", "__put_user_2", "__put_user_4", "__put_user_8"),
        (("to", "cx", 0, True), ("value", "ax", 0, True)),
        _INLINE,
    ),
}
"""Functions by the names that programmers call them by."""

EVENTS = {
    # Before 6.1 those with a node were another event.
    "kmalloc": ("kmem:kmalloc", "kmem:kmalloc_node"),
    "mm_page_alloc": ("kmem:mm_page_alloc",),
}
"""Tracepoints by their short names."""

MAX_NEAREST = 5
MAX_LONGER = 2


def arguments_of(name: str) -> list[str]:
    """What a kprobe may fetch of a function, the best first."""
    function = FUNCTIONS.get(name)
    if function is None:
        # The first has the function's own names, of BTF, since 6.4.
        return ["$arg*", "arg1=$arg1:x64 arg2=$arg2:x64 arg3=$arg3:x64", ""]
    kinds = {True: "x64", False: "u64"}
    by_number = [f"{n}=$arg{nr}:{kinds[hexa]}" for n, _, nr, hexa in function.fields if nr]
    by_register = [f"{n}=%{register}:{kinds[hexa]}" for n, register, _, hexa in function.fields]
    return [" ".join(by_number)] * bool(by_number) + [" ".join(by_register)]


def place_of(name: str, symbol: str, address: int) -> Place:
    """What a breakpoint fetches of a function."""
    if name in FUNCTIONS:
        fields = FUNCTIONS[name].fields
        registers = {field: register for field, register, _, _ in fields}
        addresses = frozenset(field for field, _, _, hexa in fields if hexa)
    else:
        registers = {f"arg{i}": register for i, register in enumerate(ARGUMENTS, 1)}
        addresses = frozenset(registers)
    return Place(symbol, address, registers, addresses)


def add_events(source: FtraceSource, name: str) -> tuple[str, ...]:
    """Add the tracepoints that a name stands for.

    Returns:
        Which they are.

    Raises:
        UsageError: There is none.
    """
    there = [event for event in EVENTS.get(name, (name,)) if source.has_event(event)]
    if not there:
        raise unknown(source.tracefs, name, ())
    for event in there:
        source.add_event(event)
    return tuple(there)


def unknown(fs: Tracefs, name: str, functions: Iterable[str]) -> UsageError:
    """The error for a name that nothing has; it offers those that are near.

    Args:
        fs: The tracefs that lists the events.
        name: The name.
        functions: Names of functions that it may have meant.
    """
    import difflib

    known = [*FUNCTIONS, *EVENTS]
    known += [os.fsdecode(line) for line in proctext.lines(fs.read("available_events"))]
    # To look at each closely takes long, and mostly for nothing.
    near = [one for one in (*known, *functions) if abs(len(one) - len(name)) <= MAX_LONGER]
    nearest = difflib.get_close_matches(name, near, MAX_NEAREST)
    if ":" not in name:
        nearest = [one for one in known if one.endswith(f":{name}")] + nearest
    remedy = f"near it are {', '.join(nearest[:MAX_NEAREST])}" if nearest else ""
    if not remedy:
        remedy = f"{fs.path}/available_events and /proc/kallsyms list what there is"
    kind = "event" if ":" in name else "event or function"
    return UsageError(f"no {kind} '{name}'", "this kernel has none of this name", remedy)


def add_kprobes(source: FtraceSource, name: str, symbols: Sequence[str]) -> list[str]:
    """Add a kprobe for each symbol.

    Returns:
        The symbols that the kernel lets no kprobe near.

    Raises:
        UsageError: Several functions have this name.
        Unsupported: There are no kprobes.
        OSError: What else the kernel has against it.
    """
    refused = []
    for symbol in symbols:
        try:
            source.add_kprobe(symbol, arguments_of(name))
        except OSError as error:
            if isinstance(error, Unsupported):
                raise
            if error.errno == errno.EADDRNOTAVAIL:
                why = "several functions have this name"
                raise UsageError(
                    f"'{symbol}' is ambiguous", why, "choose one that calls it"
                ) from None
            refused.append(symbol)
    return refused


def symbols_of(name: str, symbols: Symbols, fs: Tracefs) -> list[str]:
    """The symbols of a function that are there.

    Raises:
        Unsupported: It has none here.
        UsageError: There is no such function.
    """
    function = FUNCTIONS.get(name)
    found = [one for one in (function.symbols if function else (name,)) if symbols.find(one)]
    if found:
        return found
    if function:
        raise Unsupported(f"cannot trace {name}", function.absent, "trace what calls it")
    raise unknown(fs, name, symbols.names)


def places_of(name: str, refused: Iterable[str], symbols: Symbols) -> list[Place]:
    """Where breakpoints go.

    Raises:
        UsageError: Several functions have the name.
        Unsupported: A processor has not as many.
    """
    places = []
    for symbol in refused:
        addresses = symbols.find(symbol)
        if len(addresses) > 1:
            why = "several functions have this name"
            raise UsageError(f"'{symbol}' is ambiguous", why, "choose one that calls it")
        places.append(place_of(name, symbol, addresses[0]))
    if len(places) > MAX_BREAKPOINTS:
        why = f"a processor has {MAX_BREAKPOINTS} breakpoints"
        raise Unsupported(f"cannot trace {name}", why, tracefs.trace_in_vm())
    return places
