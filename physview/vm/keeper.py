# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps a VM for many commands: passes messages between the guest and the commands' clients.

A VM that was started by name has two processes besides QEMU. The keeper starts QEMU, which the
kernel kills when the keeper ends. The keeper's parent waits for it, and then removes the files of
`running`, also if the keeper is killed.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NoReturn

from physview.errors import PhysviewError
from physview.runtime.version import __version__
from physview.text.quoting import printable
from physview.vm import failures, messages, running
from physview.vm.connection import Connection
from physview.vm.failures import VmLost, VmUnusable
from physview.vm.runner import ForeignRoot, Plan, boot, foreign_request
from physview.vm.session import Session

MOST_UNSENT = 8 * messages.WINDOW
"""A client is dropped if more bytes than these wait for it: its stream was not held back."""

_SECONDS_TO_SAY_BYE = 2.0
_FORWARDED = (
    *(messages.STDIN, messages.END_OF_STDIN, messages.RESIZE, messages.SIGNAL, messages.TAKEN),
)
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Keeper:
    """The loop of the process that keeps a VM.

    Args:
        session: The VM, which is set up.
        listener: Where clients connect.
        owner: A pidfd of the process with which the VM ends; None if there is none.
        idle_seconds: The VM ends if no command has run for so long.
        description: What `list` shows of the VM.
        foreign: The VM's root folder, if it is of another architecture.
    """

    def __init__(
        self,
        session: Session,
        listener: socket.socket,
        owner: int | None,
        idle_seconds: float,
        description: dict[str, Any],
        foreign: ForeignRoot | None = None,
    ) -> None:
        self._session = session
        self._foreign = foreign
        self._listener = listener
        self._owner = owner
        self._idle_seconds = idle_seconds
        self._idle_since = time.monotonic()
        self._description = description
        self._clients: dict[Connection, int] = {}
        self._streams: dict[int, Connection] = {}
        self._titles: dict[int, str] = {}
        self._last_stream = 0
        self._why_stopped = ""

    def serve(self) -> None:
        """Serve the clients until the VM ends, and tell them why it ended."""
        what = f"the VM {self._description['name']} has ended"
        try:
            while not self._why_stopped:
                self._step()
            error: PhysviewError = VmLost(what, self._why_stopped)
        except EOFError:
            error = self._session.ended_error()
        content = json.dumps(failures.as_document(error)).encode()
        for client in self._streams.values():
            client.send(messages.LOST, 0, content)
        deadline = time.monotonic() + _SECONDS_TO_SAY_BYE
        while waiting := [client for client in self._clients if client.nr_unsent]:
            if not select.select([], waiting, [], max(0, deadline - time.monotonic()))[1]:
                break
            for client in waiting:
                client.flush()

    def _step(self) -> None:
        others = [self._listener, *([] if self._owner is None else [self._owner])]
        deadline = None if self._streams else self._idle_since + self._idle_seconds
        try:
            received, ready = self._session.wait(
                deadline,
                [*others, *self._clients],
                [client for client in self._clients if client.nr_unsent],
            )
        except TimeoutError:
            self._why_stopped = f"no command ran in it for {self._idle_seconds / 60:.0f} min"
            return
        for kind, stream, content in received:
            self._pass_to_client(kind, stream, content)
        if self._owner in ready:
            self._why_stopped = "the session in which it was started has ended"
        for client in ready & set(self._clients):
            client.flush()
            self._hear(client)
        if self._listener in ready:
            self._accept()

    def _accept(self) -> None:
        try:
            connected = self._listener.accept()[0]
        except OSError:  # the client has gone, or no descriptor is free
            return
        option = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(option)[1] not in (0, os.geteuid()):
            connected.close()
            return
        self._clients[Connection(connected)] = 0

    def _hear(self, client: Connection) -> None:
        try:
            for kind, _, content in client.receive():
                if kind == messages.ASK:
                    self._answer(client, json.loads(content))
                elif kind in _FORWARDED and self._clients[client]:
                    self._session.send(kind, self._clients[client], content)
        except (EOFError, ValueError, KeyError, TypeError):  # it has gone, or talks nonsense
            self._drop(client)

    def _answer(self, client: Connection, asked: dict[str, Any]) -> None:
        what = asked["do"]
        if what == "run" and asked["version"] != __version__:
            why = f"physview {asked['version']} cannot use a VM of physview {__version__}"
            error = VmUnusable("the command was not run", why, "stop the VM, and start it again")
            client.send(messages.LOST, 0, json.dumps(failures.as_document(error)).encode())
        elif what == "run":
            self._run(client, asked["request"])
        elif what == "stop":
            self._why_stopped = "it was stopped"
        elif what == "describe":
            now = {"commands": [*self._titles.values()]}
            client.send(messages.ANSWER, 0, json.dumps(self._description | now).encode())

    def _run(self, client: Connection, request: dict[str, Any]) -> None:
        title = " ".join(map(printable, request["command"]))
        if self._foreign:
            request = foreign_request(request, self._foreign)
        content = marshal.dumps(request, messages.MARSHAL_VERSION)
        self._last_stream += 1
        stream = self._clients[client] = self._last_stream
        self._streams[stream] = client
        self._titles[stream] = title
        self._session.send(messages.RUN, stream, content)

    def _pass_to_client(self, kind: int, stream: int, content: bytes) -> None:
        client = self._streams.get(stream)
        if client is None:
            return
        client.send(kind, stream, content)
        if kind in (messages.EXIT, messages.REFUSED):
            self._end_stream(client)
        elif client.nr_unsent > MOST_UNSENT:
            self._drop(client)

    def _drop(self, client: Connection) -> None:
        if stream := self._clients[client]:
            self._session.send(messages.HANG_UP, stream)
            self._end_stream(client)
        del self._clients[client]
        client.close()

    def _end_stream(self, client: Connection) -> None:
        stream, self._clients[client] = self._clients[client], 0
        del self._streams[stream], self._titles[stream]
        self._idle_since = time.monotonic()


def start(
    name: str,
    planned: Plan,
    description: dict[str, Any],
    *,
    owner: int | None,
    idle_seconds: float,
    boot_timeout: float | None = None,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Start a VM that runs on when this process ends. To be called in a process with one thread.

    Args:
        name: The VM's name.
        planned: The VM.
        description: What `list` shows of it; the rest is added.
        owner: The process with which the VM ends; None if there is none.
        idle_seconds: The VM ends if no command has run for so long.
        boot_timeout, say: As for `boot()`.

    Returns:
        The whole description.

    Raises:
        PhysviewError: The name is taken, or the VM did not boot.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(running.opened_folder())
        lock = running.claim(folder, name)
        stack.callback(os.close, lock)
        listener = stack.enter_context(running.listen(folder, name))
        owner_fd = None if owner is None else os.pidfd_open(owner)
        if owner_fd is not None:
            stack.callback(os.close, owner_fd)
        report, told = os.pipe()
        stack.callback(os.close, report)
        if os.fork() == 0:
            keep = {folder, lock, listener.fileno(), told, *([] if owner is None else [owner_fd])}
            _wait_for_keeper(
                keep, told, folder, name,
                lambda: _keep(
                    planned, told, listener, owner_fd, idle_seconds, boot_timeout, description
                ),
            )  # fmt: skip
        os.close(told)
        listener.close()
        return _follow(report, say)


def _follow(report: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Follow what the keeper reports until the VM runs."""
    keeper = 0
    try:
        with open(report, "rb", closefd=False) as lines:
            for line in lines:
                told = json.loads(line)
                if "pid" in told:
                    keeper = told["pid"]
                elif "say" in told:
                    say(told["say"])
                elif "error" in told:
                    raise failures.from_document(told["error"])
                else:
                    description: dict[str, Any] = told["runs"]
                    return description
    except KeyboardInterrupt:
        if keeper:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGTERM)
        raise
    raise VmLost("the VM did not start", "its keeper was killed")


def _wait_for_keeper(
    kept_fds: set[Any], told: int, folder: int, name: str, keep: Callable[[], None]
) -> NoReturn:
    """Start the keeper, wait for its end, and remove its files. In a process of its own."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in kept_fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        parent = os.getpid()
        keeper = os.fork()
        if keeper == 0:
            signal.signal(signal.SIGTERM, lambda number, frame: os._exit(1))
            keep()
            code = 0
            if os.getppid() != parent:  # it was killed
                running.remove(folder, name)
        else:
            os.close(told)
            os.waitpid(keeper, 0)
            running.remove(folder, name)
    finally:
        os._exit(code)


def _keep(
    planned: Plan,
    told: int,
    listener: socket.socket,
    owner: int | None,
    idle_seconds: float,
    boot_timeout: float | None,
    description: dict[str, Any],
) -> None:
    """Boot the VM and keep it. In the keeper's process."""

    def tell(**what: Any) -> None:
        os.write(told, json.dumps(what).encode() + b"\n")

    def use(session: Session) -> None:
        now = {
            "pid": os.getpid(),
            "accelerator": session.accelerator,
            "boot_seconds": round(session.boot_seconds, 1),
            "started": time.time(),
        }
        session.was_used = True  # a VM that is lost now is not booted again
        tell(runs=description | now)
        os.close(told)
        told_of = description | now
        Keeper(session, listener, owner, idle_seconds, told_of, planned.foreign).serve()

    tell(pid=os.getpid())
    try:
        boot(planned, use, boot_timeout=boot_timeout, say=lambda message: tell(say=message))
    except PhysviewError as error:
        tell(error=failures.as_document(error))
