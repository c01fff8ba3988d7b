# SPDX-License-Identifier: GPL-2.0-or-later
"""A connected socket that carries messages, and never waits."""

from __future__ import annotations

import socket

from physview.vm import messages

CHUNK_SIZE = 1 << 18


class Connection:
    """One end of a connection for messages.

    Args:
        connected: The socket. The connection closes it.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setblocking(False)
        self._received = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """The descriptor of the socket, for select()."""
        return self.socket.fileno()

    @property
    def nr_unsent(self) -> int:
        """The number of bytes that wait until the other end has room for them."""
        return len(self._unsent)

    def send(self, kind: int, stream: int = 0, content: bytes = b"") -> None:
        """Send a message, or what the other end has room for. `flush()` sends the rest."""
        self._unsent += messages.pack(kind, stream, content)
        self.flush()

    def flush(self) -> None:
        """Send what the other end has room for. An end of the connection shows in `receive()`."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent[:CHUNK_SIZE])]
        except BlockingIOError:
            pass
        except OSError:  # the other end has gone
            self._unsent.clear()

    def receive(self) -> list[messages.Message]:
        """Read once, and return the messages that are complete.

        Raises:
            EOFError: The other end has closed the connection, or was killed.
        """
        try:
            data = self.socket.recv(CHUNK_SIZE)
        except BlockingIOError:
            return []
        except OSError:  # a reset: the other end was killed with unread data
            data = b""
        if not data:
            raise EOFError
        self._received += data
        return messages.take_whole(self._received)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
