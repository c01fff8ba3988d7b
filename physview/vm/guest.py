# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of the guest: runs one command, and sends its output and exit code to the host.

The guest runs this file from the host's root folder, with the host's Python. The file imports few
modules: on an emulated CPU each module of the standard library costs a fraction of a second.
"""

from __future__ import annotations

import marshal
import os
import select
import struct
import time

TYPE_CHECKING = False  # importing typing costs more than all the imports above
if TYPE_CHECKING:
    from typing import Any

PORT = "/dev/vport0p1"
READY, STDOUT, STDERR, EXIT, REFUSED = range(5)
"""Kinds of messages. A message is its kind, its content's length in bytes, and its content."""
MESSAGE = struct.Struct("<BI")

CHUNK_SIZE = 1 << 16
SIGPIPE, SIGXFSZ = 13, 25
IFF_UP = 1
ZRAM = "/dev/zram0"


class HostPort:
    """The connection to the host: a virtio serial port."""

    def __init__(self) -> None:
        # The driver makes the device only after the host has announced the port.
        deadline = time.monotonic() + 60
        while not os.path.exists(PORT) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.fd = os.open(PORT, os.O_RDWR | os.O_CLOEXEC)

    def send(self, kind: int, content: bytes = b"") -> None:
        """Send a message."""
        data = memoryview(MESSAGE.pack(kind, len(content)) + content)
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> bytes:
        """Receive one item from the host: its length, then its content."""
        return self._read(struct.unpack("<I", self._read(4))[0])

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.read(self.fd, size - len(data))
        return data


def main() -> None:
    """Run the host's request, report the result, and wait until the host ends the VM."""
    make_links()
    port = HostPort()
    port.send(READY)
    # marshal, not json: both ends run the same interpreter, and json costs an import.
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
    """Make the links in /dev that udev makes on other systems."""
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def prepare(request: dict[str, Any]) -> None:
    """Set the guest up for a request: load modules, turn swap on, change the folder.

    Raises:
        OSError: A module can't be loaded, or the folder does not exist.
    """
    write("/proc/sys/kernel/hostname", "physview-vm")
    write("/sys/class/net/lo/flags", hex(IFF_UP))
    link_modules(request["kernel_modules"])
    for path in request["modules"]:
        insert_module(path, request["finit_module"])
    if request["swap_mib"]:
        turn_swap_on(request["swap_mib"])
    os.chdir(request["cwd"])
    environment = request["env"]
    if not is_writable(environment.get("HOME", "")):
        environment["HOME"] = "/home/physview-vm"
        os.makedirs(environment["HOME"], exist_ok=True)


def is_writable(folder: str) -> bool:
    """Whether this process can make files in a folder. Not if the host denies the caller access."""
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
    """Link the modules of a kernel that is not installed to the place where modprobe looks."""
    wanted = f"/lib/modules/{os.uname().release}"
    if os.path.isdir(folder) and not os.path.lexists(wanted):
        os.makedirs("/lib/modules", exist_ok=True)
        os.symlink(folder, wanted)


def insert_module(path: str, finit_module: int) -> None:
    """Load a module, with its parameters from the kernel's command line, as modprobe does.

    Args:
        path: The module.
        finit_module: The number of the system call.

    Raises:
        OSError: The kernel refuses the module.
    """
    import ctypes

    prefix = os.fsencode(os.path.basename(path)).partition(b".")[0] + b"."
    with open("/proc/cmdline", "rb") as file:
        words = [word for word in file.read().rstrip(b"\n").split(b" ") if word.startswith(prefix)]
    options = b" ".join(word.removeprefix(prefix) for word in words)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if libc.syscall(finit_module, fd, options, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    os.close(fd)


def turn_swap_on(size_mib: int) -> None:
    """Make a swap area in compressed memory (zram).

    The code writes the swap header and calls swapon() itself, because not every machine has the
    programs mkswap and swapon.

    Raises:
        OSError: The kernel has no zram, or refuses the swap area.

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


def run(request: dict[str, Any], port: HostPort) -> int:
    """Run the command, forward its output, and return its exit code in the shell's convention."""
    stdout, command_stdout = os.pipe()
    stderr, command_stderr = os.pipe()
    outputs = {stdout: STDOUT, stderr: STDERR}
    try:
        pid = start(request, command_stdout, command_stderr)
    except OSError as error:
        message = f"physview: cannot run {request['command'][0]}: {error.strerror}\n"
        port.send(STDERR, message.encode("utf-8", "surrogateescape"))
        return 127 if isinstance(error, FileNotFoundError) else 126
    os.close(command_stdout)
    os.close(command_stderr)
    poll = select.poll()
    for fd in (*outputs, os.pidfd_open(pid)):
        poll.register(fd, select.POLLIN)
    status = None
    while status is None:
        for fd, _ in poll.poll(1000):
            if fd in outputs and not forward_output(fd, outputs[fd], port):
                poll.unregister(fd)
        status = reap(pid)
    for fd, kind in outputs.items():
        # A process that the command left running may hold the pipe open. Read without waiting.
        os.set_blocking(fd, False)
        while forward_output(fd, kind, port):
            pass
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def start(request: dict[str, Any], stdout: int, stderr: int) -> int:
    """Start the command and return its pid.

    Raises:
        OSError: The file does not exist, or it is not executable.
    """
    command, environment = request["command"], request["env"]
    os.environ["PATH"] = environment["PATH"]  # posix_spawnp() searches this PATH
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
        setsigdef=[SIGPIPE, SIGXFSZ],  # Python ignores these signals
    )


def forward_output(fd: int, kind: int, port: HostPort) -> bool:
    """Read from a pipe once, and send the data to the host.

    Returns:
        Whether the pipe may have more data.
    """
    try:
        data = os.read(fd, CHUNK_SIZE)
    except BlockingIOError:
        return False
    if data:
        port.send(kind, data)
    return bool(data)


def reap(pid: int) -> int | None:
    """Collect all ended processes, including orphans.

    Returns:
        The status of `pid` if it has ended, or None.
    """
    try:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended in (0, pid):
                return status if ended else None
    except ChildProcessError:
        return None


if __name__ == "__main__":
    main()
