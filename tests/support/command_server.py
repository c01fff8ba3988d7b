# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs physview's commands in forks of one process, where a new interpreter takes seconds.

In an emulated VM, Python and its modules take up to a hundred times as long to start as on the
machine. Each command is still a process of its own, with its own user, files and exit code. Only
the start is left out: the interpreter, and the imports, which a process of this file has done. The
tests of the start itself run on the machine, and others start interpreters in the VM on their own.

PHYSVIEW_TEST_FORKS=1 turns this on; guests.py sets it for the guests.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from users import AS_NOBODY

VARIABLE = "PHYSVIEW_TEST_FORKS"
NOBODY = 65534
_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h


class CommandServer:
    """A process that forks for each command. It ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd="/",
                # A command sets these before it imports what they are for.
                env=os.environ
                | {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
            )

    def stop(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait()

    def can_run(self, prefix: Sequence[str], options: dict) -> bool:
        """Whether a command can run in a fork: with captured output, as root or as nobody."""
        own = {"capture_output": True} | {
            name: options[name] for name in ("text", "timeout", "cwd")
        }
        return options == own and list(prefix) in ([], AS_NOBODY)

    def run(
        self, args: Sequence[str], *, prefix: Sequence[str], options: dict
    ) -> subprocess.CompletedProcess:
        """Run a command as subprocess.run() does."""
        text, timeout = options["text"], options["timeout"]
        pipes = [os.pipe(), os.pipe()]
        with self._lock:
            request = {
                "args": args,
                "cwd": str(options["cwd"]),
                "nobody": list(prefix) == AS_NOBODY,
            }
            fds = [0, *(write for _, write in pipes)]
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            for _, write in pipes:
                os.close(write)
            pid = json.loads(self._socket.recv(100))
            command = [*prefix, "physview", *args]
            output = _read_all([read for read, _ in pipes], pid, command, timeout)
            code = json.loads(self._socket.recv(100))
        stdout, stderr = (each.decode() if text else each for each in output)
        return subprocess.CompletedProcess(command, code, stdout, stderr)


_running: list[CommandServer] = []


def server() -> CommandServer | None:
    """The server of this process, which is started if it has none; None outside of guests."""
    if not _running and os.environ.get(VARIABLE):
        _running.append(CommandServer())
    return _running[0] if _running else None


def stop() -> None:
    """Stop the server until the next command: it maps physview's library, which a lab evicts."""
    while _running:
        _running.pop().stop()


def _read_all(fds: list[int], pid: int, command: list[str], timeout: float) -> list[bytes]:
    """Read pipes to their ends. Kill the process if it takes too long."""
    deadline = time.monotonic() + timeout
    data = dict.fromkeys(fds, b"")
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            if not ready and time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout)
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                data[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [data[fd] for fd in fds]


def serve(connection: socket.socket) -> None:
    """Fork for each request, until the other end closes the connection."""
    import_module("physview.commands")
    while True:
        message, fds, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        if not message:
            return
        learnt, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            connection.close()
            os.close(learnt)
            _run_in_child(json.loads(message), fds, tell)
        for fd in (*fds, tell):
            os.close(fd)
        connection.send(json.dumps(pid).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.send(json.dumps(code).encode())
        # What this command has imported, the next need not import.
        with open(learnt, encoding="ascii") as names:
            for name in names.read().split("\n"):
                with suppress(Exception):
                    import_module(name)


def _run_in_child(request: dict, fds: list[int], tell: int) -> None:
    """Run `python -m physview` in this process, and end it."""
    code = 1
    before = set(sys.modules)
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.chdir(request["cwd"])
        if request["nobody"]:
            _become_nobody()
        sys.argv[1:] = request["args"]
        runpy.run_module("physview", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            code = ended.code or 0
        else:
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            os.write(tell, "\n".join(sorted(set(sys.modules) - before)).encode("ascii")[:60000])
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _become_nobody() -> None:
    """Do as setpriv does."""
    import ctypes

    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # The files of /proc/self stay root's until the next execve() otherwise, which setpriv does.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
