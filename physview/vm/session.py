# SPDX-License-Identifier: GPL-2.0-or-later
"""A running VM: the QEMU process, its console, and its port for messages.

A VM leaves nothing behind on the host, even if physview is killed: the initramfs is a memfd, the
console and the port are socket pairs, and the kernel kills QEMU when physview ends.
"""

from __future__ import annotations

import ctypes
import marshal
import math
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from physview.vm import failures, guest
from physview.vm.qemu import QemuMachine

CHUNK_SIZE = 1 << 18
LOG_SIZE = 1 << 18
"""The number of bytes of the kernel's log to keep: the last ones."""

PANIC_SECONDS = 20.0
"""How long to wait after a kernel panic, in seconds. The reboot that ends QEMU can hang."""

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None)


class Session:
    """A running VM. The constructor starts QEMU, and the end of the `with` block ends it.

    Args:
        machine: The VM's configuration.
        accelerator: KVM or TCG.
        archive: The initramfs.
        outputs: The files that receive the command's output, by the kind of message.
        console: The file that receives the kernel's log; None to drop the log.

    Raises:
        VmUnusable: QEMU is not installed.
    """

    def __init__(
        self,
        machine: QemuMachine,
        accelerator: str,
        archive: bytes,
        outputs: Mapping[int, BinaryIO],
        console: BinaryIO | None,
    ) -> None:
        self.boot_seconds = 0.0
        self.has_output = False
        self._outputs = outputs
        self._console_output = console
        self._log = b""
        self._panic_deadline = math.inf
        self._received = bytearray()
        self._qemu_stderr = os.memfd_create("qemu-stderr")
        self._console, qemu_console = socket.socketpair()
        self._consoles = [self._console]  # empty once QEMU has closed the console
        self._port, qemu_port = socket.socketpair()
        initramfs = os.memfd_create("initramfs")
        qemu_fds = (initramfs, qemu_console.fileno(), qemu_port.fileno())
        try:
            with open(initramfs, "wb", closefd=False) as file:
                file.write(archive)
            self._started = self._last_log_time = time.monotonic()
            self._qemu = subprocess.Popen(
                machine.command(accelerator, *qemu_fds),
                stdin=subprocess.DEVNULL,
                stdout=self._qemu_stderr,
                stderr=self._qemu_stderr,
                pass_fds=qemu_fds,
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

    def boot(self, request: Mapping[str, Any], timeout: float, silence: float) -> None:
        """Wait until the guest is ready, and send it the request.

        Args:
            request: The request for guest.py.
            timeout: The longest time from QEMU's start until the guest is ready, in seconds.
            silence: The longest time without a line in the kernel's log, in seconds.

        Raises:
            VmLost: The guest is not ready in time, or the VM died.
        """
        data = marshal.dumps(dict(request))
        try:
            self._wait_for_guest(timeout, silence)
            self._port.sendall(struct.pack("<I", len(data)) + data)
        except TimeoutError:
            seconds = time.monotonic() - self._started
            raise self._lost(f"the VM did not boot in {seconds:.0f} s") from None
        except (EOFError, BrokenPipeError):
            raise self._lost("the VM died while it booted") from None
        self.boot_seconds = time.monotonic() - self._started

    def _wait_for_guest(self, timeout: float, silence: float) -> None:
        while True:
            deadline = min(self._started + timeout, self._last_log_time + silence)
            try:
                self._next_message(deadline)
            except TimeoutError:
                if deadline >= min(self._started + timeout, self._last_log_time + silence):
                    raise
            else:
                return

    def wait(self, timeout: float | None) -> int:
        """Forward the command's output until the command ends.

        Args:
            timeout: The longest duration from now, in seconds; None for no limit.

        Returns:
            The command's exit code.

        Raises:
            KernelCrashed: The kernel oopsed or panicked.
            VmLost: The VM ended without a crash of the kernel.
            VmTimeout: The command took longer than the timeout.
            VmUnusable: The guest could not be set up for the command.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                kind, content = self._next_message(deadline)
                if kind == guest.EXIT:
                    return int(struct.unpack("<I", content)[0])
                if kind == guest.REFUSED:
                    why = content.decode("utf-8", "replace")
                    raise failures.VmUnusable("the VM cannot be set up for the command", why)
                self.has_output = True
                self._outputs[kind].write(content)
                self._outputs[kind].flush()
        except TimeoutError:
            why = f"it took more than {timeout:g} s"
            raise failures.VmTimeout("the command was ended", why) from None
        except EOFError:
            lost = self._lost("the VM ended before the command did")
            raise failures.crash_error(self._log_text()) or lost from None

    def _next_message(self, deadline: float | None) -> tuple[int, bytes]:
        """Wait for the next message of guest.py.

        Raises:
            TimeoutError: No message came before the deadline.
            EOFError: The VM has ended.
        """
        start = guest.MESSAGE.size
        while True:
            if len(self._received) >= start:
                kind, size = guest.MESSAGE.unpack_from(self._received)
                if len(self._received) >= start + size:
                    content = bytes(self._received[start : start + size])
                    del self._received[: start + size]
                    return kind, content
            self._receive(deadline)

    def _receive(self, deadline: float | None) -> None:
        now = time.monotonic()
        if now >= self._panic_deadline:
            raise EOFError
        if deadline is not None and now >= deadline:
            raise TimeoutError
        until = min(self._panic_deadline, math.inf if deadline is None else deadline)
        left = None if until == math.inf else until - now
        readable = select.select([self._port, *self._consoles], [], [], left)[0]
        if self._console in readable:
            self._receive_log()
        if self._port in readable:
            data = _receive(self._port)
            if not data:
                raise EOFError
            self._received += data

    def _receive_log(self) -> None:
        data = _receive(self._console)
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


def _receive(connection: socket.socket) -> bytes:
    """Receive data; empty at the end. A reset is an end, too: QEMU was killed with unread data."""
    try:
        return connection.recv(CHUNK_SIZE)
    except ConnectionResetError:
        return b""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
