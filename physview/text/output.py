# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes stdout and stderr safe for untrusted names: control characters are quoted on the way out.

Inside `safe_streams()` every character that is not printable is written in the form of `quoting`.
Every character that the stream's encoding lacks is written as a readable substitute. So no printed
name can move the cursor, colour a line, or end physview by an encoding error.

Reporters quote a name themselves when they put it into a table cell or a line, because there a
newline must be quoted, too. This module is the second line of defence, if a reporter forgets it.

The check works on whole buffers of bytes, so it costs nothing per line. Text that styles a terminal
on purpose bypasses the check: `write_styled()`.
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
"""Name of the codec error handler that replaces characters which the encoding lacks."""

LINES_PER_WRITE = 256

_READABLE = {
    "…": "...", "→": "->", "←": "<-", "↑": "^", "↓": "v", "·": "-", "�": "?",
    "─": "-", "━": "-", "│": "|", "└": "`", "├": "|",
    "▁": ".", "▂": ":", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "#",
    "█": "@",
}  # fmt: skip
# Bytes that are always safe: a buffer of only these is not decoded.
_PLAIN = bytes([*range(0x20, 0x7F), 0x09, 0x0A])
# These encodings switch between character sets. The meaning of a buffer depends on those before it.
_STATEFUL_ENCODINGS = ("iso2022", "hz", "utf7")


def _put_readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_READABLE.get(each) or quote_letter(each) for each in lacking), error.end


codecs.register_error(LACKING, _put_readable)


class _QuotingBuffer(io.BufferedIOBase):
    """The binary buffer below a text stream; it quotes what is not printable.

    Args:
        sink: Where the bytes go.
        encoding: The encoding of the bytes. Each write holds whole characters.
        before: The stream that used the sink before. It is kept alive here, because its destructor
            would close the sink.
    """

    closed = False  # an attribute of the class, because every written line reads it

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
        while nr_written is not None and nr_written < len(data):  # an unbuffered sink: python -u
            data = data[nr_written:]
            nr_written = self.sink.write(data)

    def flush(self) -> None:
        self.sink.flush()

    def close(self) -> None:
        """Do nothing: the sink belongs to the original stream."""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self.sink.isatty())

    def fileno(self) -> int:
        return int(self.sink.fileno())


class _TextSink:
    """A binary sink for a stream that accepts only text, such as io.StringIO."""

    def __init__(self, stream: TextIO, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding

    def write(self, data: bytes) -> int:
        self._stream.write(data.decode(self._encoding))
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def quote_controls(text: str) -> str:
    r"""Quote the characters that are not printable; "\n" and "\t" stay.

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
    """Make stdout and stderr safe inside a `with` block.

    They stay safe if an exception leaves the block, because the interpreter then prints a
    traceback, which may contain names. SystemExit restores the original streams.
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
                # It flushes. A failed write was reported before.
                safe.detach()  # type: ignore[union-attr]
    sys.stdout, sys.stderr = before


def _safe(stream: TextIO) -> TextIO:
    """A stream that writes to the same place through `_QuotingBuffer`."""
    if stream is None or isinstance(getattr(stream, "buffer", None), _QuotingBuffer):
        return stream
    encoding = _checkable(stream.encoding or "utf-8")
    with suppress(OSError, ValueError):
        stream.flush()
    sink = getattr(stream, "buffer", None) or _TextSink(stream, encoding)
    checked: Any = _QuotingBuffer(sink, encoding, stream)
    return io.TextIOWrapper(
        checked,
        encoding,
        LACKING,
        newline="\n",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _checkable(encoding: str) -> str:
    """The encoding itself, or ASCII if single buffers in that encoding cannot be checked."""
    name = encoding.lower().replace("-", "").replace("_", "")
    text = _PLAIN.decode()
    if name.startswith(_STATEFUL_ENCODINGS) or text.encode(encoding, "replace") != _PLAIN:
        return "ascii"
    return encoding


def write_styled(stream: TextIO, text: str) -> None:
    """Write text that contains escape sequences of our own, without the check.

    Args:
        stream: A stream of `safe_streams()`, or any other.
        text: The text. The caller has quoted the names in it.
    """
    stream.flush()
    _write_unchecked(stream, text)


def _write_unchecked(stream: TextIO, text: str) -> None:
    buffer = getattr(stream, "buffer", None)
    if isinstance(buffer, _QuotingBuffer):
        buffer._write_all(text.encode(stream.encoding, LACKING))
    else:
        stream.write(text)


class StyledStream:
    """A stream that bypasses the check. It is for code that quotes names itself, such as rich."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        write_styled(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, LINES_PER_WRITE at a time: there can be millions of lines.

    If the iterator raises an exception, the lines before the exception are still written.
    """
    held: list[str] = []
    try:
        for line in lines:
            held.append(line)
            if len(held) == LINES_PER_WRITE:
                text = "".join(held)
                held.clear()
                sys.stdout.write(text)
    finally:
        sys.stdout.write("".join(held))


def unfiltered(stream: TextIO) -> BinaryIO:
    """The binary stream below the check, for the output of a command that the user chose."""
    buffer: Any = stream.buffer
    sink: BinaryIO = buffer.sink if isinstance(buffer, _QuotingBuffer) else buffer
    return sink


def exchange_sink(stream: TextIO, sink: Any) -> Any:
    """Let a stream of `safe_streams()` write its checked bytes to another place.

    Args:
        stream: sys.stdout or sys.stderr.
        sink: The new place. It has write(), flush(), isatty() and fileno().

    Returns:
        The place before.
    """
    buffer: Any = stream.buffer
    before, buffer.sink = buffer.sink, sink
    return before


def ellipsis(stream: TextIO | None = None) -> str:
    """The mark at the end of a truncated line: "…", or "..." if the encoding lacks "…"."""
    encoding = (stream or sys.stdout).encoding or "ascii"
    return "…".encode(encoding, LACKING).decode(encoding)
