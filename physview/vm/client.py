# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands in a VM that was started by name, describes it, and stops it."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from physview.errors import PhysviewError
from physview.runtime.version import __version__
from physview.text import output
from physview.vm import failures, messages, running
from physview.vm.attachment import Attachment
from physview.vm.connection import Connection
from physview.vm.failures import VmLost
from physview.vm.runner import command_request, wait_for_command

_SECONDS_FOR_ANSWER = 5.0
_SECONDS_TO_END = 20.0


class KeeperLink:
    """The connection to the keeper of a VM. It has the methods of `Session` that a command needs.

    Args:
        connection: The connection.
        name: The VM's name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def ask(self, what: str, **more: Any) -> None:
        """Ask the keeper for something."""
        asked = {"do": what, "version": __version__, **more}
        self._connection.send(messages.ASK, 0, json.dumps(asked).encode())

    def start(self, request: dict[str, Any]) -> None:
        """Start a command."""
        self.ask("run", request=request)

    def send(self, kind: int, content: bytes = b"") -> None:
        """Send a message of the command's stream."""
        self._connection.send(kind, 0, content)

    def wait(
        self, deadline: float | None, readers: Collection[Any] = ()
    ) -> tuple[list[messages.Message], set[Any]]:
        """As `Session.wait()`.

        Raises:
            PhysviewError: The VM has ended, and the keeper has told why.
        """
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        writers = [self._connection] if self._connection.nr_unsent else []
        readable, writable, _ = select.select([self._connection, *readers], writers, [], left)
        if writable:
            self._connection.flush()
        received = self._connection.receive() if self._connection in readable else []
        for kind, _, content in received:
            if kind == messages.LOST:
                raise failures.from_document(json.loads(content))
        return received, set(readable) - {self._connection}

    def ended_error(self) -> PhysviewError:
        """Return the error for commands that had not ended when the keeper ended."""
        return VmLost(f"the VM {self._name} has ended", "its keeper was killed")


@contextmanager
def _link(folder: int, name: str) -> Iterator[KeeperLink]:
    connected = running.connect(folder, name)
    if connected is None:
        raise VmLost(f"the VM {name} has ended")
    connection = Connection(connected)
    try:
        yield KeeperLink(connection, name)
    finally:
        connection.close()


def execute(
    folder: int,
    name: str,
    command: Sequence[str],
    *,
    otherwise: Sequence[str] = (),
    timeout: float | None = None,
    stdin: int | None = None,
    is_terminal: bool = False,
) -> int:
    """Run a command in a VM, with this process's files; return its exit code.

    Args:
        folder: The folder of the VMs.
        name: The VM.
        command, otherwise, timeout, stdin, is_terminal: As for `run()`.

    Raises:
        KernelCrashed: The guest's kernel oopsed or panicked.
        VmLost: The VM has ended before the command.
        VmTimeout: The command took longer than its timeout.
        VmUnusable: The guest can't enter the folder.
    """
    with _link(folder, name) as link:
        attachment = Attachment(
            link.send,
            stdin,
            output.unfiltered(sys.stdout),
            output.unfiltered(sys.stderr),
            is_terminal=is_terminal,
            passes_signals_on=True,
        )
        return wait_for_command(link, attachment, command_request(command, otherwise), timeout)


def describe(folder: int, name: str) -> dict[str, Any] | None:
    """Return what the keeper of a VM says about it; None if it does not answer in time."""
    try:
        with _link(folder, name) as link:
            link.ask("describe")
            deadline = time.monotonic() + _SECONDS_FOR_ANSWER
            while True:
                for _, _, content in link.wait(deadline)[0]:
                    answer: dict[str, Any] = json.loads(content)
                    return answer
    except (VmLost, EOFError, TimeoutError):
        return None


def stop(folder: int, name: str) -> None:
    """Stop a VM, and wait until nothing is left of it.

    Raises:
        PhysviewError: It does not end.
    """
    try:
        with _link(folder, name) as link:
            link.ask("stop")
            deadline = time.monotonic() + _SECONDS_TO_END
            while True:
                link.wait(deadline)
    except (VmLost, EOFError, TimeoutError):
        pass
    if not running.wait_until_gone(folder, name, _SECONDS_TO_END):
        raise PhysviewError(f"the VM {name} does not end", "", "look for its processes with ps")
