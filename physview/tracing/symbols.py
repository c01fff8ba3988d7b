# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table of the kernel's functions: names by address. Source: /proc/kallsyms"""

from __future__ import annotations

import bisect
import os
import re
from functools import cached_property

from physview.errors import AccessDenied, Unsupported
from physview.tracing.events import StackFrame

PATH = "/proc/kallsyms"
MAX_FUNCTION_SIZE = 1 << 20
# Address, name and module of a function. An address has 16 digits, so it also sorts as text.
_LINE = rb"^([0-9a-f]{16}) [tTwW] (%b)(?:\t\[(.+)\])?$"
_FUNCTION = re.compile(_LINE % rb"[^\t\n]+", re.MULTILINE)
_SHOWN = re.compile(rb"^(?!0{16})[0-9a-f]{16} [tTwW] ", re.MULTILINE)


class Symbols:
    """The symbol table of the kernel's functions.

    Args:
        kallsyms: The content of /proc/kallsyms.
    """

    def __init__(self, kallsyms: bytes) -> None:
        self._kallsyms = kallsyms

    @cached_property
    def _symbols(self) -> list[tuple[bytes, bytes, bytes]]:
        """All functions, sorted by address.

        Parsing 150,000 lines takes seconds in an emulated VM. A trace parses them for the first
        stack, when it is already attached.
        """
        return sorted(_FUNCTION.findall(self._kallsyms))

    @property
    def is_hidden(self) -> bool:
        """Whether all addresses are 0: by kptr_restrict, or because the user is unprivileged."""
        return _SHOWN.search(self._kallsyms) is None

    @property
    def modules(self) -> set[str]:
        """The names of all modules that have functions."""
        return {module.decode() for _, _, module in self._symbols if module}

    @property
    def names(self) -> set[str]:
        """The names of all functions."""
        return {name.decode() for _, name, _ in self._symbols}

    def find(self, name: str, module: str | None = None) -> list[int]:
        """Return the addresses of all functions with this name.

        Args:
            name: The function's name.
            module: The module that contains it. None: the kernel, and all modules.
        """
        if not name or re.search(r"[\n\t]", name):  # these separate the file's fields
            return []
        where = None if module is None else os.fsencode(module)
        lines = re.compile(_LINE % re.escape(os.fsencode(name)), re.MULTILINE)
        found = {a for a, _, owner in lines.findall(self._kallsyms) if where in (None, owner)}
        return sorted(int(address, 16) for address in found)

    def frame(self, address: int, *, is_caller: bool = True) -> StackFrame:
        """Return the function that contains an address of a stack.

        Args:
            address: The address.
            is_caller: Whether the address is a return address. If a function ends in a call that
                never returns, the return address is already in the next function.
        """
        wanted = b"%016x" % (address - is_caller)
        at = bisect.bisect_left(self._symbols, (wanted,))
        if at == len(self._symbols) or self._symbols[at][0] != wanted:
            at -= 1
        start, symbol, module = self._symbols[at]
        offset = address - int(start, 16)
        # The address is past the end of all known functions. It may be in a module loaded later.
        if at < 0 or offset >= MAX_FUNCTION_SIZE:
            return StackFrame(address, "", 0, "")
        return StackFrame(address, symbol.decode(), offset, module.decode())


def read_symbols() -> Symbols:
    """Read the running kernel's symbol table.

    Raises:
        AccessDenied: The kernel hides the addresses from this user.
        Unsupported: This kernel has no symbol table.
    """
    try:
        with open(PATH, "rb") as file:
            symbols = Symbols(file.read())
    except FileNotFoundError:
        why, remedy = "this kernel has no symbol table", "boot a kernel with CONFIG_KALLSYMS=y"
        raise Unsupported("cannot name kernel functions", why, remedy, path=PATH) from None
    if symbols.is_hidden:
        raise AccessDenied(
            "cannot name kernel functions",
            f"{PATH} hides the addresses of functions",
            "run as root, with kernel.kptr_restrict at 0 or 1 (sysctl kernel.kptr_restrict=1)",
            path=PATH,
        )
    return symbols
