# SPDX-License-Identifier: GPL-2.0-or-later
"""A running VM: the QEMU process, its console, and its port for messages.

A VM leaves nothing behind on the host, even if physview is killed: the initramfs is a memfd, the
console and the port are socket pairs, and the kernel kills QEMU when physview ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import math
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from physview.errors import PhysviewError
from physview.kernels.cache import held
from physview.vm import failures, messages
from physview.vm.connection import Connection
from physview.vm.qemu import KVM, QemuMachine

CHUNK_SIZE = 1 << 18
LOG_SIZE = 1 << 18
"""The number of bytes of the kernel's log to keep: the last ones."""

PANIC_SECONDS = 20.0
"""How long to wait after a kernel panic, in seconds. The reboot that ends QEMU can hang."""

PATIENCE_SECONDS = 3.0
"""After this time without a line of the kernel's log under KVM, the user is told why it takes."""

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None)


class Session:
    """A running VM. The constructor starts QEMU, and the end of the `with` block ends it.

    Args:
        machine: The VM's configuration.
        accelerator: KVM or TCG.
        archive: The initramfs.
        console: The file that receives the kernel's log; None to drop the log.
        uses: What stays in the cache as long as QEMU runs.

    Raises:
        VmUnusable: QEMU is not installed.
    """

    def __init__(
        self,
        machine: QemuMachine,
        accelerator: str,
        archive: bytes,
        console: BinaryIO | None,
        uses: Iterable[Path] = (),
    ) -> None:
        self.accelerator = accelerator
        self.boot_seconds = 0.0
        self.nr_lost = 0
        self.was_used = False
        """Whether a command has read or printed anything. Such a command is not run again."""
        self._console_output = console
        self._log = b""
        self._panic_deadline = math.inf
        self._qemu_stderr = os.memfd_create("qemu-stderr")
        self._console, qemu_console = socket.socketpair()
        self._consoles = [self._console]  # empty once QEMU has closed the console
        port, qemu_port = socket.socketpair()
        self._port = Connection(port)
        initramfs = os.memfd_create("initramfs")
        qemu_fds = (initramfs, qemu_console.fileno(), qemu_port.fileno())
        try:
            with open(initramfs, "wb", closefd=False) as file:
                file.write(archive)
            self._started = self._last_log_time = time.monotonic()
            qmp_fds = () if machine.qmp_fd is None else (machine.qmp_fd,)
            with held(uses) as locks:
                self._qemu = subprocess.Popen(
                    machine.command(accelerator, *qemu_fds),
                    stdin=subprocess.DEVNULL,
                    stdout=self._qemu_stderr,
                    stderr=self._qemu_stderr,
                    pass_fds=(*qemu_fds, *qmp_fds, *locks),
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no locks
                    start_new_session=True,  # Ctrl-C reaches only physview, which then ends QEMU
                )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(initramfs)
            qemu_console.close()
            qemu_port.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill()
        self._close()

    def boot(
        self,
        setup: Mapping[str, Any],
        timeout: float,
        silence: float,
        say: Callable[[str], object] = lambda message: None,
    ) -> None:
        """Wait until the guest is ready, and set it up.

        Args:
            setup: What prepare() of guest.py takes.
            timeout: The longest time from QEMU's start until the guest is ready, in seconds.
            silence: The longest time without a line in the kernel's log, in seconds.
            say: Called with a message if KVM seems to hang.

        Raises:
            VmLost: The guest is not ready in time, or the VM died.
            VmUnusable: The guest could not be set up.
        """
        try:
            self._wait_until_booted(timeout, silence, say)
            self.send(messages.PREPARE, 0, marshal.dumps(dict(setup), messages.MARSHAL_VERSION))
            answers: list[messages.Message] = []
            while not answers:
                answers = self.wait(None)[0]
        except TimeoutError:
            seconds = time.monotonic() - self._started
            raise self._lost(f"the VM did not boot in {seconds:.0f} s") from None
        except EOFError:
            raise self._lost("the VM died while it booted") from None
        self.boot_seconds = time.monotonic() - self._started
        kind, _, content = answers[0]
        if kind == messages.REFUSED:
            raise failures.refused_error(content)

    def _wait_until_booted(
        self, timeout: float, silence: float, say: Callable[[str], object]
    ) -> None:
        patience = self._started + PATIENCE_SECONDS if self.accelerator == KVM else math.inf
        while True:
            deadline = min(self._started + timeout, self._last_log_time + silence)
            with contextlib.suppress(TimeoutError):
                if self.wait(min(deadline, patience))[0]:
                    return
            now = time.monotonic()
            if now >= min(self._started + timeout, self._last_log_time + silence):
                raise TimeoutError
            if now >= patience:
                patience = math.inf
                if self._last_log_time == self._started:
                    left = deadline - now
                    say(f"no sign of life with KVM yet; waiting for at most {left:.0f} s more")

    def send(self, kind: int, stream: int, content: bytes = b"") -> None:
        """Send a message to the guest."""
        self.was_used |= kind == messages.STDIN
        self._port.send(kind, stream, content)

    def wait(
        self,
        deadline: float | None,
        readers: Collection[Any] = (),
        writers: Collection[Any] = (),
    ) -> tuple[list[messages.Message], set[Any]]:
        """Wait until the guest sends something, or until something else is ready.

        Args:
            deadline: The time of time.monotonic() at which to give up; None for never.
            readers: What else to wait for, until it can be read.
            writers: What else to wait for, until it can be written.

        Returns:
            The guest's messages, and those of `readers` and `writers` that are ready.

        Raises:
            TimeoutError: Nothing came before the deadline.
            EOFError: The VM has ended.
        """
        now = time.monotonic()
        if now >= self._panic_deadline:
            raise EOFError
        if deadline is not None and now >= deadline:
            raise TimeoutError
        until = min(self._panic_deadline, math.inf if deadline is None else deadline)
        reading = [self._port, *self._consoles, *readers]
        writing = [self._port, *writers] if self._port.nr_unsent else [*writers]
        left = None if until == math.inf else until - now
        readable, writable, _ = select.select(reading, writing, [], left)
        if self._console in readable:
            self._receive_log()
        if self._port in writable:
            self._port.flush()
        received = self._port.receive() if self._port in readable else []
        self.was_used |= any(kind in (messages.STDOUT, messages.STDERR) for kind, _, _ in received)
        return received, {*readable, *writable} - {self._port, self._console}

    def ended_error(self) -> PhysviewError:
        """End the VM, and return the error for commands that had not ended."""
        lost = self._lost("the VM ended before the command did")
        return failures.crash_error(self._log_text()) or lost

    def _receive_log(self) -> None:
        try:
            data = self._console.recv(CHUNK_SIZE)
        except ConnectionResetError:  # QEMU was killed with unread data
            data = b""
        self._last_log_time = time.monotonic()
        if not data:
            self._consoles.clear()
        self._log = (self._log + data)[-LOG_SIZE:]
        if failures.PANIC.encode() in self._log and self._panic_deadline == math.inf:
            self._panic_deadline = self._last_log_time + PANIC_SECONDS
        if self._console_output:
            self._console_output.write(data)
            self._console_output.flush()

    def _lost(self, what: str) -> failures.VmLost:
        """End the VM, and return the error for a lost VM."""
        self._kill()
        while self._consoles:
            self._receive_log()
        complaint = os.pread(self._qemu_stderr, CHUNK_SIZE, 0).decode("utf-8", "replace")
        return failures.lost_error(what, self._log_text(), complaint)

    def _log_text(self) -> str:
        return self._log.decode("utf-8", "replace").replace("\r", "")

    def _kill(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _close(self) -> None:
        self._console.close()
        self._port.close()
        os.close(self._qemu_stderr)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
