# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a command in a VM: builds the initramfs, boots, and returns the command's exit code."""

from __future__ import annotations

import marshal
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeVar

from physview.errors import PhysviewError
from physview.runtime import child_python, invocation, proc_mount, syscalls
from physview.text import output
from physview.vm import guest, initramfs, messages, qemu
from physview.vm.attachment import Attachment
from physview.vm.failures import VmLost, VmTimeout, VmUnusable
from physview.vm.session import Session

BOOT_TIMEOUTS = {qemu.KVM: 30.0, qemu.TCG: 180.0}
"""The longest time until the guest is ready, in seconds. TCG is slow on a busy machine."""

SILENCE_TIMEOUTS = {qemu.KVM: 15.0, qemu.TCG: 60.0}
"""Seconds without a line in the kernel's log after which the kernel counts as hung.

The kernel logs nothing while it is decompressed.
"""

PACKAGE = Path(__file__).parents[1]

STREAM = 1
"""The stream of the only command in a VM."""

T = TypeVar("T")

# zram does not always depend on the module of its default compressor (5.10, 6.1).
SWAP_MODULES = ("lzo_rle", "zram")


class Bootable(Protocol):
    """A kernel that `run()` can boot. physview.kernels.Kernel is one."""

    @property
    def image(self) -> Path:
        """The kernel's image, a bzImage."""

    @property
    def modules(self) -> Path:
        """The kernel's folder lib/modules/RELEASE, installed or unpacked anywhere."""


class VmResult(NamedTuple):
    """The result of a command in a VM.

    Args:
        exit_code: The command's exit code in the shell's convention: 128 + N if signal N killed
            the command, 126 or 127 if the command could not be started.
        accelerator: "kvm" or "tcg".
        boot_seconds: The time from QEMU's start until the guest was ready, in seconds.
        nr_lost: The number of VMs that were lost before this one.
    """

    exit_code: int
    accelerator: str
    boot_seconds: float
    nr_lost: int


class ForeignRoot(NamedTuple):
    """A root folder for a VM of another architecture, which cannot use this machine's programs.

    Args:
        machine: The architecture, as in `uname -m`.
        folder: The root folder.
        python: The path of Python in it.
        package: The folder of physview for this architecture, with `physview` and `bin` in it.
    """

    machine: str
    folder: Path
    python: str
    package: Path


class Plan(NamedTuple):
    """A VM that can be booted.

    Args:
        machine: QEMU's configuration.
        archive: The initramfs.
        setup: The setup of the guest.
        foreign: The root folder of another architecture, or None.
        uses: What must stay in the cache as long as the VM runs: files and folders.
    """

    machine: qemu.QemuMachine
    archive: bytes
    setup: dict[str, Any]
    foreign: ForeignRoot | None = None
    uses: tuple[Path, ...] = ()


def plan(
    kernel: Bootable,
    *,
    modules: Sequence[Path] = (),
    la57: bool = False,
    memory_mib: int = 1024,
    cpus: int = 2,
    nodes: int = 1,
    append: str = "",
    swap_mib: int = 0,
    qmp_fd: int | None = None,
    foreign: ForeignRoot | None = None,
    shares: Sequence[Path] = (),
) -> Plan:
    """Plan a VM over this machine's root folder, or over one of another architecture.

    Args:
        kernel: The kernel to boot.
        modules: Modules (.ko) to load. They get their parameters from the kernel's command line,
            NAME.PARAMETER=VALUE, as with modprobe.
        la57: Whether page tables have five levels instead of four.
        memory_mib: The size of the VM's RAM in MiB.
        cpus: The number of the VM's CPUs.
        nodes: The number of NUMA nodes. Memory and CPUs are divided among them.
        append: Further words for the kernel's command line, such as "hugepages=8".
        swap_mib: The size of the swap area in MiB. It is in the guest's RAM, compressed (zram).
        qmp_fd: A connected socket at which QEMU speaks QMP; None for no QMP.
        foreign: The root folder of another architecture.
        shares: With `foreign`: folders of this machine that the guest sees at the same paths.

    Raises:
        VmUnusable: QEMU could not open the initramfs.
        Unsupported: The kernel lacks a required driver.
    """
    qemu.check_installed(foreign.machine if foreign else "")
    missing = proc_mount.why_no_file("/proc/self/fd")
    if missing:  # QEMU opens the initramfs as /dev/fd/N
        raise VmUnusable("no VM can be started", *missing)
    name, root, seen = "", Path("/"), tuple(shares)
    process_1 = child_python.script(guest.__file__, "-S")
    if foreign:
        name, root, seen = foreign.machine, foreign.folder, (foreign.package, *shares)
        script = foreign.package / "physview" / Path(guest.__file__).relative_to(PACKAGE)
        process_1 = [foreign.python, "-I", "-B", "-S", str(script)]
    machine = qemu.QemuMachine(
        *(Path(kernel.image), memory_mib, cpus, la57, append, nodes, qmp_fd, name, root, seen)
    )
    extra = SWAP_MODULES if swap_mib else ()
    folder = Path(kernel.modules)
    archive = initramfs.make(folder, process_1, extra, machine=name, shares=seen)
    setup = {
        "modules": [os.path.abspath(path) for path in modules],
        "kernel_modules": os.path.abspath(kernel.modules),
        "finit_module": syscalls.NUMBERS[machine.architecture]["finit_module"],
        "swap_mib": swap_mib,
        "time": time.time(),
    }
    uses = (machine.image, folder, machine.root, *seen, *modules)
    return Plan(machine, archive, setup, foreign, uses)


def boot(
    planned: Plan,
    use: Callable[[Session], T],
    *,
    boot_timeout: float | None = None,
    console: BinaryIO | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> T:
    """Boot a VM, use it, and end it. If it is lost before it was of use, boot another one.

    Args:
        planned: The VM.
        use: Called with the VM, which is set up.
        boot_timeout: The longest duration of the boot in seconds; BOOT_TIMEOUTS by default.
        console: The file that receives the kernel's log; none by default.
        say: Called with a message if a VM was lost and another is started, or if KVM may hang.

    Returns:
        What `use` returned.

    Raises:
        VmLost: Two VMs died or did not boot.
        VmUnusable: QEMU is missing, or the guest can't load a module.
    """
    accelerators = list(planned.machine.accelerators())
    for nr_lost, accelerator in enumerate(accelerators):
        with Session(
            planned.machine, accelerator, planned.archive, console, planned.uses
        ) as session:
            session.nr_lost = nr_lost
            try:
                session.boot(
                    planned.setup,
                    boot_timeout or BOOT_TIMEOUTS[accelerator],
                    SILENCE_TIMEOUTS[accelerator],
                    say,
                )
                if (
                    accelerator == qemu.TCG
                    and qemu.KVM in accelerators
                    and _tells_of_kvm(planned.machine)
                    and qemu.remember_that_kvm_fails()
                ):
                    say("no VM will try KVM again until this machine is rebooted")
                return use(session)
            except VmLost as lost:
                if session.was_used or nr_lost == len(accelerators) - 1:
                    raise
                following = accelerators[nr_lost + 1]
                how = f"with {following}" if following != accelerator else "once more"
                say(str(lost))
                say(f"trying {how}")
    raise AssertionError("the last accelerator returns or raises")


def _tells_of_kvm(machine: qemu.QemuMachine) -> bool:
    """Whether KVM fails for all kernels if it fails for this one.

    A kernel with pages of 16 or 64 KiB ends at once on an arm64 processor without them. No file
    says which pages a processor has.
    """
    return not machine.image.name.endswith(("-16k", "-64k"))


def run(
    kernel: Bootable,
    command: Sequence[str],
    *,
    otherwise: Sequence[str] = (),
    timeout: float | None = None,
    boot_timeout: float | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    is_terminal: bool = False,
    console: BinaryIO | None = None,
    say: Callable[[str], object] = lambda message: None,
    **machine: Any,
) -> VmResult:
    """Run a command as root in a throwaway VM over this machine's root folder.

    The guest sees every file that the caller may read. Its writes are lost when the VM ends.

    Args:
        kernel: The kernel to boot.
        command: The program and its arguments. The program is searched in the guest's PATH.
        otherwise: The command to run if there is no such program.
        timeout: The longest duration of the command in seconds; None for no limit.
        boot_timeout: As for `boot()`.
        cwd: The command's working folder; the caller's by default.
        env: The command's environment; the caller's by default. PATH also gets the folder of the
            running physview, /usr/sbin and /sbin. HOME is replaced if it can't be written.
        stdin: The descriptor of the command's input; None for an empty input.
        stdout, stderr: The files that receive the command's output while it runs; the caller's by
            default.
        is_terminal: Whether stdin and stdout are this process's terminal. The command then gets a
            terminal of its own, and each key.
        console: As for `boot()`.
        say: As for `boot()`.
        machine: Further arguments of `plan()`.

    Raises:
        KernelCrashed: The guest's kernel oopsed or panicked.
        VmLost: Two VMs died or did not boot.
        VmTimeout: The command took longer than its timeout.
        VmUnusable: QEMU is missing, or the guest can't load a module or enter the folder.
        Unsupported: The kernel lacks a required driver.
    """
    request = command_request(command, otherwise, cwd, env)
    if foreign := machine.get("foreign"):
        request = foreign_request(request, foreign)
        if cwd:
            request["cwd"] = str(cwd)

    def use(session: Session) -> VmResult:
        link = _OnlyCommand(session)
        attachment = Attachment(
            link.send,
            stdin,
            stdout or output.unfiltered(sys.stdout),
            stderr or output.unfiltered(sys.stderr),
            is_terminal=is_terminal,
        )
        code = wait_for_command(link, attachment, request, timeout)
        return VmResult(code, session.accelerator, session.boot_seconds, session.nr_lost)

    planned = plan(kernel, **machine)
    return boot(planned, use, boot_timeout=boot_timeout, console=console, say=say)


class CommandLink(Protocol):
    """The way to a VM for one command."""

    def start(self, request: dict[str, Any]) -> None:
        """Start the command."""

    def send(self, kind: int, content: bytes = b"") -> None:
        """Send a message of the command's stream."""

    def wait(
        self, deadline: float | None, readers: Collection[Any] = ()
    ) -> tuple[list[messages.Message], set[Any]]:
        """As `Session.wait()`."""

    def ended_error(self) -> PhysviewError:
        """Return the error for a command that had not ended when the VM ended."""


class _OnlyCommand:
    """The way to a VM that this process has booted, for its only command."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.wait = session.wait
        self.ended_error = session.ended_error

    def start(self, request: dict[str, Any]) -> None:
        self._session.send(messages.RUN, STREAM, marshal.dumps(request, messages.MARSHAL_VERSION))

    def send(self, kind: int, content: bytes = b"") -> None:
        self._session.send(kind, STREAM, content)


def wait_for_command(
    link: CommandLink, attachment: Attachment, request: dict[str, Any], timeout: float | None
) -> int:
    """Run a command and wait for its end.

    Args:
        link: The way to the VM.
        attachment: The files or the terminal of the command.
        request: Of `command_request()`.
        timeout: The longest duration of the command in seconds; None for no limit.

    Returns:
        The command's exit code.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    link.start(request | {"terminal": attachment.request})
    with attachment:
        while True:
            try:
                until = _earlier(deadline, attachment.longest_wait)
                received, readable = link.wait(until, attachment.readers())
            except TimeoutError:
                if deadline is None or time.monotonic() < deadline:
                    continue
                why = f"it took more than {timeout:g} s"
                raise VmTimeout("the command was ended", why) from None
            except EOFError:
                raise link.ended_error() from None
            attachment.read(readable)
            for kind, _, content in received:
                code = attachment.receive(kind, content)
                if code is not None:
                    return code


def _earlier(deadline: float | None, seconds: float | None) -> float | None:
    """Return the earlier of a deadline and a time that is so many seconds away; None for never."""
    times = [deadline, None if seconds is None else time.monotonic() + seconds]
    return min((each for each in times if each is not None), default=None)


def command_request(
    command: Sequence[str],
    otherwise: Sequence[str] = (),
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the guest needs to know of a command, besides its terminal. As for `run()`."""
    return {
        "command": list(command),
        "otherwise": list(otherwise),
        "cwd": os.path.abspath(cwd or "."),
        "env": _environment(os.environ if env is None else env),
    }


def foreign_request(request: Mapping[str, Any], foreign: ForeignRoot) -> dict[str, Any]:
    """Return a request for a VM of another architecture, which has not the caller's files.

    Args:
        request: Of `command_request()`. Of its environment, only what describes the terminal stays.
        foreign: The root folder of the VM.
    """
    kept = ("TERM", "COLORTERM", "NO_COLOR", "COLUMNS", "LINES")
    environment = {name: value for name, value in request["env"].items() if name in kept} | {
        "PATH": f"{foreign.package}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    return {**request, "env": environment, "cwd": "/root"}


def why_unbootable(kernel: Bootable) -> str:
    """Return why `run()` can't boot a kernel, judged by its modules; "" if it can."""
    try:
        initramfs.make(Path(kernel.modules), ["/"])
    except PhysviewError as error:
        return str(error)
    return ""


def _environment(caller: Mapping[str, str]) -> dict[str, str]:
    environment = dict(caller)
    folders = [*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/sbin"]
    scripts = os.path.dirname(sys.executable)
    if invocation.is_self_contained():
        scripts = f"{PACKAGE.parent}/bin"
    if os.path.exists(f"{scripts}/physview"):
        folders.insert(0, scripts)
    environment["PATH"] = ":".join(dict.fromkeys(filter(None, folders)))
    return environment
