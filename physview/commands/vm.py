# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a command in a throwaway VM with the kernel module loaded.

The VM uses this machine's root file system: it sees all files that you may read. The VM's changes
to files are lost when it ends. The command runs as root in the VM. Its output, including control
characters, and its exit code are passed on unchanged. physview's own exit codes are 123 (the VM's
kernel crashed), 124 (the command took too long) and 125 (the VM did not start, or was lost).

The environment variable PHYSVIEW_VM_ACCEL=kvm or tcg chooses KVM or emulation. The default is KVM
where it works.
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
HELP = "a command in a throwaway VM, with any kernel, and with the kernel module loaded"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = f"physview {NAME} [OPTIONS] -- CMD…"
    parser.add_argument(
        "--kernel",
        metavar="X",
        help="a version of Debian's kernel, such as 6.1, or of Ubuntu's, such as 6.8, which is"
        " downloaded but not installed; or the path of your own image with virtio, 9p and"
        " overlayfs built in (default: the running kernel; if it is not available, Debian's 6.1"
        " or the first version in Ubuntu's mirror)",
    )
    parser.add_argument(
        "--la57",
        choices=("on", "off"),
        default="off",
        help="page tables with 5 levels, not 4 (default: off)",
    )
    parser.add_argument(
        "--memory",
        type=_common.count(),
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
    parser.add_argument(
        "--timeout",
        type=_common.seconds(0.001),
        metavar="S",
        help="end the command after S seconds",
    )
    parser.add_argument("--console", action="store_true", help="show the kernel's log on stderr")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="what to run")


def run(args: argparse.Namespace) -> int:
    """Run the command in a VM."""
    import sys

    from physview import vm
    from physview.text import output

    # argparse.REMAINDER keeps the first "--". A later "--" belongs to the command.
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("nothing to run", "", invocation.physview("vm [OPTIONS] -- CMD…"))
    kernel = _find_kernel(args.kernel, builds=not args.module)
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


def _fetch_kernel(version: str, *, builds: bool) -> Kernel:
    from physview import kernels

    if builds:  # look before a hundred megabytes are fetched in vain
        what = f"cannot build a module for Linux {version}"
        kernels.check_folder(kernels.cache_dir("kernels"), what)
    return kernels.find_kernel(version, _common.say)


def _modules(wanted: str | None, kernel: Kernel) -> list[Path]:
    from pathlib import Path

    from physview import kernels
    from physview.system import module

    if wanted:
        return [] if wanted == "none" else [Path(wanted)]
    return [kernels.build_module(kernel, module.source_dir())]
