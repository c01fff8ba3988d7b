# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages between the guest and the host, and between a VM's keeper and its clients.

A message is its kind, its stream, the length of its content in bytes, and the content. A stream is
a number that the host chooses, one for each command. STDIN, STDOUT and STDERR are sent only while
the receiver has room, so that no command holds up the others: each side sends at most WINDOW bytes
of a stream that the other side has not yet confirmed by TAKEN.

The guest imports this file. So the file imports no other module of the package.
"""

from __future__ import annotations

import struct

READY, PREPARED, STDOUT, STDERR, EXIT, REFUSED = range(6)
"""From the guest: it runs; it is set up; output; the command's exit code, or why there is none."""

PREPARE, RUN, STDIN, END_OF_STDIN, RESIZE, SIGNAL, HANG_UP = range(6, 13)
"""From the host: set the guest up; start a command; input, and its end; the terminal's new size; a
signal for the command; nobody waits for the command any more."""

TAKEN = 13
"""From both: the receiver took so many bytes of the stream."""

ASK, ANSWER, LOST = range(14, 17)
"""Between a keeper and a client, in JSON: what the client wants; the answer; why the VM ended."""

HEAD = struct.Struct("<BII")
"""The kind, the stream, and the length of the content."""

NUMBER = struct.Struct("<I")
"""The content of EXIT, SIGNAL and TAKEN."""

SIZE = struct.Struct("<HH")
"""The content of RESIZE: lines and columns."""

WINDOW = 1 << 18

MARSHAL_VERSION = 4
"""The format of requests. A guest of another architecture may have an older Python."""

Message = tuple[int, int, bytes]
"""The kind, the stream and the content."""


def pack(kind: int, stream: int = 0, content: bytes = b"") -> bytes:
    """Return the bytes of a message."""
    return HEAD.pack(kind, stream, len(content)) + content


def take_whole(received: bytearray) -> list[Message]:
    """Remove the complete messages from the received bytes, and return them.

    >>> received = bytearray(pack(EXIT, 7, b"four") + b"rest")
    >>> take_whole(received), bytes(received)
    ([(4, 7, b'four')], b'rest')
    """
    messages, at = [], 0
    while len(received) - at >= HEAD.size:
        kind, stream, size = HEAD.unpack_from(received, at)
        end = at + HEAD.size + size
        if len(received) < end:
            break
        messages.append((kind, stream, bytes(received[end - size : end])))
        at = end
    del received[:at]
    return messages
