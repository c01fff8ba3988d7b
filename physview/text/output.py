# SPDX-License-Identifier: GPL-2.0-or-later
"""Where all goes that is printed: stdout and stderr, which stop no name from outside, made safe.

Inside `safe_streams()` a control character, or another that is not printable, leaves as `quoting`
shows it, and what the encoding lacks as something readable: nothing that is printed can move the
cursor, colour a line or end us. Reporters quote names where they become a cell or a part of a line
(there a newline, too, has to be quoted); this is for what one of them forgets, and for encodings.

Bytes are checked, a buffer of them at a time, so that it costs nothing by line. What styles a
terminal on purpose goes past the check by `write_styled()`.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO

from physview.text.quoting import quote_letter

LACKING = "physview.readable"
"""The error handler of our streams: what it puts for characters that the encoding lacks."""

NR_HELD = 256

_READABLE = {
    "…": "...", "→": "->", "←": "<-", "↑": "^", "↓": "v", "·": "-", "�": "?",
    "─": "-", "━": "-", "│": "|", "└": "`", "├": "|",
    "▁": ".", "▂": ":", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "#",
    "█": "@",
}  # fmt: skip
# What may leave as it is without a closer look.
_PLAIN = bytes([*range(0x20, 0x7F), 0x09, 0x0A])
# These shift between character sets by sequences of their own: a buffer alone cannot be read.
_SHIFTING = ("iso2022", "hz", "utf7")


def _put_readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_READABLE.get(each) or quote_letter(each) for each in lacking), error.end


codecs.register_error(LACKING, _put_readable)


class _Filter(io.BufferedIOBase):
    """The bytes of a text stream on their way out.

    Args:
        sink: Where they go.
        encoding: What they are: text in it, in whole characters.
        before: The stream that wrote there before; it would close the sink if nobody kept it.
    """

    closed = False  # of the class: each line that is written asks

    def __init__(self, sink: Any, encoding: str, before: TextIO) -> None:
        self.sink = sink
        self._encoding = encoding
        self._before = before

    def write(self, data: Any) -> int:
        if data.translate(None, _PLAIN):
            text = data.decode(self._encoding, "surrogateescape")
            quoted = quote_controls(text)
            if quoted is not text:
                self._write_all(quoted.encode(self._encoding, LACKING))
                return len(data)
        self._write_all(data)
        return len(data)

    def _write_all(self, data: bytes) -> None:
        nr_written = self.sink.write(data)
        while nr_written is not None and nr_written < len(data):  # without a buffer, python -u
            data = data[nr_written:]
            nr_written = self.sink.write(data)

    def flush(self) -> None:
        self.sink.flush()

    def close(self) -> None:
        """Leave the sink open: it is not ours."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self.sink.isatty())

    def fileno(self) -> int:
        return int(self.sink.fileno())


class _TextSink:
    """Takes bytes for a stream that has text only, such as io.StringIO."""

    def __init__(self, stream: TextIO, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding

    def write(self, data: bytes) -> int:
        self._stream.write(data.decode(self._encoding))
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def quote_controls(text: str) -> str:
    r"""Quote what is not printable in lines of text.

    >>> print(quote_controls("a\n\x1b[31mb"))
    a
    \x1b[31mb
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" else quote_letter(each) for each in text
    )


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make stdout and stderr safe.

    They stay so where an exception leaves: the interpreter prints its traceback.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_safe(stream) for stream in before)
    try:
        yield
    except SystemExit:
        _put_back(before)
        raise
    _put_back(before)


def _put_back(before: tuple[TextIO, TextIO]) -> None:
    for safe, stream in zip((sys.stdout, sys.stderr), before, strict=True):
        if safe is not stream:
            with suppress(OSError, ValueError):
                safe.detach()  # type: ignore[union-attr] # flushes; what fails was told before
    sys.stdout, sys.stderr = before


def _safe(stream: TextIO) -> TextIO:
    """A stream that writes to the same place, as bytes that are checked."""
    if stream is None or isinstance(getattr(stream, "buffer", None), _Filter):
        return stream
    encoding = _checkable(stream.encoding or "utf-8")
    with suppress(OSError, ValueError):
        stream.flush()
    sink = getattr(stream, "buffer", None) or _TextSink(stream, encoding)
    checked: Any = _Filter(sink, encoding, stream)
    return io.TextIOWrapper(
        checked,
        encoding,
        LACKING,
        newline="\n",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _checkable(encoding: str) -> str:
    """The encoding, or ASCII where single buffers of it cannot be checked."""
    name = encoding.lower().replace("-", "").replace("_", "")
    text = _PLAIN.decode()
    if name.startswith(_SHIFTING) or text.encode(encoding, "replace") != _PLAIN:
        return "ascii"
    return encoding


def write_styled(stream: TextIO, text: str) -> None:
    """Write text with the escape sequences of our own styling: names in it are quoted already."""
    stream.flush()
    _write_past(stream, text)


def _write_past(stream: TextIO, text: str) -> None:
    buffer = getattr(stream, "buffer", None)
    if isinstance(buffer, _Filter):
        buffer._write_all(text.encode(stream.encoding, LACKING))
    else:
        stream.write(text)


class StyledStream:
    """A stream for what draws on a terminal, such as rich's Console, which quotes names itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        write_styled(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, many at a time: there can be millions of them.

    Where finding the next one fails, those before it are written.
    """
    held: list[str] = []
    try:
        for line in lines:
            held.append(line)
            if len(held) == NR_HELD:
                text = "".join(held)
                held.clear()
                sys.stdout.write(text)
    finally:
        sys.stdout.write("".join(held))


def unfiltered(stream: TextIO) -> BinaryIO:
    """The bytes of a stream as they are: for the output of a command that the user gave us."""
    buffer: Any = stream.buffer
    sink: BinaryIO = buffer.sink if isinstance(buffer, _Filter) else buffer
    return sink


def ellipsis(stream: TextIO | None = None) -> str:
    """What stands for the rest of a line that is cut off: as wide as it will be written."""
    encoding = (stream or sys.stdout).encoding or "ascii"
    return "…".encode(encoding, LACKING).decode(encoding)
