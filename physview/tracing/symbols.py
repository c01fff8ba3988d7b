# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of the kernel's functions, by address. Source: /proc/kallsyms"""

from __future__ import annotations

import bisect

from physview.errors import AccessDenied, Unsupported
from physview.tracing.events import Frame

PATH = "/proc/kallsyms"
FUNCTION_KINDS = b"tTwW"


class Symbols:
    """The kernel's functions.

    Args:
        kallsyms: The contents of /proc/kallsyms.
    """

    def __init__(self, kallsyms: bytes) -> None:
        found = []
        for line in kallsyms.splitlines():
            fields = line.split()
            if len(fields) > 2 and fields[1] in FUNCTION_KINDS:
                module = fields[3][1:-1] if len(fields) > 3 else b""
                found.append((int(fields[0], 16), fields[2], module))
        found.sort(key=lambda symbol: symbol[0])
        self._symbols = found
        self._addresses = [address for address, _, _ in found]

    @property
    def is_hidden(self) -> bool:
        """Whether all addresses are 0: kptr_restrict, or no privilege."""
        return not self._addresses or not self._addresses[-1]

    def find(self, name: str) -> list[int]:
        """Addresses of the functions of this name."""
        wanted = name.encode()
        return [address for address, symbol, _ in self._symbols if symbol == wanted]

    def frame(self, address: int) -> Frame:
        """What lies at an address of a stack.

        A function may end in a call that does not return: then the address is that of the next
        function already, so the byte before counts, but where a function begins.
        """
        at = bisect.bisect_right(self._addresses, address) - 1
        if at >= 0 and self._addresses[at] != address:
            at = bisect.bisect_right(self._addresses, address - 1) - 1
        if at < 0:
            return Frame(address, "", 0, "")
        start, symbol, module = self._symbols[at]
        return Frame(address, symbol.decode(), address - start, module.decode())


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
