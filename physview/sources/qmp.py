# SPDX-License-Identifier: GPL-2.0-or-later
"""Talks to a running QEMU through its QMP socket (QEMU Machine Protocol).

Who listens at the socket may be anybody, and may answer anything. So each answer has a limit of
size and of time, and a type that is checked. Its text is quoted where it is printed.

Source: docs/interop/qmp-spec.rst of QEMU
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections import deque
from typing import Any

from physview.errors import PhysviewError, Unsupported, of_path
from physview.files.descriptor import Closable

MAX_ANSWER = 4 << 20
"""The most bytes of an answer, with the events before it. A memory map has some 100 KiB."""
TIMEOUT = 10.0
"""The longest time for an answer, in seconds."""
MAX_QUOTED = 200
"""The most characters of an answer that an error quotes."""

_CHUNK = 1 << 16
_UCRED = struct.Struct("=iII")  # struct ucred, include/linux/socket.h: pid, uid, gid


class Qmp(Closable):
    """A connection to QEMU's monitor. A context manager.

    Args:
        path: The socket's path, for messages; and to connect to, without `connected`.
        connected: A socket that is connected already, with SO_PASSCRED set; it is closed at the
            end.
        timeout: The longest time for one answer, in seconds.

    Attributes:
        pid: The process that answers, as this pid namespace sees it; 0 if it does not see it.
        version: QEMU's version, such as "7.2.22"; "" if the greeting has none.

    Raises:
        AccessDenied: This user may not connect to the socket.
        PhysviewError: Nobody listens, or who listens does not speak QMP.
    """

    def __init__(
        self, path: str, connected: socket.socket | None = None, *, timeout: float = TIMEOUT
    ) -> None:
        self.pid = 0
        self._path = path
        self._timeout = timeout
        self._lines: deque[bytes] = deque()
        self._partial = b""
        self._socket = connected or self._connect()
        try:
            greeting, _ = self._next_message(time.monotonic() + timeout, MAX_ANSWER)
            if "QMP" not in greeting:
                raise self._error("it sends no greeting of QMP", "give QEMU's -qmp socket")
            self.version = _version(greeting["QMP"])
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            # The kernel then says with each answer who wrote it. SO_PEERCRED tells who made the
            # socket: with libvirt that is libvirtd, which gives QEMU a socket that listens already.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            connection.settimeout(self._timeout)
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise self._why_not_connected(error) from None
        return connection

    def _why_not_connected(self, error: OSError) -> PhysviewError:
        if isinstance(error, PermissionError):
            return of_path(self._what, error, self._path)
        if isinstance(error, ConnectionRefusedError):
            if os.path.exists(self._path) and not stat.S_ISSOCK(os.stat(self._path).st_mode):
                return self._error("it is no socket", "give the path of QEMU's -qmp socket")
            return self._error("no process listens there", "start QEMU with -qmp unix:PATH,server")
        if isinstance(error, TimeoutError | BlockingIOError):
            return self._silent()
        # An error of Python itself, such as "AF_UNIX path too long", has no strerror.
        return self._error(error.strerror or str(error), "give the path of QEMU's -qmp socket")

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        self._socket.close()

    def execute(self, command: str, **arguments: str) -> Any:
        """Run a command of QMP.

        Returns:
            The answer: JSON of any type.

        Raises:
            Unsupported: QEMU refuses the command.
            PhysviewError: There is no answer in time, or it is not valid.
        """
        deadline = time.monotonic() + self._timeout
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._broken(error) from None
        room = MAX_ANSWER
        while True:
            message, size = self._next_message(deadline, room)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise Unsupported(f"QEMU refuses {command}", _description(message["error"]))
            room -= size  # an event, or the greeting of a QEMU before this one

    def monitor(self, line: str) -> str:
        """Run a command of QEMU's human monitor, and return what it prints.

        Raises:
            Unsupported: QEMU refuses the command.
            PhysviewError: There is no answer in time, or it is not valid.
        """
        answer = self.execute("human-monitor-command", **{"command-line": line})
        if not isinstance(answer, str):
            raise self._error(f"its answer to '{line}' is no text")
        return answer

    def _next_message(self, deadline: float, room: int) -> tuple[dict[str, Any], int]:
        """Read one message, a line with a JSON object. Return it, and its size in bytes."""
        while not self._lines:
            if len(self._partial) > room:
                raise self._error(f"its answer has more than {MAX_ANSWER >> 20} MiB")
            *whole, last = self._receive(deadline).split(b"\n")
            if whole:
                self._lines.extend((self._partial + whole[0], *whole[1:]))
                self._partial = b""
            self._partial += last
        line = self._lines.popleft()
        if len(line) > room:
            raise self._error(f"it sends more than {MAX_ANSWER >> 20} MiB and no answer")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._error("it sends something else than QMP", "give QEMU's -qmp socket")
        return message, len(line)

    def _receive(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._silent()
        try:
            self._socket.settimeout(left)
            data, ancillary, _, _ = self._socket.recvmsg(_CHUNK, socket.CMSG_SPACE(_UCRED.size))
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise self._broken(error) from None
        if not data:
            raise self._error("it closed the connection")
        for level, kind, content in ancillary:
            is_pid = (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
            if is_pid and len(content) >= _UCRED.size:
                self.pid = _UCRED.unpack(content[: _UCRED.size])[0]
        return data

    @property
    def _what(self) -> str:
        return f"cannot ask QEMU at {self._path}"

    def _error(self, why: str, remedy: str = "") -> PhysviewError:
        return PhysviewError(self._what, why, remedy, path=self._path)

    def _silent(self) -> PhysviewError:
        return self._error(
            f"it does not answer within {self._timeout:g} s",
            "QEMU serves one connection at a time: close the other one (libvirt's, for example), or"
            " give QEMU another socket with -qmp",
        )

    def _broken(self, error: OSError) -> PhysviewError:
        if isinstance(error, TimeoutError):
            return self._silent()
        return self._error(error.strerror or str(error))


def shortened(text: str) -> str:
    """Cut an answer that is to be quoted in a message."""
    text = text.strip("\r\n ")
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def _version(greeting: Any) -> str:
    """The version in a greeting: {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}}}."""
    for name in ("version", "qemu"):
        greeting = greeting.get(name) if isinstance(greeting, dict) else None
    if not isinstance(greeting, dict):
        return ""
    numbers = [greeting.get(name) for name in ("major", "minor", "micro")]
    is_valid = all(isinstance(number, int) and 0 <= number < 1 << 16 for number in numbers)
    return ".".join(map(str, numbers)) if is_valid else ""


def _description(error: Any) -> str:
    description = error.get("desc") if isinstance(error, dict) else None
    return shortened(description) if isinstance(description, str) else "it does not say why"
