# SPDX-License-Identifier: GPL-2.0-or-later
"""Build, load and unload the kernel module on this machine, and show its status.

build needs a compiler and the headers of the running kernel. load and unload need root. load
builds the module first.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import ModuleUnavailable
from physview.reporters import documents
from physview.runtime import invocation

if TYPE_CHECKING:
    from pathlib import Path

NAME = "module"
HELP = "the kernel module on this machine: build, load, unload, status"


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("action", choices=("build", "load", "unload", "status"))
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="with load: let every user look at their own memory, as the course's module does",
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    from physview.system import module

    if args.action == "build":
        print(_build())
    elif args.action == "load":
        module.load(_build(), insecure=args.insecure)
    elif args.action == "unload":
        module.unload()
    if args.action == "status" or args.json:
        return _print_status(args.json)
    return 0


def _build() -> Path:
    import os

    from physview import kernels
    from physview.runtime import packages
    from physview.system import module

    kernel = kernels.running_kernel(to_boot=False)
    if kernel is None or kernel.headers is None:
        otherwise = f"use a throwaway VM: {invocation.in_vm('…')}{module.or_bpf()}"
        why, remedy = packages.why_no_headers(os.uname().release, otherwise)
        raise ModuleUnavailable("cannot build the module", why, remedy)
    _common.say(f"building for {kernel.release}")
    return kernels.build_module(kernel, module.source_dir())


def _print_status(as_json: bool) -> int:
    from physview.sources import kmod
    from physview.system import module

    status = module.status()
    if as_json:
        documents.write(status._asdict())
    elif not status.loaded:
        print(f"{kmod.NAME} is not loaded")
    else:
        own = f"version {status.version}" if status.version else "not physview's own"
        rights = "every user" if status.insecure else "root"
        users = "1 user" if status.users == 1 else f"{status.users} users"
        sys.stdout.write(f"{kmod.NAME} is loaded: {own}, for {rights}, {users}\n")
    return int(not status.loaded)
