# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command in a throwaway VM over this machine's own root, with the kernel module loaded.

The VM sees all files that you may read here; what it writes is gone with it. The command runs as
root in it. Its output, including control characters, and its exit code are passed on
unchanged. physview's own exit codes are 123: the VM's kernel crashed, 124: the command took too
long, 125: there was no VM, or it was lost.

PHYSVIEW_VM_ACCEL=kvm or tcg chooses how the CPU is had; by default KVM where that works.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import Unsupported, UsageError
from physview.runtime import invocation

if TYPE_CHECKING:
    from pathlib import Path

    from physview.kernels import Kernel

NAME = "vm"
HELP = "a command in a throwaway VM, on a kernel of choice, with the kernel module loaded"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = f"physview {NAME} [OPTIONS] -- CMD…"
    parser.add_argument(
        "--kernel",
        metavar="X",
        help="a version of Debian's kernel, such as 6.1, or of Ubuntu's, such as 6.8, which is"
        " fetched but not installed; or the path of an image of your own with virtio, 9p and"
        " overlayfs built in (default: the running kernel; if that cannot be had, Debian's 6.1"
        " or the first version of Ubuntu's mirror)",
    )
    parser.add_argument(
        "--la57", choices=("on", "off"), default="off", help="page tables of 5 levels, not 4"
    )
    parser.add_argument(
        "--memory",
        type=_common.count(),
        metavar="MIB",
        default=1024,
        help="its RAM (default: %(default)s)",
    )
    parser.add_argument(
        "--cpus", type=_common.count(), metavar="N", default=2, help="its CPUs (default: 2)"
    )
    parser.add_argument(
        "--nodes",
        type=_common.count(),
        metavar="N",
        default=1,
        help="its NUMA nodes, among which memory and CPUs are dealt out (default: 1)",
    )
    parser.add_argument(
        "--module",
        metavar="FILE",
        help="load this .ko; none: load nothing (default: build physview's own and load that)",
    )
    parser.add_argument(
        "--append",
        metavar="WORDS",
        default="",
        help="more of the kernel's command line, as 'hugepages=8'; NAME.PARAMETER=VALUE is"
        " also given to a module that is loaded",
    )
    parser.add_argument(
        "--swap",
        type=_common.count(),
        metavar="MIB",
        help="swap, so much of it, into compressed memory of the VM's own (zram)",
    )
    parser.add_argument(
        "--timeout",
        type=_common.seconds(0.001),
        metavar="S",
        help="end the command after so many seconds",
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's log on stderr")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="what to run")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    import sys

    from physview import vm
    from physview.text import output

    # REMAINDER leaves the first of them in; others are the command's own.
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("nothing to run", "", invocation.physview("vm [OPTIONS] -- CMD…"))
    kernel = _find_kernel(args.kernel)
    outcome = vm.run(
        kernel,
        command,
        modules=_modules(args.module, kernel),
        la57=args.la57 == "on",
        memory_mib=args.memory,
        cpus=args.cpus,
        nodes=args.nodes,
        timeout=args.timeout,
        append=args.append,
        swap_mib=args.swap or 0,
        console=output.unfiltered(sys.stderr) if args.console else None,
        say=_common.say_lines,
    )
    return outcome.exit_code


def _find_kernel(wanted: str | None) -> Kernel:
    from pathlib import Path

    from physview import kernels, vm

    if wanted and "/" in wanted:
        image = Path(wanted).absolute()
        return kernels.Kernel(image.name, image, image.parent / "no-modules", None)
    if wanted:
        return kernels.find_kernel(wanted, _common.say)
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
    return kernels.find_kernel(version, _common.say)


def _modules(wanted: str | None, kernel: Kernel) -> list[Path]:
    from pathlib import Path

    from physview import kernels
    from physview.system import module

    if wanted:
        return [] if wanted == "none" else [Path(wanted)]
    return [kernels.build_module(kernel, module.source_dir())]
