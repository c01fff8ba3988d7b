# SPDX-License-Identifier: GPL-2.0-or-later
"""The command that `physview trace EVENT -- CMD…` runs: it waits for the tracer before exec()."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from typing import NoReturn

from physview.errors import PhysviewError
from physview.runtime import invocation


class TracedCommand:
    """A child process that runs a command as soon as `run()` is called.

    Args:
        command: The program and its arguments.
        stdout: The descriptor for the command's standard output.

    Raises:
        PhysviewError: There is no such program.
    """

    def __init__(self, command: Sequence[str], stdout: int = 1) -> None:
        path = invocation.path_with_physview()
        program = shutil.which(command[0], path=path)
        if program is None:
            why = "there is no such program on PATH, or it may not be run"
            raise PhysviewError(f"cannot run {command[0]}", why, "give a path, or see PATH")
        self._command = command
        self._exit_code: int | None = None
        child_start, self._start_pipe = os.pipe()
        self._error_pipe, child_error = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._start_pipe)
            _wait_and_exec(program, command, path, stdout, child_start, child_error)
        os.close(child_start)
        os.close(child_error)

    def run(self) -> None:
        """Let the child process call exec() for the program.

        Raises:
            PhysviewError: exec() failed.
        """
        os.write(self._start_pipe, b"!")
        code = os.read(self._error_pipe, 8)  # empty if exec() succeeded, which closes the pipe
        if code:
            why = os.strerror(int(code))
            raise PhysviewError(f"cannot run {self._command[0]}", why)

    def send_signal(self, signum: int) -> None:
        """Send the process a signal, unless it has ended."""
        if self._exit_code is None:
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """Wait until the process ends. Return its exit code, or minus the signal that killed it."""
        if self._exit_code is None:
            _, status = os.waitpid(self.pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
            os.close(self._error_pipe)
            os.close(self._start_pipe)
        return self._exit_code


def _wait_and_exec(
    program: str, command: Sequence[str], path: str, stdout: int, start: int, error_pipe: int
) -> NoReturn:
    try:
        # Python ignores these signals. Other programs expect the default action.
        for signum in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        if stdout != 1:
            os.dup2(stdout, 1)
        if os.read(start, 1):  # the read is empty if the tracer has ended
            os.execve(program, list(command), {**os.environ, "PATH": path})
    except OSError as error:
        os.write(error_pipe, str(error.errno).encode())
    finally:
        os._exit(127)
