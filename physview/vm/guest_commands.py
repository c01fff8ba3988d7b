# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that run in the guest, each with pipes or with a terminal of its own.

The guest imports this file. So the file imports few modules, as guest.py does.
"""

from __future__ import annotations

import os
import select
import struct

from physview.vm import messages

TYPE_CHECKING = False  # importing typing costs more than all the imports above
if TYPE_CHECKING:
    from typing import Any

CHUNK_SIZE = 1 << 15
MOST_AFTER_END = 1 << 20
"""The most bytes to read after a command's end. The rest is from processes that it left running."""

SIGPIPE, SIGXFSZ = 13, 25


class Command:
    """A command that runs, and its connections.

    Args:
        stream: The number of its stream.
        request: What to run: command, otherwise, env, cwd, terminal.

    Raises:
        OSError: The command cannot be started.
    """

    def __init__(self, stream: int, request: dict[str, Any]) -> None:
        self.stream = stream
        self.stdin = self.ended = -1
        self.room = messages.WINDOW  # how much the host can take
        self.stdin_data = bytearray()
        self.stdin_ends = False
        self.status: int | None = None
        self.nr_left = MOST_AFTER_END
        self.deadline = 0.0
        self.terminal = -1
        self.outputs: dict[int, int] = {}
        theirs: list[int] = []
        try:
            if request["terminal"]:
                self.terminal, files = open_terminal(request["terminal"], theirs)
                self.stdin, self.outputs = self.terminal, {self.terminal: messages.STDOUT}
            else:
                files, self.stdin = open_pipes(self.outputs, theirs)
            self.pid = start(request, files)
            self.ended = os.pidfd_open(self.pid)
        except OSError:
            self.close()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for fd in {self.stdin, *self.outputs}:
            os.set_blocking(fd, False)

    def close(self) -> None:
        """Close all connections. If the command has a terminal, the terminal hangs up."""
        for fd in {self.stdin, self.ended, *self.outputs} - {-1}:
            os.close(fd)
        self.outputs.clear()
        self.stdin = self.ended = self.terminal = -1

    def wanted(self) -> dict[int, int]:
        """What to wait for: events of poll() by descriptor."""
        events = {} if self.ended < 0 or self.status is not None else {self.ended: select.POLLIN}
        for fd in self.outputs:
            events[fd] = select.POLLIN if self.room else 0
        if self.stdin_data and self.stdin >= 0:
            events[self.stdin] = events.get(self.stdin, 0) | select.POLLOUT
        # poll() always reports a hang-up, and would not wait: leave out what has nothing to do.
        return {fd: wanted for fd, wanted in events.items() if wanted}

    def write_stdin(self) -> int:
        """Pass data on to the command; return how many bytes it took.

        If the command has closed its stdin, the data is dropped, and the host not asked for more.
        """
        nr_written = 0
        try:
            while self.stdin_data and self.stdin >= 0:
                size = os.write(self.stdin, self.stdin_data[:CHUNK_SIZE])
                del self.stdin_data[:size]
                nr_written += size
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, or EIO from a terminal that nobody has open
            self.stdin_data.clear()
            self.stdin_ends = True
        if self.stdin_ends and not self.stdin_data and self.stdin not in (-1, self.terminal):
            os.close(self.stdin)
            self.stdin = -1
        return nr_written

    def read(self, fd: int) -> bytes | None:
        """Read output. None if there is none now; b"" if there will be none."""
        try:
            return os.read(fd, min(CHUNK_SIZE, self.room))
        except BlockingIOError:
            return None
        except OSError:  # EIO: no process has the terminal open
            return b""

    def signal(self, number: int) -> None:
        """Send a signal to the command and what it started."""
        if self.status is None:  # else its number may be another's
            try:  # noqa: SIM105 - contextlib costs an import
                os.killpg(self.pid, number)
            except OSError:
                pass


def open_pipes(outputs: dict[int, int], theirs: list[int]) -> tuple[list[Any], int]:
    """Make the pipes of a command.

    Args:
        outputs: Gets this process's ends of stdout and stderr, with the kinds of messages.
        theirs: Gets the command's ends.

    Returns:
        The file actions for the command, and this process's end of stdin.
    """
    stdin, ours = os.pipe()
    theirs.append(stdin)
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    for number, kind in ((1, messages.STDOUT), (2, messages.STDERR)):
        output, end = os.pipe()
        outputs[output] = kind
        theirs.append(end)
        actions.append((os.POSIX_SPAWN_DUP2, end, number))
    return actions, ours


def open_terminal(wanted: dict[str, Any], theirs: list[int]) -> tuple[int, list[Any]]:
    """Make a terminal (a pty) with the size and the settings of the caller's.

    Returns:
        This process's end, and the file actions for the command. The first terminal that the leader
        of a session opens becomes the session's.
    """
    import fcntl
    import termios

    ours, end = os.openpty()
    theirs.append(end)
    # A pty is of the same kind as the caller's terminal, but not of the same speed.
    termios.tcsetattr(end, termios.TCSANOW, wanted["settings"])
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("<HHHH", *wanted["size"], 0, 0))
    opened = (os.POSIX_SPAWN_OPEN, 0, os.ttyname(end), os.O_RDWR, 0)
    return ours, [opened, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]


def start(request: dict[str, Any], files: list[Any]) -> int:
    """Start the command and return its pid.

    Raises:
        OSError: The file does not exist, or it is not executable.
    """
    os.environ["PATH"] = request["env"]["PATH"]  # posix_spawnp() searches this PATH

    def spawn(command: list[str]) -> int:
        return os.posix_spawnp(
            command[0],
            command,
            request["env"],
            file_actions=files,
            setsid=True,
            setsigdef=[SIGPIPE, SIGXFSZ],  # Python ignores these signals
        )

    try:
        return spawn(request["command"])
    except (FileNotFoundError, PermissionError) as error:
        if not request["otherwise"] or (isinstance(error, PermissionError) and _is_there(request)):
            raise
    return spawn(request["otherwise"])


def _is_there(request: dict[str, Any]) -> bool:
    """Whether a file has the command's name. A folder of PATH may be closed to this user."""
    name = request["command"][0]
    folders = ["/"] if "/" in name else request["env"].get("PATH", os.defpath).split(":")
    return any(os.path.exists(os.path.join(folder, name)) for folder in folders)


def resize(terminal: int, lines: int, columns: int) -> None:
    """Set the size of a terminal. Its processes get SIGWINCH."""
    import fcntl
    import termios

    if terminal >= 0:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("<HHHH", lines, columns, 0, 0))
