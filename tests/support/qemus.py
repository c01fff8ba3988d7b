# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs without a kernel to boot, for physview guest; and servers that only pretend to be QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from physview.sources.qmp import Qmp

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}}}}\r\n'
MARK = 0x7068797376696577
"""The number that is in the guest's memory at the addresses of MARKS."""
MARKS = (0x1234567_8, 0x1_0780_0008)
# The memory above 4 GiB is shifted by 1 MiB there: no host huge page can be the guest's, too.
SHIFTED = "q35,mem-merge=off,accel=tcg,max-ram-below-4g=1023M"


class Qemu:
    """A running QEMU: its process, and the path of its QMP socket."""

    def __init__(self, pid: int, path: str) -> None:
        self.pid = pid
        self.path = path


@contextlib.contextmanager
def run_qemu(
    folder: Path, *options: str, prefix: list[str] | tuple[str, ...] = ()
) -> Iterator[Qemu]:
    """A QEMU with 2 GiB of memory, in which only the BIOS runs. It ends with the `with` block."""
    path = str(folder / "qmp")
    loads = [
        word
        for gpa in MARKS
        for word in ("-device", f"loader,addr={gpa:#x},data={MARK:#x},data-len=8")
    ]
    process = subprocess.Popen(
        [
            *prefix,
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", SHIFTED, "-m", "2G", "-device", "VGA"),
            *("-qmp", f"unix:{path},server=on,wait=off", *loads, *options),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not _listens(path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Qemu(process.pid, path)
    finally:
        process.kill()
        process.wait()


def _listens(path: str) -> bool:
    """Whether QEMU accepts connections: the socket's file is there before it does."""
    with socket.socket(socket.AF_UNIX) as connection:
        return not connection.connect_ex(path)


def stop_guest(qemu: Qemu) -> None:
    """Stop the guest's processors, so that nothing writes to its memory any more."""
    with Qmp(qemu.path) as qmp:
        qmp.execute("stop")


@contextlib.contextmanager
def serve(folder: Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A socket at which somebody else than QEMU answers: `answer`, in a thread.

    Yields:
        The socket's path.
    """
    path = str(folder / f"socket-{os.urandom(4).hex()}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    answer(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def answers(connection: socket.socket, monitor: Callable[[str], object]) -> None:
    """Speak QMP, and answer each line for the human monitor by `monitor(line)`."""
    connection.sendall(GREETING)
    for line in connection.makefile("rb"):
        request = json.loads(line)
        answer: object = {}
        if request["execute"] == "human-monitor-command":
            answer = monitor(request["arguments"]["command-line"])
        connection.sendall(json.dumps({"return": answer}).encode() + b"\r\n")
