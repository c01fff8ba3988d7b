# SPDX-License-Identifier: GPL-2.0-or-later
"""Names from outside in a line of text: process names, paths and the like may hold any byte.

There is one form, that of a shell's $'…': a byte that is no UTF-8, and an ASCII control character,
is \\xNN (or \\n, \\r, \\t); any other character that is not printable, as those that turn the
direction of writing, is \\uNNNN or \\UNNNNNNNN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_LONG = {form: letter for letter, form in _SHORT.items()}
# os.fsdecode() makes a byte that is no UTF-8 a lone surrogate from here on.
_BYTE = 0xDC00
_QUOTED = r"\\(?:[nrt\\]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"


def printable(name: str) -> str:
    r"""A name as it fits into a line, whatever bytes are in it. What is printable stays as it is.

    >>> print(printable("a b"), printable("a\nb"), printable("\x1b[31m \udcff \u202e"))
    a b a\nb \x1b[31m \xff \u202e
    """
    return name if name.isprintable() else "".join(map(_visible, name))


def quote_letter(letter: str) -> str:
    r"""One character in the form above, printable or not.

    >>> print(quote_letter("\x7f"), quote_letter("\udc80"), quote_letter("\x85"))
    \x7f \x80 \u0085
    """
    number = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    if number < 0x80:
        return f"\\x{number:02x}"
    if _BYTE + 0x80 <= number <= _BYTE + 0xFF:
        return f"\\x{number - _BYTE:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else quote_letter(letter)


def escaped(name: str, encoding: str = "utf-8") -> str:
    r"""A name in one line from which `unescaped()` gets it back: backslashes are doubled besides.

    Args:
        name: The name.
        encoding: What it has to fit into; characters that this lacks are quoted.

    >>> print(escaped("C:\\a\n"), escaped("ü", "ascii"))
    C:\\a\n \u00fc
    """
    name = printable(name.replace("\\", "\\\\"))
    try:
        name.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_encodable(letter, encoding) for letter in name)
    return name


def _encodable(letter: str, encoding: str) -> str:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return quote_letter(letter)
    return letter


def unescaped(text: str) -> str:
    r"""What `escaped()` was given.

    >>> unescaped("a\\\\b\\n\\xff") == "a\\b\n\udcff"
    True
    """
    import re

    return re.sub(_QUOTED, _original, text)


def _original(match: re.Match[str]) -> str:
    form = match.group()
    if form in _LONG:
        return _LONG[form]
    number = int(form[2:], 16)
    if number > 0x10FFFF:
        return form
    return chr(_BYTE + number if form[1] == "x" and number >= 0x80 else number)
