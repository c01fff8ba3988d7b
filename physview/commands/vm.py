# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in a virtual machine with the kernel module loaded, as root.

Without a command, vm opens a shell in a throwaway VM. With a command, it runs that. Either way, the
VM ends with it. start boots a VM that stays, exec and shell use it from any terminal, stop ends it,
and list shows all. A VM that was started ends by itself when the terminal session in which it was
started ends, or when no command has run in it for an hour. clean removes kernels, modules and root
folders that were downloaded or built for VMs, and that none has used for long.

The VM uses this machine's root file system: it sees all files that you may read. The VM's changes
to files are lost when it ends. The command runs as root in the VM. If it is no program but a
command of physview, physview runs it. Its input, its output, including control characters, and its
exit code are passed on unchanged. physview's own exit codes are 123 (the VM's kernel crashed), 124
(the command took too long) and 125 (the VM did not start, or was lost).

The environment variable PHYSVIEW_VM_ACCEL=kvm or tcg chooses KVM or emulation. The default is KVM
where it works.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from physview.commands import _common
from physview.errors import Unsupported, UsageError
from physview.runtime import invocation

if TYPE_CHECKING:
    from pathlib import Path

    from physview.kernels import Kernel

NAME = "vm"
HELP = "a shell or a command in a VM, with any kernel, and with the kernel module loaded"
ACTIONS = ("start", "exec", "shell", "list", "stop", "clean")
USAGE = (
    f"physview {NAME} [OPTIONS] [-- CMD…], or"
    f" physview {NAME} {'|'.join(ACTIONS)} [NAME] [OPTIONS] [-- CMD…]"
)
FOREIGN = ("arm64", "arm64-16k", "arm64-64k")
"""Architectures that are emulated: flavours of kernels."""

X86_64 = "x86_64"
FOREIGN_KERNEL = "6.12"
SHELL = ["bash", "--rcfile", "/dev/null"], ["sh"]
"""What `shell` runs, and what it runs where the first is missing.

The user's own ~/.bashrc is left out: it may start dozens of programs, which takes long in an
emulator, or put another physview first in PATH.
"""

# With less, Debian's kernels do not get as far as to say why they end.
LEAST_MEMORY_MIB = 96

_MACHINE = ("kernel", "arch", "la57", "memory", "cpus", "nodes", "module", "append", "swap")
_ALLOWED = {
    "": (*_MACHINE, "timeout", "console"),
    "start": (*_MACHINE, "idle", "stay"),
    "exec": ("timeout",),
    "shell": (),
    "list": ("json",),
    "stop": ("all",),
    "clean": ("older_than", "dry_run", "json"),
}
"""The options of each action."""


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = USAGE
    _add_machine_options(parser)
    parser.add_argument(
        "--timeout",
        type=_common.duration(0.001),
        metavar="S",
        help="end the command after S seconds (or 5m, 2h)",
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's log on stderr")
    parser.add_argument(
        "--idle",
        type=_common.whole_units("minutes", 60),
        metavar="MIN",
        default=60,
        help="with start: end the VM when no command has run in it for so many minutes,"
        " or as 2h (default: 60)",
    )
    parser.add_argument(
        "--stay",
        action="store_true",
        help="with start: do not end the VM with this terminal session",
    )
    parser.add_argument("--all", action="store_true", help="with stop: stop all VMs")
    parser.add_argument(
        "--older-than",
        type=_common.whole_units("days", 86400, least=0, most=36_500),
        metavar="DAYS",
        default=30,
        help="with clean: what was used in so many last days stays (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with clean: remove nothing, only list it"
    )
    parser.add_argument(
        "--json", action="store_true", help="with list and clean: print one JSON document"
    )
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="what to run")
    parser.set_defaults(own_parser=parser)


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel",
        metavar="X",
        help="a version of Debian's kernel, such as 6.1, or of Ubuntu's, such as 6.8, which is"
        " downloaded but not installed; or the path of your own image with virtio, 9p and"
        " overlayfs built in (default: the running kernel; if it is not available, Debian's 6.1"
        " or the first version in Ubuntu's mirror)",
    )
    parser.add_argument(
        "--arch",
        choices=(*FOREIGN, X86_64),
        help="emulate another architecture, with Debian's kernel and programs for it, which are"
        " downloaded but not installed; arm64-16k has pages of 16 KiB, arm64-64k of 64 KiB: Debian"
        " has no such kernel, ./scripts/build-kernel builds it (default: this machine's)",
    )
    parser.add_argument(
        "--la57",
        choices=("on", "off"),
        default="off",
        help="page tables with 5 levels, not 4 (default: off)",
    )
    parser.add_argument(
        "--memory",
        type=_common.count(least=LEAST_MEMORY_MIB),
        metavar="MIB",
        default=1024,
        help="the VM's RAM (default: %(default)s)",
    )
    parser.add_argument(
        "--cpus", type=_common.count(), metavar="N", default=2, help="number of CPUs (default: 2)"
    )
    parser.add_argument(
        "--nodes",
        type=_common.count(),
        metavar="N",
        default=1,
        help="number of NUMA nodes, which share the memory and the CPUs (default: 1)",
    )
    parser.add_argument(
        "--module",
        metavar="FILE",
        help="load this .ko; none: load nothing (default: build and load physview's own)",
    )
    parser.add_argument(
        "--append",
        metavar="WORDS",
        default="",
        help="add words to the kernel's command line, such as 'hugepages=8';"
        " NAME.PARAMETER=VALUE is also given to a module that is loaded",
    )
    parser.add_argument(
        "--swap",
        type=_common.count(),
        metavar="MIB",
        help="give the VM swap of this size, in its own compressed memory (zram)",
    )


def run(args: argparse.Namespace) -> int:
    """Run a command in a VM, or do what the action says."""
    from physview.commands import _vm_actions

    if args.command and args.command[0] in ACTIONS:
        action, name, args = _parse_action(args)
        _refuse_other_options(action, args)
        return _vm_actions.ACTIONS[action](name, args)
    _refuse_other_options("", args)
    _refuse_misspelt_action(args.command)
    return _run_in_throwaway_vm(args)


def _refuse_misspelt_action(words: list[str]) -> None:
    """Refuse a word that is like an action, is no program, and has no -- before it."""
    import shutil

    from physview.text.nearest import nearest

    near = nearest(words[0], ACTIONS) if words[:1] not in ([], ["--"]) else []
    if near and not otherwise(words) and shutil.which(words[0]) is None:
        remedy = f"do you mean {' or '.join(near)}? Put -- before a command of the VM"
        raise UsageError(f"vm has no action '{words[0]}'", "", remedy)


def _parse_action(args: argparse.Namespace) -> tuple[str, str | None, argparse.Namespace]:
    """Parse what follows an action: its name, and options before and after it."""
    action, *words = args.command
    at = words.index("--") if "--" in words else len(words)
    words, command = words[:at], words[at + 1 :]
    name = None
    while words:
        args.command = []
        args = args.own_parser.parse_args(words, args)
        words = args.command
        if words and name is not None:
            remedy = f"put -- before a command: {invocation.physview('vm exec [NAME] -- CMD…')}"
            raise UsageError(f"vm {action} takes one name", f"not '{words[0]}' as well", remedy)
        if words:
            name, *words = words
    args.command = command
    if action == "exec" and not args.command:
        raise UsageError("nothing to run", "", invocation.physview("vm exec [NAME] -- CMD…"))
    if action != "exec" and args.command:
        raise UsageError(f"vm {action} runs no command", "", invocation.physview("vm exec -- CMD…"))
    return action, name, args


def _refuse_other_options(action: str, args: argparse.Namespace) -> None:
    """Refuse options that the action does not take."""
    for option in sorted({name for names in _ALLOWED.values() for name in names}):
        is_given = getattr(args, option) != args.own_parser.get_default(option)
        if is_given and option not in _ALLOWED[action]:
            where = [f"vm {each}".rstrip() for each, names in _ALLOWED.items() if option in names]
            what = f"vm {action}".rstrip() + f" takes no --{option.replace('_', '-')}"
            raise UsageError(what, "", f"it belongs to {' and '.join(where)}")


def _run_in_throwaway_vm(args: argparse.Namespace) -> int:
    import sys

    from physview import vm
    from physview.text import output

    check_machine(args)
    # argparse.REMAINDER keeps the first "--". A later "--" belongs to the command.
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    kernel = find_kernel(args)
    outcome = vm.run(
        kernel,
        command or SHELL[0],
        otherwise=otherwise(command) if command else SHELL[1],
        timeout=args.timeout,
        stdin=None if sys.stdin is None else 0,
        is_terminal=vm.has_terminal(),
        console=output.unfiltered(sys.stderr) if args.console else None,
        say=_common.say_lines,
        **machine_options(args, kernel),
    )
    return outcome.exit_code


def check_machine(args: argparse.Namespace) -> None:
    """Check for QEMU, and for a cross-compiler, before anything is downloaded or built."""
    from physview.vm import qemu

    if args.arch in FOREIGN and args.la57 == "on":
        why = "only x86-64 has this choice"
        raise UsageError("--arch and --la57 exclude each other", why, "leave out one")
    machine = foreign_machine(args)
    if machine == X86_64:
        why = "physview makes root folders for VMs of arm64 only"
        raise Unsupported("no VM of x86-64 here", why, "use an x86-64 machine, or leave out --arch")
    qemu.check_installed(machine)
    if machine:
        from physview.kernels import foreign_package, foreign_root

        foreign_package.check_tools(foreign_root.ARM64)


def foreign_machine(args: argparse.Namespace) -> str:
    """Return the VM's architecture as in `uname -m`; "" if it is this machine's."""
    machine = X86_64 if args.arch == X86_64 else "aarch64"
    return machine if args.arch and machine != os.uname().machine else ""


def otherwise(command: list[str]) -> list[str]:
    """Return what to run if a command is no program: the command of physview, if it is one."""
    from physview.commands import COMMANDS

    return ["physview", *command] if command[0] in COMMANDS else []


def find_kernel(args: argparse.Namespace) -> Kernel:
    """Find the kernel to boot that the options name."""
    if args.arch and "/" not in (args.kernel or ""):
        version = args.kernel or FOREIGN_KERNEL
        name = "amd64" if args.arch == X86_64 else args.arch
        return _fetch_kernel(version, builds=not args.module, architecture=name)
    return _find_kernel(args.kernel, builds=not args.module)


def machine_options(args: argparse.Namespace, kernel: Kernel) -> dict[str, Any]:
    """Return the options of the machine as arguments of `vm.plan()`. It may build the module."""
    modules = _modules(args.module, kernel)
    return {
        **(_foreign_options(kernel, modules) if foreign_machine(args) else {}),
        "modules": modules,
        "la57": args.la57 == "on",
        "memory_mib": args.memory,
        "cpus": args.cpus,
        "nodes": args.nodes,
        "append": args.append,
        "swap_mib": args.swap or 0,
    }


def _foreign_options(kernel: Kernel, modules: list[Path]) -> dict[str, Any]:
    """Return the options for another architecture. The root folder and the package may be made."""
    from physview.vm.foreign import arm64_root

    folders = [path.absolute().parent for path in modules]
    folders += [kernel.modules] if kernel.modules.is_dir() else []
    return {"foreign": arm64_root(_common.say), "shares": folders}


def _find_kernel(wanted: str | None, *, builds: bool = True) -> Kernel:
    """Find the kernel to boot.

    Args:
        wanted: A version, the path of an image, or None for the running kernel.
        builds: Whether a module is built for it.
    """
    from pathlib import Path

    from physview import kernels, vm

    if wanted and "/" in wanted:
        image = Path(wanted).absolute()
        return kernels.Kernel(image.name, image, image.parent / "no-modules", None)
    if wanted:
        return _fetch_kernel(wanted, builds=builds)
    kernel, why = None, "its image and modules cannot be read"
    try:
        kernel = kernels.running_kernel() or kernels.fetch_own_image(_common.say)
    except Unsupported as error:
        why = str(error)
    if kernel and not (why := vm.why_unbootable(kernel)):
        return kernel
    release = os.uname().release
    whose, version = kernels.fallback_version()
    _common.say(f"not the running kernel {release}: {why}; trying {whose}'s {version}")
    return _fetch_kernel(version, builds=builds)


def _fetch_kernel(version: str, *, builds: bool, architecture: str = "") -> Kernel:
    from physview import kernels

    if builds:  # look before a hundred megabytes are fetched in vain
        what = f"cannot build a module for Linux {version}"
        kernels.check_folder(kernels.cache_dir("kernels"), what)
    if architecture:
        return kernels.find_kernel(version, _common.say, architecture=architecture)
    return kernels.find_kernel(version, _common.say)


def _modules(wanted: str | None, kernel: Kernel) -> list[Path]:
    from pathlib import Path

    from physview import kernels
    from physview.system import module

    if wanted:
        return [] if wanted == "none" else [Path(wanted)]
    return [kernels.build_module(kernel, module.source_dir())]
