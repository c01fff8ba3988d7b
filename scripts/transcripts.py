# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the transcripts in docs/labs.md, of real runs in throwaway VMs.

A block is a comment and what is fenced behind it:

    <!-- transcript: OPTIONS OF physview vm; lines=N -->
    ```
    $ sudo ./scripts/run COMMAND
    what it printed
    ```

Blocks with the same options share a VM. A block of whose commands physview knows one not, or of
which one was used wrongly, is left as it is, and said so. The home folder is written as ~.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "labs.md"
BLOCK = re.compile(r"^<!-- transcript: (.*?)(?:; lines=(\d+))? -->\n```\n(.*?)^```$", re.M | re.S)
USED_WRONGLY = 2


class Block(NamedTuple):
    """One transcript of the page."""

    options: str
    nr_lines: int | None
    commands: tuple[str, ...]


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    output: str
    code: int


def blocks(text: str) -> list[Block]:
    """The transcripts of a page."""
    return [_block(match) for match in BLOCK.finditer(text)]


def _block(match: re.Match[str]) -> Block:
    commands = (line[2:] for line in match[3].splitlines() if line.startswith("$ "))
    return Block(match[1], int(match[2]) if match[2] else None, tuple(commands))


def in_guest(command: str) -> str:
    """The command as the VM's root has it: there physview is on PATH."""
    return command.replace("sudo ", "").replace("./scripts/run ", "physview ")


def fill(text: str, results: dict[Block, list[Result]]) -> str:
    """Put what was printed into the page."""

    def replace(match: re.Match[str]) -> str:
        block = _block(match)
        if block not in results:
            return match[0]
        lines = []
        for command, result in zip(block.commands, results[block], strict=True):
            printed = result.output.rstrip("\n").splitlines()
            if block.nr_lines is not None and len(printed) > block.nr_lines:
                printed = [*printed[: block.nr_lines], "…"]
            lines += [f"$ {command}", *printed]
        head, _, _ = match[0].partition("```\n")
        return head + "```\n" + "".join(f"{line}\n" for line in lines) + "```"

    return BLOCK.sub(replace, text)


def run_blocks(options: str, wanted: list[Block]) -> dict[Block, list[Result]]:
    """Run blocks in one VM; those that can't be run yet are left out."""
    # Not in the VM: there nothing but the commands may have physview's library mapped.
    from physview import kernels, module, vm

    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--module")
    parser.add_argument("--la57", default="off")
    parser.add_argument("--swap", type=int, default=0)
    parser.add_argument("--append", default="")
    args = parser.parse_args(options.split())
    kernel = kernels.find_kernel(args.kernel, _say)
    modules = []
    if args.module != "none":
        modules.append(kernels.build_module(kernel, module.source_dir()))
    stdout = io.BytesIO()
    outcome = vm.run(
        kernel,
        [sys.executable, __file__, "--inside", str(kernel.image), json.dumps(wanted)],
        modules=modules,
        la57=args.la57 == "on",
        swap_mib=args.swap,
        append=args.append,
        cwd=ROOT,
        stdout=stdout,
        say=_say,
    )
    if outcome.exit_code:
        sys.exit(f"transcripts: the VM's part failed: {outcome}")
    found = {}
    for block, results in zip(wanted, json.loads(stdout.getvalue()), strict=True):
        printed = [Result(*result) for result in results]
        if any(result.code == USED_WRONGLY for result in printed):
            _say(f"left as it is: {block.commands[0]}: {printed[-1].output.strip()}")
        else:
            found[block] = printed
    return found


def inside(image: str, wanted: Iterable[list[object]]) -> None:
    """In the VM: run the commands, and print what they printed as JSON."""
    installed = Path("/boot") / f"vmlinuz-{os.uname().release}"
    if not installed.exists():  # as on a machine that has this kernel installed
        installed.parent.mkdir(exist_ok=True)
        installed.symlink_to(image)
    answers = []
    for _, _, commands in wanted:
        assert isinstance(commands, list)
        answers.append([_run(in_guest(command)) for command in commands])
        print(f"transcripts: {commands[0]}", file=sys.stderr, flush=True)
    json.dump(answers, sys.stdout)


def _run(command: str) -> Result:
    done = subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    return Result(output.replace(str(Path.home()), "~"), done.returncode)


def _say(message: str) -> None:
    print(f"transcripts: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Renew the page, or those of its transcripts that have one of the words."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], json.loads(sys.argv[3]))
        return
    words = sys.argv[1:] or [""]
    text = PAGE.read_text()
    wanted = [one for one in blocks(text) if any(word in "".join(one.commands) for word in words)]
    if not wanted:
        sys.exit(f"transcripts: no command in {PAGE} has {' or '.join(words)}")
    results: dict[Block, list[Result]] = {}
    for options in dict.fromkeys(block.options for block in wanted):
        found = run_blocks(options, [one for one in wanted if one.options == options])
        results.update(found)
        with tempfile.NamedTemporaryFile("w", dir=PAGE.parent, delete=False) as file:
            file.write(fill(PAGE.read_text(), results))
        os.chmod(file.name, 0o644)
        os.replace(file.name, PAGE)


if __name__ == "__main__":
    main()
