# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets of a trace: maps an event's name to this kernel's tracepoints and symbols.

Kernels differ in which functions are inlined and in which tracepoints exist. The lookups here
therefore ask the running kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from physview.errors import Unsupported, UsageError
from physview.text import proctext
from physview.tracing import tracefs
from physview.tracing.breakpoints import MAX_BREAKPOINTS, Breakpoint
from physview.tracing.ftrace import Fetch, FtraceSource
from physview.tracing.processors import PROCESSORS
from physview.tracing.symbols import Symbols
from physview.tracing.tracefs import Tracefs


class Argument(NamedTuple):
    """A value that is fetched where a function begins.

    Args:
        name: The field's name.
        number: The number of the argument; 0 if the function has its own calling convention.
        register: The register then, on x86-64.
        kind: "address"; "hex" for a value of any meaning; or "number".
    """

    name: str
    number: int
    kind: str
    register: str = ""

    def register_of(self, machine: str) -> str:
        """The register that holds the value on a machine, as `os.uname().machine` names it."""
        return PROCESSORS[machine].arguments[self.number - 1] if self.number else self.register


class Function(NamedTuple):
    """A kernel function that has several symbols, or different symbols on different machines.

    Args:
        symbols: The possible symbols. All symbols that exist are probed.
        fields: The values to fetch.
        absent: The reason why a kernel may have none of the symbols.
    """

    symbols: tuple[str, ...]
    fields: tuple[Argument, ...]
    absent: str


_COPY = (
    Argument("to", 1, "address"),
    Argument("from", 2, "address"),
    Argument("n", 3, "number"),
)
_INLINE = "this kernel has it inlined in every caller"

FUNCTIONS = {
    # On arm64 the first symbol is inlined, and the second symbol does the copy.
    "copy_to_user": Function(("_copy_to_user", "__arch_copy_to_user"), _COPY, _INLINE),
    "copy_from_user": Function(("_copy_from_user", "__arch_copy_from_user"), _COPY, _INLINE),
    # One symbol per size. arch/x86/lib/putuser.S has its own calling convention.
    "put_user": Function(
        ("__put_user_1", "__put_user_2", "__put_user_4", "__put_user_8"),
        (Argument("to", 0, "address", "cx"), Argument("value", 0, "hex", "ax")),
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

# The symbol of the beginning of the kernel's code.
KERNEL_TEXT = "_text"
# An address in the kernel, as /proc/kallsyms and physview print it.
ADDRESS = re.compile(r"0x[0-9a-f]{1,16}", re.IGNORECASE)

MAX_NEAREST = 5
MAX_LONGER = 2


class Place(NamedTuple):
    """A place in the kernel's code to probe.

    Args:
        text: The place as the kernel's kprobe_events takes it.
        symbol: The name of the function.
        address: The address.
        is_start: Whether the function begins there.
    """

    text: str
    symbol: str
    address: int
    is_start: bool = True

    @property
    def label(self) -> str:
        """The place as people call it."""
        if self.text.startswith(f"{KERNEL_TEXT}+"):
            return f"{self.symbol} at {self.address:#x}"
        return self.text


def fetch_arguments(name: str) -> list[Fetch]:
    """Return the alternative lists of values that a kprobe may fetch in a function, best first."""
    function = FUNCTIONS.get(name)
    if function is None:
        return [
            # The parameters' own names and types, from BTF. It needs Linux 6.4.
            Fetch("$arg*", None),
            # What these registers hold is not known: the function may have fewer parameters.
            Fetch("arg1=$arg1:x64 arg2=$arg2:x64 arg3=$arg3:x64", frozenset()),
            Fetch("", frozenset()),
        ]
    fields = function.fields
    addresses = frozenset(one.name for one in fields if one.kind == "address")
    types = {"address": "x64", "hex": "x64", "number": "u64"}
    by_number = [f"{one.name}=$arg{one.number}:{types[one.kind]}" for one in fields if one.number]
    machine = os.uname().machine
    if machine not in PROCESSORS:
        return [Fetch(" ".join(by_number), addresses)]
    by_register = [f"{one.name}=%{one.register_of(machine)}:{types[one.kind]}" for one in fields]
    lists = [by_number, by_register] if by_number else [by_register]
    return [Fetch(" ".join(values), addresses) for values in lists]


def breakpoint_for(name: str, symbol: str, address: int, machine: str = "") -> Breakpoint:
    """Return the breakpoint for one symbol of a function, with the registers to record.

    No registers are recorded on a machine that is not in PROCESSORS.
    """
    machine = machine or os.uname().machine
    if machine not in PROCESSORS:
        return Breakpoint(symbol, address, {}, frozenset(), frozenset())
    if name in FUNCTIONS:
        fields = FUNCTIONS[name].fields
        registers = {one.name: one.register_of(machine) for one in fields}
        addresses = frozenset(one.name for one in fields if one.kind == "address")
        in_hex = addresses | {one.name for one in fields if one.kind == "hex"}
        return Breakpoint(symbol, address, registers, addresses, in_hex)
    registers = {f"arg{i}": register for i, register in enumerate(PROCESSORS[machine].arguments, 1)}
    return Breakpoint(symbol, address, registers, frozenset(), frozenset(registers))


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
    known = [*FUNCTIONS, *EVENTS]
    known += [os.fsdecode(line) for line in proctext.lines(fs.read("available_events"))]
    nearest = _similar(name, (*known, *functions))
    if ":" not in name:
        nearest = [one for one in known if one.endswith(f":{name}")] + nearest
    remedy = f"similar names are {', '.join(nearest[:MAX_NEAREST])}" if nearest else ""
    if not remedy:
        remedy = f"{fs.path}/available_events and /proc/kallsyms list all names"
    kind = "event" if ":" in name else "event or function"
    return UsageError(f"no {kind} '{name}'", f"this kernel has no {kind} of this name", remedy)


def _similar(name: str, known: Iterable[str]) -> list[str]:
    import difflib

    # Comparing all names takes long. Compare only names of a similar length.
    near = [one for one in known if abs(len(one) - len(name)) <= MAX_LONGER]
    return difflib.get_close_matches(name, near, MAX_NEAREST)


def add_kprobes(source: FtraceSource, name: str, places: Sequence[Place]) -> bool:
    """Add a kprobe at each place.

    Returns:
        Whether the kernel accepts all of them.

    Raises:
        Unsupported: This kernel has no kprobes.
    """
    for place in places:
        try:
            fetches = fetch_arguments(name)
            source.add_kprobe(place.text, place.symbol, fetches, is_start=place.is_start)
        except Unsupported:
            raise
        except OSError:
            return False
    return True


def find_places(name: str, symbols: Symbols, fs: Tracefs) -> list[Place]:
    """Return the places in this kernel's code that a name stands for.

    Args:
        name: A function, MODULE:FUNCTION, or an address.
        symbols: The kernel's functions.
        fs: The tracefs that lists the events.

    Raises:
        Unsupported: The function has no symbols in this kernel.
        UsageError: There is no such function, or there are several.
    """
    if ADDRESS.fullmatch(name):
        return [_place_at(int(name, 16), symbols)]
    module, _, plain = name.rpartition(":")
    function = FUNCTIONS.get(name)
    found = [
        _only(symbol, module, addresses, symbols)
        for symbol in (function.symbols if function else (plain,))
        if (addresses := symbols.find(symbol, module or None))
    ]
    if found:
        return found
    if function:
        raise Unsupported(f"cannot trace {name}", function.absent, "trace a function that calls it")
    raise unknown_name(fs, name, symbols.names)


def is_function(symbol: str, name: str) -> bool:
    """Whether a symbol is the function with this name, or a part that the compiler made of it.

    >>> is_function("copy_strings.isra.0", "copy_strings"), is_function("vfs_readv", "vfs_read")
    (True, False)
    """
    return symbol == name or symbol.startswith(f"{name}.")


def find_function(name: str, symbols: Symbols) -> tuple[str, str]:
    """Find a function by which stacks are chosen.

    Args:
        name: FUNCTION or MODULE:FUNCTION.
        symbols: The kernel's functions.

    Returns:
        The module and the function's name. The module is "" if any module will do.

    Raises:
        UsageError: This kernel has no such function.
    """
    module, _, plain = name.rpartition(":")
    if symbols.find(plain, module or None):
        return module, plain
    if not module and any(is_function(symbol, plain) for symbol in symbols.names):
        return "", plain
    nearest = _similar(plain, symbols.names)
    remedy = f"similar names are {', '.join(nearest)}" if nearest else "see /proc/kallsyms"
    raise UsageError(f"no function '{name}'", "this kernel has no function of this name", remedy)


def _place_at(address: int, symbols: Symbols) -> Place:
    frame = symbols.frame(address, is_caller=False)
    if not frame.symbol:
        what, why = f"cannot trace {address:#x}", "no function of this kernel has this address"
        raise UsageError(what, why, "/proc/kallsyms lists all addresses")
    # Of a bare address, the kernel does not know that a function begins there, and refuses to fetch
    # arguments.
    base = symbols.find(KERNEL_TEXT)
    if frame.module or not base:
        text = f"{frame.module}:{frame.symbol}" if frame.module else frame.symbol
        text += f"+{frame.offset:#x}" if frame.offset else ""
    else:
        text = f"{KERNEL_TEXT}+{address - base[0]:#x}"
    return Place(text, frame.symbol, address, is_start=not frame.offset)


def _only(symbol: str, module: str, addresses: Sequence[int], symbols: Symbols) -> Place:
    """Return the place of a symbol, or raise UsageError if several functions have the name.

    Until Linux 6.6 the kernel itself takes one of them without a word.
    """
    if len(addresses) == 1:
        return Place(f"{module}:{symbol}" if module else symbol, symbol, addresses[0])
    choices = []
    for address in addresses[:MAX_NEAREST]:
        owner = symbols.frame(address, is_caller=False).module
        choices.append(f"{address:#x}{f' [{owner}]' if owner else ''}")
    more = ", …" if len(addresses) > MAX_NEAREST else ""
    why = f"{len(addresses)} functions have this name"
    remedy = f"trace one by its address: {', '.join(choices)}{more}"
    raise UsageError(f"'{symbol}' is ambiguous", why, remedy)


def breakpoints_for(name: str, places: Sequence[Place]) -> list[Breakpoint]:
    """Return a breakpoint for each place.

    Raises:
        Unsupported: The processor has fewer breakpoints than there are places.
    """
    if len(places) > MAX_BREAKPOINTS:
        why = f"it needs more than the {MAX_BREAKPOINTS} breakpoints that a processor has"
        raise Unsupported(f"cannot trace {name}", why, tracefs.trace_in_vm())
    return [breakpoint_for(name, place.symbol, place.address) for place in places]
