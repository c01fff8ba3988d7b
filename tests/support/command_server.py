# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs physview's commands in forks of one process: a new interpreter takes most of their time.

In an emulated VM, Python and its modules take up to a hundred times as long to start as on the
machine, and there, too, they take longer than most commands. Each command is still a process of its
own, with its own user, files and exit code. Only the start is left out: the interpreter, and the
imports, which a process of this file has done. What tests the start itself asks the fixture
`physview` for a new interpreter; documented commands, and all that have an environment, an input or
limits of their own, start one, too.
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder

from users import AS_NOBODY

# Set in guests, by guests.py. The second has the folder of command_client.c's program `physview`.
VARIABLE = "PHYSVIEW_TEST_GUEST"
CLIENT_VARIABLE = "PHYSVIEW_TEST_CLIENT"
ADDRESS_VARIABLE = "PHYSVIEW_TEST_SERVER"  # for that client
NOBODY = 65534
# What these commands import takes as long as many a command.
HEAVY = dict.fromkeys((b"snapshot", b"diff", b"record"), "pyarrow.parquet") | {b"compare": "numpy"}
_PR_SET_DUMPABLE = 4  # include/uapi/linux/prctl.h


class CommandServer:
    """A process that forks for each command. It ends with this process."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="physview-commands-")  # of mode 0700
        self.address = f"{folder}/socket"
        self._life, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self.address)
            listener.listen()
            fds = [listener.fileno(), theirs.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, __file__, *map(str, fds)],
                pass_fds=fds,
                cwd="/",
                stdout=subprocess.DEVNULL,
            )
        self._environment = _environment()

    def can_run(self, prefix: Sequence[str], options: dict) -> bool:
        """Whether a command can run in a fork: with captured output, as root or as nobody."""
        return (
            set(options) == {"capture_output", "text", "timeout", "cwd"}
            and options["capture_output"] is True
            and list(prefix) in ([], AS_NOBODY)
            and self._environment == _environment()
        )

    def stop(self) -> None:
        """End the process."""
        self._life.close()
        self._process.wait()

    def run(
        self, args: Sequence[str], *, prefix: Sequence[str], options: dict
    ) -> subprocess.CompletedProcess:
        """Run a command as subprocess.run() does."""
        text, timeout = options["text"], options["timeout"]
        command = [*prefix, "physview", *args]
        user = b"nobody" if list(prefix) == AS_NOBODY else b""
        pipes = [os.pipe(), os.pipe()]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(self.address)
            words = [os.fsencode(options["cwd"]), user, str(len(args)).encode()]
            words += [os.fsencode(arg) for arg in args]
            words += [name + b"=" + value for name, value in os.environb.items()]
            fds = [0, *(write for _, write in pipes)]
            socket.send_fds(connection, [b"\0".join(words)], fds)
            for _, write in pipes:
                os.close(write)
            pid = int(connection.recv(100))
            output = _read_all([read for read, _ in pipes], pid, command, timeout)
            code = int(connection.recv(100))
        stdout, stderr = (_as_text(each) if text else each for each in output)
        return subprocess.CompletedProcess(command, code, stdout, stderr)


# pytest sets the first for each test. The others are set by commands, also by those that tests run
# in their own process.
NOT_COMPARED = ("PYTEST_CURRENT_TEST", "OPENBLAS_NUM_THREADS", "ARROW_DEFAULT_MEMORY_POOL")


def _environment() -> dict[str, str]:
    """The environment of commands, as far as a start of Python may depend on it."""
    return {name: value for name, value in os.environ.items() if name not in NOT_COMPARED}


def _as_text(output: bytes) -> str:
    """Decode output as subprocess does."""
    return output.decode().replace("\r\n", "\n").replace("\r", "\n")


class _Running:
    """The server of this process, if it has one."""

    server: CommandServer | None = None
    is_allowed = True


def server() -> CommandServer | None:
    """The server of this process, which is started if it has none. None if it may have none."""
    if _Running.server is None and _Running.is_allowed:
        _Running.server = CommandServer()
    return _Running.server


def stop() -> None:
    """Stop the server until the next command: it maps physview's library, which a lab evicts."""
    if _Running.server is not None:
        _Running.server.stop()
        _Running.server = None


def allow(is_allowed: bool) -> None:
    """Whether this process may have a server from now on."""
    _Running.is_allowed = is_allowed
    if not is_allowed:
        stop()


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


def prepare_for_forks() -> None:
    """Import what every command imports, as a command does."""
    # A command sets these before it imports what they are for.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import_module("physview.commands")
    leave_pandas_out()
    _settle()


class _WithoutPandas(MetaPathFinder):
    """Finds no pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def leave_pandas_out() -> None:
    """In a guest: pyarrow would import pandas, which takes seconds there. Nothing needs it."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, _WithoutPandas())


def tell_imports(fd: int) -> None:
    """In a fork: tell the process at the other end of a pipe what this one has imported."""
    names = sorted(name for name in sys.modules if name not in _imported)
    with suppress(OSError):
        os.write(fd, "\n".join(names).encode("ascii")[:60000])


def import_what_it_did(fd: int) -> None:
    """Import what a fork that has ended had imported: the next need not. Closes the pipe."""
    os.set_blocking(fd, False)  # processes that it left may have the other end
    with open(fd, "rb", buffering=0) as pipe:
        names = (pipe.read(1 << 16) or b"").decode("ascii").split("\n")
    for name in filter(None, names):
        with suppress(Exception):
            import_module(name)
    _settle()


_imported: set[str] = set()


def _settle() -> None:
    """Remember what is imported. A fork's garbage collection would copy the memory of objects."""
    _imported.update(sys.modules)
    gc.freeze()


def serve(listener: socket.socket, life: socket.socket) -> None:
    """Fork for each connection, until the other end closes `life`.

    A connection sends one message: the folder, the user, the number of arguments, the arguments and
    the environment, with a NUL between two of them; and three descriptors. It gets the number of
    the process, and when this has ended, its exit code, or minus the number of a signal.
    """
    prepare_for_forks()
    running: dict[int, tuple[int, socket.socket, int]] = {}
    with selectors.DefaultSelector() as selector:
        for each in (listener, life):
            selector.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is life:
                    return
                if key.fileobj is listener:
                    pid, connection, learnt = _start(listener)
                    pidfd = os.pidfd_open(pid)
                    running[pidfd] = pid, connection, learnt
                    selector.register(pidfd, selectors.EVENT_READ)
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                _end(*running.pop(key.fd))


def _start(listener: socket.socket) -> tuple[int, socket.socket, int]:
    """Start a command; return its number, its connection, and a pipe for its imports."""
    connection, _ = listener.accept()
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    words = message.split(b"\0")
    with suppress(ImportError):
        # The fork would import it, and then this process, which learns it from the fork.
        import_module(HEAVY.get(words[3], "sys"))
    learnt, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        listener.close()
        connection.close()
        os.close(learnt)
        _run_in_child(words, fds, tell)
    for fd in (*fds, tell):
        os.close(fd)
    with suppress(BrokenPipeError):
        connection.send(str(pid).encode())
    return pid, connection, learnt


def _end(pid: int, connection: socket.socket, learnt: int) -> None:
    """Tell how a command ended, and import what it has imported."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with connection, suppress(BrokenPipeError):
        connection.send(str(code).encode())
    import_what_it_did(learnt)


def _run_in_child(words: list[bytes], fds: list[int], tell: int) -> None:
    """Run `python -m physview` in this process, and end it."""
    code = 1
    try:
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        folder, user, nr_args, *rest = words
        variables = dict(word.split(b"=", 1) for word in rest[int(nr_args) :])
        os.environb.clear()
        os.environb.update(variables)
        os.chdir(folder)
        if user:
            _become_nobody()
        atexit.register(tell_imports, tell)  # physview ends the process itself, but runs these
        sys.argv[1:] = map(os.fsdecode, rest[: int(nr_args)])
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
    sockets = [socket.socket(fileno=int(fd)) for fd in sys.argv[1:]]
    try:
        with suppress(KeyboardInterrupt):  # which stops the tests
            serve(*sockets)
    finally:
        shutil.rmtree(os.path.dirname(sockets[0].getsockname()), ignore_errors=True)
