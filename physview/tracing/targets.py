# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets of a trace: maps an event's name to this kernel's tracepoints and symbols.

Kernels differ in which functions are inlined and in which tracepoints exist. The lookups here
therefore ask the running kernel.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from physview.errors import Unsupported, UsageError
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.breakpoints import ARGUMENTS, MAX_BREAKPOINTS, Breakpoint
from physview.tracing.ftrace import FtraceSource
from physview.tracing.symbols import Symbols
from physview.tracing.tracefs import Tracefs


class Function(NamedTuple):
    """A kernel function that has several symbols, or different symbols on different machines.

    Args:
        symbols: The possible symbols. All symbols that exist are probed.
        fields: The values to fetch, each as (name, register on x86-64, number of the argument or
            0, whether it is an address).
        absent: The reason why a kernel may have none of the symbols.
    """

    symbols: tuple[str, ...]
    fields: tuple[tuple[str, str, int, bool], ...]
    absent: str


_COPY = (("to", "di", 1, True), ("from", "si", 2, True), ("n", "dx", 3, False))
_INLINE = "this kernel has it inlined in every caller"

FUNCTIONS = {
    # On arm64 the first symbol is inlined, and the second symbol does the copy.
    "copy_to_user": Function(("_copy_to_user", "__arch_copy_to_user"), _COPY, _INLINE),
    "copy_from_user": Function(("_copy_from_user", "__arch_copy_from_user"), _COPY, _INLINE),
    # One symbol per size. arch/x86/lib/putuser.S has its own calling convention.
    "put_user": Function(
        ("__put_user_1", "__put_user_2", "__put_user_4", "__put_user_8"),
        (("to", "cx", 0, True), ("value", "ax", 0, True)),
        _INLINE,
    ),
}
"""Functions by the names that kernel programmers use."""

EVENTS = {
    # Before 6.1 allocations on a given NUMA node had their own event.
    "kmalloc": ("kmem:kmalloc", "kmem:kmalloc_node"),
    "mm_page_alloc": ("kmem:mm_page_alloc",),
}
"""Tracepoints by their short names."""

MAX_NEAREST = 5
MAX_LONGER = 2


def fetch_arguments(name: str) -> list[str]:
    """Return the alternative lists of values that a kprobe may fetch in a function, best first."""
    function = FUNCTIONS.get(name)
    if function is None:
        # The first alternative has the parameters' own names, from BTF. It needs Linux 6.4.
        return ["$arg*", "arg1=$arg1:x64 arg2=$arg2:x64 arg3=$arg3:x64", ""]
    kinds = {True: "x64", False: "u64"}
    by_number = [f"{n}=$arg{nr}:{kinds[hexa]}" for n, _, nr, hexa in function.fields if nr]
    by_register = [f"{n}=%{register}:{kinds[hexa]}" for n, register, _, hexa in function.fields]
    return [" ".join(by_number)] * bool(by_number) + [" ".join(by_register)]


def breakpoint_for(name: str, symbol: str, address: int) -> Breakpoint:
    """Return the breakpoint for one symbol of a function, with the registers to record."""
    if name in FUNCTIONS:
        fields = FUNCTIONS[name].fields
        registers = {field: register for field, register, _, _ in fields}
        addresses = frozenset(field for field, _, _, hexa in fields if hexa)
    else:
        registers = {f"arg{i}": register for i, register in enumerate(ARGUMENTS, 1)}
        addresses = frozenset(registers)
    return Breakpoint(symbol, address, registers, addresses)


def add_events(source: FtraceSource, name: str) -> tuple[str, ...]:
    """Add the tracepoints that a name stands for.

    Returns:
        The names of the tracepoints.

    Raises:
        UsageError: This kernel has no such tracepoint.
    """
    there = [event for event in EVENTS.get(name, (name,)) if source.has_event(event)]
    if not there:
        raise unknown_name(source.tracefs, name, ())
    for event in there:
        source.add_event(event)
    return tuple(there)


def unknown_name(fs: Tracefs, name: str, functions: Iterable[str]) -> UsageError:
    """Return the error for an unknown name. The error suggests similar names.

    Args:
        fs: The tracefs that lists the events.
        name: The unknown name.
        functions: The names of functions to suggest.
    """
    import difflib

    known = [*FUNCTIONS, *EVENTS]
    known += [os.fsdecode(line) for line in proctext.lines(fs.read("available_events"))]
    # Comparing all names takes long. Compare only names of a similar length.
    near = [one for one in (*known, *functions) if abs(len(one) - len(name)) <= MAX_LONGER]
    nearest = difflib.get_close_matches(name, near, MAX_NEAREST)
    if ":" not in name:
        nearest = [one for one in known if one.endswith(f":{name}")] + nearest
    remedy = f"similar names are {', '.join(nearest[:MAX_NEAREST])}" if nearest else ""
    if not remedy:
        remedy = f"{fs.path}/available_events and /proc/kallsyms list all names"
    kind = "event" if ":" in name else "event or function"
    return UsageError(f"no {kind} '{name}'", f"this kernel has no {kind} of this name", remedy)


def add_kprobes(source: FtraceSource, name: str, symbols: Sequence[str]) -> list[str]:
    """Add a kprobe for each symbol.

    Returns:
        The symbols that refuse a kprobe.

    Raises:
        UsageError: Several functions have this name.
        Unsupported: This kernel has no kprobes.
    """
    refused = []
    for symbol in symbols:
        try:
            source.add_kprobe(symbol, fetch_arguments(name))
        except OSError as error:
            if isinstance(error, Unsupported):
                raise
            if error.errno == errno.EADDRNOTAVAIL:
                why = "several functions have this name"
                remedy = "trace a function that calls it"
                raise UsageError(f"'{symbol}' is ambiguous", why, remedy) from None
            refused.append(symbol)
    return refused


def find_symbols(name: str, symbols: Symbols, fs: Tracefs) -> list[str]:
    """Return the symbols of a function that exist in this kernel.

    Raises:
        Unsupported: The function has no symbols in this kernel.
        UsageError: There is no such function.
    """
    function = FUNCTIONS.get(name)
    found = [one for one in (function.symbols if function else (name,)) if symbols.find(one)]
    if found:
        return found
    if function:
        raise Unsupported(f"cannot trace {name}", function.absent, "trace a function that calls it")
    raise unknown_name(fs, name, symbols.names)


def breakpoints_for(name: str, refused: Iterable[str], symbols: Symbols) -> list[Breakpoint]:
    """Return a breakpoint for each symbol of a function.

    Raises:
        UsageError: Several functions have the symbol's name.
        Unsupported: The processor has fewer breakpoints than the function has symbols.
    """
    breakpoints = []
    for symbol in refused:
        addresses = symbols.find(symbol)
        if len(addresses) > 1:
            why = "several functions have this name"
            remedy = "trace a function that calls it"
            raise UsageError(f"'{symbol}' is ambiguous", why, remedy)
        breakpoints.append(breakpoint_for(name, symbol, addresses[0]))
    if len(breakpoints) > MAX_BREAKPOINTS:
        why = f"it needs more than the {MAX_BREAKPOINTS} breakpoints that a processor has"
        raise Unsupported(f"cannot trace {name}", why, tracefs.trace_in_vm())
    return breakpoints
