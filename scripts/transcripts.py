# SPDX-License-Identifier: GPL-2.0-or-later
"""Renews the transcripts and screens of the documentation by real runs, most in throwaway VMs.

`documented.py` describes their format. Blocks of all pages with the same options share a VM. If a
block has another exit code than its page says, it is not changed, and a message names it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import documented
from documented import ROOT, Block, Result

Outcomes = dict[Block, list[Result] | str]
HERE = "here"


def run_blocks(where: str, wanted: list[Block]) -> Outcomes:
    """Run blocks here, or in one VM. Leave out those with an unexpected exit code."""
    answers = _run_all(wanted) if where == HERE else _run_in_vm(where, wanted)
    found: Outcomes = {}
    for block, answer in zip(wanted, answers, strict=True):
        codes = tuple(result.code for result in answer) if isinstance(answer, list) else ()
        if codes and codes != block.exits:
            assert isinstance(answer, list)
            _say(f"not changed: {block.commands}: exit codes {codes}: {answer[-1].output}")
        else:
            found[block] = answer
    return found


def _run_in_vm(options: str, wanted: list[Block]) -> list[list[Result] | str]:
    # Imported here, and not in the VM: only the commands there may map physview's library.
    from physview import kernels, vm
    from physview.system import module

    parser = argparse.ArgumentParser()
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--module")
    parser.add_argument("--la57", default="off")
    parser.add_argument("--swap", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--append", default="")
    args = parser.parse_args(options.split())
    kernel = kernels.find_kernel(args.kernel, _say)
    modules = []
    if args.module != "none":
        modules.append(kernels.build_module(kernel, module.source_dir()))
    stdout = io.BytesIO()
    outcome = vm.run(
        kernel,
        [sys.executable, __file__, "--inside", json.dumps(wanted)],
        modules=modules,
        la57=args.la57 == "on",
        swap_mib=args.swap,
        nodes=args.nodes,
        append=args.append,
        cwd=ROOT,
        stdout=stdout,
        say=_say,
    )
    if outcome.exit_code:
        sys.exit(f"transcripts: the VM's part failed: {outcome}")
    answers = json.loads(stdout.getvalue())
    return [
        answer if isinstance(answer, str) else [Result(*result) for result in answer]
        for answer in answers
    ]


def inside(wanted: Iterable[list[object]]) -> None:
    """In the VM: run the commands, and print their output as JSON."""
    json.dump(_run_all([Block(*block) for block in wanted]), sys.stdout)


def _run_all(wanted: Iterable[Block]) -> list[list[Result] | str]:
    answers: list[list[Result] | str] = []
    for block in wanted:
        _say(block.commands[-1])
        if block.size:
            import terminal_picture

            answers.append(terminal_picture.draw(block))
        else:
            answers.append(documented.run(block))
    return answers


def renew(page: Path, outcomes: Outcomes) -> None:
    """Write the outputs into a page, and the pictures into their files."""
    shown = {block: found for block, found in outcomes.items() if isinstance(found, list)}
    text = page.read_text()
    filled = documented.fill(text, shown)
    if filled != text:
        _write(page, filled)
    for block in documented.blocks(text):
        svg = outcomes.get(block)
        if isinstance(svg, str):
            _write(page.parent / block.picture, svg)


def _write(path: Path, text: str) -> None:
    from physview.files.atomic_file import whole_file

    with whole_file(str(path), overwrite=True, private=False) as file:
        file.write(text.encode())


def _say(message: str) -> None:
    print(f"transcripts: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Renew all blocks, or those whose page or commands contain one of the words."""
    if sys.argv[1:2] == ["--inside"]:
        inside(json.loads(sys.argv[2]))
        return
    words = sys.argv[1:] or [""]
    wanted = [
        block
        for page in documented.PAGES
        for block in documented.blocks(page.read_text())
        if any(word in f"{page.relative_to(ROOT)}\n{' '.join(block.commands)}" for word in words)
    ]
    if not wanted:
        sys.exit(f"transcripts: no page and no command contains {' or '.join(words)}")
    for where in dict.fromkeys(block.where for block in wanted):
        outcomes = run_blocks(where, [one for one in wanted if one.where == where])
        for page in documented.PAGES:
            renew(page, outcomes)


if __name__ == "__main__":
    main()
