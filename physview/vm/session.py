# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM that runs: its process, its two lines to us, and its end.

Nothing of it has a name on the host: the initramfs is a memfd, the lines are socket pairs, and
QEMU dies with us. So nothing can be left behind, even when we are killed.
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
from physview.vm.machine import Machine

CHUNK_SIZE = 1 << 18
LOG_SIZE = 1 << 18
"""Bytes of the kernel's log that are kept."""

LAST_WORDS_SECONDS = 20.0
"""For a kernel that panics: its reboot, which ends QEMU, may hang."""

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_libc = ctypes.CDLL(None)


class Session:
    """A VM, from its start; as a context manager, until its end.

    Args:
        machine: What it is made of.
        accelerator: KVM or TCG.
        archive: The initramfs.
        outputs: Where the command's output goes, by its kind of frame.
        console: Where the kernel's log goes.

    Raises:
        VmUnusable: QEMU is not installed.
    """

    def __init__(
        self,
        machine: Machine,
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
        self._dead_at = math.inf
        self._received = bytearray()
        self._complaint = os.memfd_create("qemu-stderr")
        self._console, its_console = socket.socketpair()
        self._consoles = [self._console]  # empty once it is closed
        self._port, its_port = socket.socketpair()
        initramfs = os.memfd_create("initramfs")
        its_ends = (initramfs, its_console.fileno(), its_port.fileno())
        try:
            with open(initramfs, "wb", closefd=False) as file:
                file.write(archive)
            self._started = self._last_heard = time.monotonic()
            self._qemu = subprocess.Popen(
                machine.command(accelerator, *its_ends),
                stdin=subprocess.DEVNULL,
                stdout=self._complaint,
                stderr=self._complaint,
                pass_fds=its_ends,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no locks
                start_new_session=True,  # Ctrl-C is for us, who end it then
            )
        except BaseException:
            self._close()
            raise
        finally:
            os.close(initramfs)
            its_console.close()
            its_port.close()

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
        """Wait until the guest is there, and give it its work.

        Args:
            request: What guest.py is to do.
            timeout: Seconds from QEMU's start that it may take.
            silence: Seconds that the kernel may say nothing.

        Raises:
            VmLost: It is not there in time, or never will be.
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
            deadline = min(self._started + timeout, self._last_heard + silence)
            try:
                self._next_frame(deadline)
            except TimeoutError:
                if deadline >= min(self._started + timeout, self._last_heard + silence):
                    raise
            else:
                return

    def wait(self, timeout: float | None) -> int:
        """Pass the command's output on until it ends.

        Args:
            timeout: Seconds from now.

        Returns:
            Its exit code.

        Raises:
            KernelCrashed: The kernel oopsed or panicked.
            VmLost: The VM ended without that.
            VmTimeout: The command took too long.
            VmUnusable: The command could not be tried.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                kind, content = self._next_frame(deadline)
                if kind == guest.EXIT:
                    return int(struct.unpack("<I", content)[0])
                if kind == guest.REFUSED:
                    why = content.decode("utf-8", "replace")
                    raise failures.VmUnusable("the VM cannot be made as wanted", why)
                self.has_output = True
                self._outputs[kind].write(content)
                self._outputs[kind].flush()
        except TimeoutError:
            why = f"it took more than {timeout:g} s"
            raise failures.VmTimeout("the command was ended", why) from None
        except EOFError:
            lost = self._lost("the VM ended before the command did")
            raise failures.crashed(self._log_text()) or lost from None

    def _next_frame(self, deadline: float | None) -> tuple[int, bytes]:
        """Wait for what guest.py says next.

        Raises:
            TimeoutError: Nothing came before the deadline.
            EOFError: Nothing will come: the VM is gone.
        """
        start = guest.FRAME.size
        while True:
            if len(self._received) >= start:
                kind, size = guest.FRAME.unpack_from(self._received)
                if len(self._received) >= start + size:
                    content = bytes(self._received[start : start + size])
                    del self._received[: start + size]
                    return kind, content
            self._receive(deadline)

    def _receive(self, deadline: float | None) -> None:
        now = time.monotonic()
        if now >= self._dead_at:
            raise EOFError
        if deadline is not None and now >= deadline:
            raise TimeoutError
        until = min(self._dead_at, math.inf if deadline is None else deadline)
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
        self._last_heard = time.monotonic()
        if not data:
            self._consoles.clear()
        self._log = (self._log + data)[-LOG_SIZE:]
        if failures.PANIC.encode() in self._log and self._dead_at == math.inf:
            self._dead_at = self._last_heard + LAST_WORDS_SECONDS
        if self._console_output:
            self._console_output.write(data)
            self._console_output.flush()

    def _lost(self, what: str) -> failures.VmLost:
        """The error for a VM that is gone, or that will be now."""
        self._kill()
        while self._consoles:
            self._receive_log()
        complaint = os.pread(self._complaint, CHUNK_SIZE, 0).decode("utf-8", "replace")
        return failures.lost(what, self._log_text(), complaint)

    def _log_text(self) -> str:
        return self._log.decode("utf-8", "replace").replace("\r", "")

    def _kill(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _close(self) -> None:
        self._console.close()
        self._port.close()
        os.close(self._complaint)


def _receive(connection: socket.socket) -> bytes:
    """Receive; a reset is the end, too: QEMU was killed with something unread."""
    try:
        return connection.recv(CHUNK_SIZE)
    except ConnectionResetError:
        return b""


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
