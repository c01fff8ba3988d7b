# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that waits until it is traced, before it becomes its program."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from typing import NoReturn

from physview.errors import PhysviewError


class Launched:
    """A process that will run a command when it is told to.

    Args:
        command: The program and its arguments.
        stdout: Where its standard output goes: a descriptor.

    Raises:
        PhysviewError: There is no such program.
    """

    def __init__(self, command: Sequence[str], stdout: int = 1) -> None:
        program = shutil.which(command[0])
        if program is None:
            why = "there is no such program on PATH, or it may not be run"
            raise PhysviewError(f"cannot run {command[0]}", why, "give a path, or see PATH")
        self._command = command
        self._exit_code: int | None = None
        go, self._go = os.pipe()
        self._failed, failed = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            _become(program, command, stdout, go, failed)
        os.close(go)
        os.close(failed)

    def run(self) -> None:
        """Let it become the program.

        Raises:
            PhysviewError: It cannot.
        """
        os.write(self._go, b"!")
        code = os.read(self._failed, 8)  # empty as soon as the program runs
        if code:
            why = os.strerror(int(code))
            raise PhysviewError(f"cannot run {self._command[0]}", why)

    def end(self, signum: int) -> None:
        """Send it a signal, if it is there."""
        if self._exit_code is None:
            os.kill(self.pid, signum)

    def wait(self) -> int:
        """Wait for its end; its exit code, or minus the signal that killed it."""
        if self._exit_code is None:
            _, status = os.waitpid(self.pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
            os.close(self._failed)
            os.close(self._go)
        return self._exit_code


def _become(program: str, command: Sequence[str], stdout: int, go: int, failed: int) -> NoReturn:
    try:
        # What Python ignores, programs are not used to have ignored.
        for signum in (signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        if stdout != 1:
            os.dup2(stdout, 1)
        if os.read(go, 1):  # nothing: the tracer ended
            os.execv(program, list(command))
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(127)
