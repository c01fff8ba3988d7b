# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the commands that the documentation shows."""

import documented


def run_as_shown(block, *, as_printed=False):
    """Run the commands of a block, check their exit codes, and return their results.

    With `as_printed`, they run ./scripts/run in the checkout, and not an installed physview.
    """
    results = documented.run(block, as_printed=as_printed)
    for command, result, code in zip(block.commands, results, block.exits, strict=True):
        # A lab also exits with 1 on a machine that differs from most machines.
        assert result.code in ({code, 1} if " lab " in command else {code}), result.output
        assert "Traceback" not in result.output
    return results
