# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the kernel's functions, by address. Source: /proc/kallsyms"""

from __future__ import annotations

import bisect
import re

from physview.errors import AccessDenied, Unsupported
from physview.tracing.events import Frame

PATH = "/proc/kallsyms"
LARGEST = 1 << 20  # of functions
# Address, name and module of functions; addresses have 16 digits, so that as text they sort, too.
_FUNCTION = re.compile(rb"^([0-9a-f]{16}) [tTwW] ([^\t\n]+)(?:\t\[(.+)\])?$", re.MULTILINE)


class Symbols:
    """The kernel's functions.

    Args:
        kallsyms: The contents of /proc/kallsyms.
    """

    def __init__(self, kallsyms: bytes) -> None:
        self._symbols: list[tuple[bytes, bytes, bytes]] = _FUNCTION.findall(kallsyms)
        self._symbols.sort()

    @property
    def is_hidden(self) -> bool:
        """Whether all addresses are 0: kptr_restrict, or no privilege."""
        return not self._symbols or not int(self._symbols[-1][0], 16)

    @property
    def names(self) -> set[str]:
        """What functions there are."""
        return {name.decode() for _, name, _ in self._symbols}

    def find(self, name: str) -> list[int]:
        """Addresses of the functions of this name."""
        wanted = name.encode("utf-8", "surrogateescape")
        return [int(address, 16) for address, symbol, _ in self._symbols if symbol == wanted]

    def frame(self, address: int, *, is_caller: bool = True) -> Frame:
        """What function an address of a stack lies in.

        Args:
            address: The address.
            is_caller: It is where a call returns to. A function may end in a call that does not,
                and then the address is that of the next function already.
        """
        wanted = b"%016x" % (address - is_caller)
        at = bisect.bisect_left(self._symbols, (wanted,))
        if at == len(self._symbols) or self._symbols[at][0] != wanted:
            at -= 1
        start, symbol, module = self._symbols[at]
        offset = address - int(start, 16)
        # Past the end of all that is known: of a module that was loaded since, say.
        if at < 0 or offset >= LARGEST:
            return Frame(address, "", 0, "")
        return Frame(address, symbol.decode(), offset, module.decode())


def read_symbols() -> Symbols:
    """Read them of the running kernel.

    Raises:
        AccessDenied: The addresses are hidden.
        Unsupported: This kernel keeps no names.
    """
    try:
        with open(PATH, "rb") as file:
            symbols = Symbols(file.read())
    except FileNotFoundError:
        why, remedy = "this kernel keeps no names", "it takes one with CONFIG_KALLSYMS=y"
        raise Unsupported("cannot name kernel functions", why, remedy, path=PATH) from None
    if symbols.is_hidden:
        raise AccessDenied(
            "cannot name kernel functions",
            f"{PATH} hides their addresses",
            "run as root, with kernel.kptr_restrict at 0 or 1 (sysctl kernel.kptr_restrict=1)",
            path=PATH,
        )
    return symbols
