# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of the VM: runs one command and sends its output and exit code to the host.

It is the host's own file, run by the host's Python from the host's root. It imports little: under
an emulated CPU each module of the standard library costs a part of a second.
"""

from __future__ import annotations

import marshal
import os
import select
import struct
import time

TYPE_CHECKING = False  # typing itself costs more than all that is imported above
if TYPE_CHECKING:
    from typing import Any

PORT = "/dev/vport0p1"
READY, STDOUT, STDERR, EXIT, REFUSED = range(5)
"""Kinds of frame. A frame is kind and length in bytes, then its content."""
FRAME = struct.Struct("<BI")

CHUNK_SIZE = 1 << 16
SYS_FINIT_MODULE = 313  # arch/x86/entry/syscalls/syscall_64.tbl
SIGPIPE, SIGXFSZ = 13, 25
IFF_UP = 1
ZRAM = "/dev/zram0"


class Port:
    """The line to the host."""

    def __init__(self) -> None:
        # The driver makes the device when the host has told it of the port.
        deadline = time.monotonic() + 60
        while not os.path.exists(PORT) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.fd = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)

    def send(self, kind: int, content: bytes = b"") -> None:
        """Send a frame."""
        data = memoryview(FRAME.pack(kind, len(content)) + content)
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> bytes:
        """Receive what the host sends: its length, then it."""
        return self._read(struct.unpack("<I", self._read(4))[0])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(self.fd, size - len(data))
        return data


def main() -> None:
    """Do all, and then wait: the host ends the VM."""
    make_links()
    port = Port()
    port.send(READY)
    # Both ends are the same interpreter, and unlike json it costs no import.
    request = marshal.loads(port.receive())
    try:
        prepare(request)
        code = run(request, port)
    except Exception as error:  # the kernel panics when its process 1 ends
        port.send(REFUSED, str(error).encode("utf-8", "surrogateescape"))
    else:
        port.send(EXIT, struct.pack("<I", code))
    while True:
        time.sleep(1000)


def make_links() -> None:
    """What udev would do."""
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def prepare(request: dict[str, Any]) -> None:
    """Make the machine what the request wants.

    Raises:
        OSError: A module does not load, or the folder is not there.
    """
    write("/proc/sys/kernel/hostname", "physview-vm")
    write("/sys/class/net/lo/flags", hex(IFF_UP))
    link_modules(request["kernel_modules"])
    for path in request["modules"]:
        insert_module(path)
    if request["swap_mib"]:
        turn_swap_on(request["swap_mib"])
    os.chdir(request["cwd"])
    environment = request["env"]
    if not is_writable(environment.get("HOME", "")):
        environment["HOME"] = "/home/physview-vm"
        os.makedirs(environment["HOME"], exist_ok=True)


def is_writable(folder: str) -> bool:
    """Whether files can be made there: not below what the host keeps from the caller."""
    try:
        os.mkdir(f"{folder}/.physview-vm")
        os.rmdir(f"{folder}/.physview-vm")
    except OSError:
        return False
    return True


def write(path: str, text: str) -> None:
    """Write to one of the kernel's files."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def link_modules(folder: str) -> None:
    """Put the modules of a kernel that is not installed where modprobe looks for them."""
    wanted = f"/lib/modules/{os.uname().release}"
    if os.path.isdir(folder) and not os.path.lexists(wanted):
        os.makedirs("/lib/modules", exist_ok=True)
        os.symlink(folder, wanted)


def insert_module(path: str) -> None:
    """Load a module with what the kernel's command line has for it, as modprobe does.

    Raises:
        OSError: The kernel does not take it.
    """
    import ctypes

    prefix = os.fsencode(os.path.basename(path)).partition(b".")[0] + b"."
    with open("/proc/cmdline", "rb") as file:
        words = [word for word in file.read().rstrip(b"\n").split(b" ") if word.startswith(prefix)]
    options = b" ".join(word.removeprefix(prefix) for word in words)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.syscall(SYS_FINIT_MODULE, fd, options, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    os.close(fd)


def turn_swap_on(size_mib: int) -> None:
    """Swap into compressed memory, as mkswap and swapon would, which are not on every machine.

    Raises:
        OSError: The kernel has no zram, or does not take it.

    Source: union swap_header in include/linux/swap.h
    """
    import ctypes

    write("/sys/block/zram0/disksize", f"{size_mib}M")
    page_size = os.sysconf("SC_PAGESIZE")
    header = bytearray(page_size)
    last_page = size_mib * (1 << 20) // page_size - 1
    struct.pack_into("<II", header, 1024, 1, last_page)  # the version, 1, and the last page
    header[-10:] = b"SWAPSPACE2"
    with open(ZRAM, "wb") as file:
        file.write(header)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.swapon(ZRAM.encode(), 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), ZRAM)


def run(request: dict[str, Any], port: Port) -> int:
    """Run the command, pass its output on, and return its exit code as a shell counts it."""
    stdout, its_stdout = os.pipe()
    stderr, its_stderr = os.pipe()
    outputs = {stdout: STDOUT, stderr: STDERR}
    try:
        pid = start(request, its_stdout, its_stderr)
    except OSError as error:
        message = f"physview: cannot run {request['command'][0]}: {error.strerror}\n"
        port.send(STDERR, message.encode("utf-8", "surrogateescape"))
        return 127 if isinstance(error, FileNotFoundError) else 126
    os.close(its_stdout)
    os.close(its_stderr)
    poll = select.poll()
    for fd in (*outputs, os.pidfd_open(pid)):
        poll.register(fd, select.POLLIN)
    status = None
    while status is None:
        for fd, _ in poll.poll(1000):
            if fd in outputs and not pass_on(fd, outputs[fd], port):
                poll.unregister(fd)
        status = reap(pid)
    for fd, kind in outputs.items():
        # What it left running may hold the pipe open: take what is there and don't wait.
        os.set_blocking(fd, False)
        while pass_on(fd, kind, port):
            pass
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def start(request: dict[str, Any], stdout: int, stderr: int) -> int:
    """Start the command and return its pid.

    Raises:
        OSError: It is not there, or is no program.
    """
    command, environment = request["command"], request["env"]
    os.environ["PATH"] = environment["PATH"]  # in which posix_spawnp looks
    return os.posix_spawnp(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, stdout, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
        ],
        setsid=True,
        setsigdef=[SIGPIPE, SIGXFSZ],  # which Python ignores
    )


def pass_on(fd: int, kind: int, port: Port) -> bool:
    """Send what a pipe has; whether there may be more."""
    try:
        data = os.read(fd, CHUNK_SIZE)
    except BlockingIOError:
        return False
    if data:
        port.send(kind, data)
    return bool(data)


def reap(pid: int) -> int | None:
    """Collect the processes that ended, orphans too; the status of `pid`, once it has."""
    try:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended in (0, pid):
                return status if ended else None
    except ChildProcessError:
        return None


if __name__ == "__main__":
    main()
