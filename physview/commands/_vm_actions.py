# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs that are started by name, and their cache: start, exec, shell, list, stop and clean."""

from __future__ import annotations

import argparse
import sys

from physview.commands import _common
from physview.commands import vm as command
from physview.errors import UsageError
from physview.runtime import invocation


def start(name: str | None, args: argparse.Namespace) -> int:
    """Boot a VM that stays."""
    from physview import vm
    from physview.vm import keeper, owner, running

    name = running.check_name(name or running.DEFAULT_NAME)
    with running.opened_folder() as folder:
        if name in running.names(folder):  # before anything is downloaded or built
            raise running.taken(name)
    command.check_machine(args)
    kernel = command.find_kernel(args)
    planned = vm.plan(kernel, **command.machine_options(args, kernel))
    leader = None if args.stay else owner.find()
    description = {
        "name": name,
        "release": kernel.release,
        "machine": planned.machine.architecture,
        "memory_mib": args.memory,
        "cpus": args.cpus,
        "owner": leader,
        "idle_minutes": args.idle,
    }
    told = keeper.start(
        name,
        planned,
        description,
        owner=leader,
        idle_seconds=args.idle * 60,
        say=_common.say_lines,
    )
    print(f"the VM {name} runs Linux {told['release']} ({told['accelerator'].upper()})")
    own = "" if name == running.DEFAULT_NAME else f" {name}"
    print(f"work in it: {invocation.physview(f'vm shell{own}')}, in as many terminals as you want")
    end = f"when no command has run in it for {args.idle} min"
    if leader is not None:
        end = f"with this terminal session, or {end}"
    print(f"end it: {invocation.physview(f'vm stop{own}')}; it also ends {end}")
    return 0


def execute(name: str | None, args: argparse.Namespace) -> int:
    """Run a command in a VM that runs."""
    return _execute(name, args.command, command.otherwise(args.command), args.timeout)


def shell(name: str | None, args: argparse.Namespace) -> int:
    """Open a shell in a VM that runs."""
    return _execute(name, *command.SHELL, None)


def _execute(
    name: str | None, words: list[str], otherwise: list[str], timeout: float | None
) -> int:
    from physview import vm
    from physview.vm import client, running

    with running.opened_folder() as folder:
        return client.execute(
            folder,
            running.choose(folder, name),
            words,
            otherwise=otherwise,
            timeout=timeout,
            stdin=None if sys.stdin is None else 0,
            is_terminal=vm.has_terminal(),
        )


def show(name: str | None, args: argparse.Namespace) -> int:
    """List the VMs that run."""
    from physview.reporters import vm as reporter
    from physview.vm import client, running

    if name is not None:
        raise UsageError("vm list takes no name", "", invocation.physview("vm list"))
    with running.opened_folder() as folder:
        found = [
            client.describe(folder, each) or {"name": each, "release": None, "commands": []}
            for each in running.names(folder)
        ]
    if args.json:
        reporter.write_json(found)
    else:
        reporter.write_table(found)
    return 0


def stop(name: str | None, args: argparse.Namespace) -> int:
    """Stop a VM."""
    from physview.vm import client, running

    if name is not None and args.all:
        raise UsageError("vm stop takes a name or --all, not both")
    with running.opened_folder() as folder:
        chosen = running.names(folder) if args.all else [running.choose(folder, name)]
        for each in chosen:
            client.stop(folder, each)
            print(f"the VM {each} has ended")
    return 0


def clean(name: str | None, args: argparse.Namespace) -> int:
    """Remove from the cache what has not been used for long."""
    from physview.kernels import cache_dir, unused
    from physview.reporters import vm as reporter

    if name is not None:
        raise UsageError("vm clean takes no name", "", invocation.physview("vm clean"))
    found = unused.find_unused(args.older_than)
    if not args.dry_run:
        found = [each for each in found if unused.remove(each)]
        unused.remove_stale_locks()
    removed = [each._asdict() for each in found]
    cleaned = reporter.Cleaned(str(cache_dir()), removed, unused.size_of_cache(), args.dry_run)
    if args.json:
        reporter.write_cleaned_json(cleaned)
    else:
        reporter.write_cleaned(cleaned)
    return 0


ACTIONS = {
    "start": start,
    "exec": execute,
    "shell": shell,
    "list": show,
    "stop": stop,
    "clean": clean,
}
