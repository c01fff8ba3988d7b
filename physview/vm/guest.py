# SPDX-License-Identifier: GPL-2.0-or-later
"""Process 1 of the guest: runs commands for the host, several at once.

The guest runs this file from the host's root folder, with the host's Python. The file imports few
modules: on an emulated CPU each module of the standard library costs a fraction of a second.
"""

from __future__ import annotations

import marshal
import os
import select
import struct
import sys
import time

if __name__ == "__main__":  # find the modules below without running the package's __init__.py
    for _name, _depth in (("physview", 2), ("physview.vm", 1)):
        sys.modules[_name] = type(sys)(_name)
        sys.modules[_name].__path__ = [__file__.rsplit("/", _depth)[0]]

from physview.vm import messages
from physview.vm.guest_commands import CHUNK_SIZE, Command, resize

TYPE_CHECKING = False  # importing typing costs more than all the imports above
if TYPE_CHECKING:
    from typing import Any

PORT = "/dev/vport0p1"
SECONDS_TO_END = 3.0
"""How long a command may take to end after SIGHUP. Then it is killed."""

SIGHUP, SIGKILL, SIGCONT = 1, 9, 18
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
        self._received = bytearray()

    def send(self, kind: int, stream: int = 0, content: bytes = b"") -> None:
        """Send a message. The host always reads, so this never waits for a user."""
        data = memoryview(messages.pack(kind, stream, content))
        while data:
            data = data[os.write(self.fd, data) :]

    def receive(self) -> list[messages.Message]:
        """Read once, and return the messages that are complete."""
        self._received += os.read(self.fd, CHUNK_SIZE)
        return messages.take_whole(self._received)


class Guest:
    """The commands that run, and the connection to the host."""

    def __init__(self, port: HostPort) -> None:
        self._port = port
        self._commands: dict[int, Command] = {}
        self._poll = select.poll()
        self._poll.register(port.fd, select.POLLIN)
        self._registered: dict[int, Command] = {}

    def serve(self) -> None:
        """Do what the host asks for until it ends the VM."""
        while True:
            for fd, events in self._poll.poll(1000):
                if fd == self._port.fd:
                    for message in self._port.receive():
                        self._obey(*message)
                elif command := self._registered.get(fd):
                    self._serve(command, fd, events)
            self._reap()

    def _obey(self, kind: int, stream: int, content: bytes) -> None:
        if kind in (messages.PREPARE, messages.RUN):
            # marshal, not json: both ends run the same interpreter, and json costs an import.
            request = marshal.loads(content)
            try:
                if kind == messages.PREPARE:
                    prepare(request)
                    self._port.send(messages.PREPARED)
                else:
                    self._run(stream, request)
            except Exception as error:  # the kernel panics when its process 1 ends
                why = str(error).encode("utf-8", "surrogateescape")
                self._port.send(messages.REFUSED, stream, why)
            return
        command = self._commands.get(stream)
        if command is None:  # it has ended meanwhile
            return
        if kind == messages.STDIN:
            command.stdin_data += content
        elif kind == messages.END_OF_STDIN:
            command.stdin_ends = True
        elif kind == messages.TAKEN:
            command.room += messages.NUMBER.unpack(content)[0]
        elif kind == messages.RESIZE:
            resize(command.terminal, *messages.SIZE.unpack(content))
        elif kind == messages.SIGNAL:
            command.signal(messages.NUMBER.unpack(content)[0])
        elif kind == messages.HANG_UP:
            self._hang_up(command)
            return
        self._pass_on(command)

    def _run(self, stream: int, request: dict[str, Any]) -> None:
        os.chdir(request["cwd"])
        environment = request["env"]
        if not is_writable(environment.get("HOME", "")):
            environment["HOME"] = "/home/physview-vm"
            os.makedirs(environment["HOME"], exist_ok=True)
        try:
            command = Command(stream, request)
        except OSError as error:
            name = request["command"][0]
            message = f"physview: cannot run {name}: {error.strerror}\n"
            self._port.send(messages.STDERR, stream, message.encode("utf-8", "surrogateescape"))
            code = 127 if isinstance(error, FileNotFoundError) else 126
            self._port.send(messages.EXIT, stream, messages.NUMBER.pack(code))
            return
        self._commands[stream] = command
        self._register(command)

    def _serve(self, command: Command, fd: int, events: int) -> None:
        if fd in command.outputs and events & ~select.POLLOUT:
            self._forward(command, fd)
        self._pass_on(command)

    def _pass_on(self, command: Command) -> None:
        """Pass stdin on, and the rest of the output of a command that has ended."""
        nr_written = command.write_stdin()
        if nr_written:
            self._port.send(messages.TAKEN, command.stream, messages.NUMBER.pack(nr_written))
        if command.status is not None:
            self._finish(command)
        self._register(command)

    def _forward(self, command: Command, fd: int) -> bool:
        """Read output once and send it; return whether there may be more now."""
        data = command.read(fd)
        if data:
            self._port.send(command.outputs[fd], command.stream, data)
            command.room -= len(data)
            if command.status is not None:
                command.nr_left -= len(data)
        elif data is not None:
            del command.outputs[fd]
            if fd != command.terminal:
                os.close(fd)
        return bool(data)

    def _finish(self, command: Command) -> None:
        """Send what an ended command has printed, and then its exit code."""
        for fd in [*command.outputs]:
            # A process that the command left running may hold the pipe open. Do not wait for it.
            while command.room and command.nr_left > 0 and self._forward(command, fd):
                pass
        if command.outputs and not command.room and command.nr_left > 0:
            return  # until the host has taken some
        code = os.waitstatus_to_exitcode(command.status or 0)
        code = code if code >= 0 else 128 - code  # the shell's convention
        self._port.send(messages.EXIT, command.stream, messages.NUMBER.pack(code))
        self._forget(command)

    def _hang_up(self, command: Command) -> None:
        """End a command for which nobody waits any more."""
        if command.status is not None:
            self._forget(command)
            return
        for number in (SIGHUP, SIGCONT):
            command.signal(number)
        command.deadline = time.monotonic() + SECONDS_TO_END
        command.close()
        self._register(command)

    def _forget(self, command: Command) -> None:
        command.close()
        self._register(command)
        self._commands.pop(command.stream, None)

    def _register(self, command: Command) -> None:
        wanted = command.wanted()
        for fd in [fd for fd, whose in self._registered.items() if whose is command]:
            if fd not in wanted:
                self._poll.unregister(fd)
                del self._registered[fd]
        for fd, events in wanted.items():
            self._poll.register(fd, events)
            self._registered[fd] = command

    def _reap(self) -> None:
        """Collect all ended processes, including orphans. Kill commands that do not hang up."""
        ended = {}
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                ended[pid] = status
        except ChildProcessError:
            pass
        for command in [*self._commands.values()]:
            if command.pid in ended:
                command.status = ended[command.pid]
                if command.deadline:
                    self._forget(command)
                else:
                    self._pass_on(command)
            elif command.deadline and time.monotonic() > command.deadline:
                command.signal(SIGKILL)


def main() -> None:
    """Serve the host until it ends the VM."""
    make_links()
    port = HostPort()
    port.send(messages.READY)
    Guest(port).serve()


def make_links() -> None:
    """Make the links in /dev that udev makes on other systems."""
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def prepare(request: dict[str, Any]) -> None:
    """Set the guest up: set the clock, load modules, turn swap on.

    Raises:
        OSError: A module can't be loaded, or there is no swap.
    """
    # Debian's arm64 kernels have the driver of the hardware clock as a module, and begin in 1970.
    if time.time() < request["time"]:
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
    write("/proc/sys/kernel/hostname", "physview-vm")
    write("/sys/class/net/lo/flags", hex(IFF_UP))
    link_modules(request["kernel_modules"])
    for path in request["modules"]:
        insert_module(path, request["finit_module"])
    if request["swap_mib"]:
        turn_swap_on(request["swap_mib"])


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


if __name__ == "__main__":
    main()
