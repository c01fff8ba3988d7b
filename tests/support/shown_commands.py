# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the commands that the documentation shows."""

import documented


def run_as_shown(block):
    results = documented.run(block)
    for command, result, code in zip(block.commands, results, block.exits, strict=True):
        # A lab tells of the machine it runs on: 1 is one that is not as most are.
        assert result.code in ({code, 1} if " lab " in command else {code}), result.output
        assert "Traceback" not in result.output
    return results
