# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes untrusted names, such as process names and paths, so that they fit into one line.

The quoted form is that of $'…' in a shell:

- An ASCII control character, and a byte that is not valid UTF-8, becomes \\xNN (or \\n, \\r, \\t).
- Any other character that is not printable becomes \\uNNNN or \\UNNNNNNNN. Examples are the
  characters that change the direction of writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_LETTER_OF_SHORT = {form: letter for letter, form in _SHORT.items()}
# os.fsdecode() maps a byte B that is not valid UTF-8 to the lone surrogate 0xDC00 + B.
_SURROGATE_BASE = 0xDC00
_QUOTED = r"\\(?:[nrt\\]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"


def printable(name: str) -> str:
    r"""Quote a name for a line of text. Printable characters stay, also backslashes.

    >>> print(printable("a b"), printable("a\nb"), printable("\x1b[31m \udcff \u202e"))
    a b a\nb \x1b[31m \xff \u202e
    """
    return name if name.isprintable() else "".join(map(_visible, name))


def quote_letter(letter: str) -> str:
    r"""Quote one character in the form of this module, even if it is printable.

    >>> print(quote_letter("\x7f"), quote_letter("\udc80"), quote_letter("\x85"))
    \x7f \x80 \u0085
    """
    number = ord(letter)
    if letter in _SHORT:
        return _SHORT[letter]
    if number < 0x80:
        return f"\\x{number:02x}"
    if _SURROGATE_BASE + 0x80 <= number <= _SURROGATE_BASE + 0xFF:
        return f"\\x{number - _SURROGATE_BASE:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else quote_letter(letter)


def escaped(name: str, encoding: str = "utf-8") -> str:
    r"""Quote a name reversibly: backslashes are doubled, so `unescaped()` restores the name.

    Args:
        name: The name.
        encoding: The encoding of the output; characters that it lacks are quoted, too.

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
    r"""Restore the name that `escaped()` quoted.

    >>> unescaped("a\\\\b\\n\\xff") == "a\\b\n\udcff"
    True
    """
    import re

    return re.sub(_QUOTED, _original, text)


def _original(match: re.Match[str]) -> str:
    form = match.group()
    if form in _LETTER_OF_SHORT:
        return _LETTER_OF_SHORT[form]
    number = int(form[2:], 16)
    if number > 0x10FFFF:
        return form
    return chr(_SURROGATE_BASE + number if form[1] == "x" and number >= 0x80 else number)
