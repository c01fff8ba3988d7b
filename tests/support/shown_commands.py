# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the commands that the documentation shows."""

import contextlib
import os
import re

import command_server
import documented

# Commands that are ended by their pid, or that another user runs, cannot be forks of the server.
OWN_PROCESS = re.compile(r"&|\bsetpriv\b|\btimeout\b")


def run_as_shown(block, *, as_printed=False, client=None):
    """Run the commands of a block, check their exit codes, and return their results.

    With `as_printed`, they run ./scripts/run in the checkout, and not an installed physview. In a
    guest, and where a folder with the client is given, an installed physview is run in forks where
    it can be: see command_server.py.
    """
    client = os.environ.get(command_server.CLIENT_VARIABLE, client)
    if any(OWN_PROCESS.search(command) for command in block.commands):
        client = None
    with contextlib.nullcontext() if as_printed else physview_in_forks(client):
        results = documented.run(block, as_printed=as_printed)
    for command, result, code in zip(block.commands, results, block.exits, strict=True):
        # A lab also exits with 1 on a machine that differs from most machines.
        assert result.code in ({code, 1} if " lab " in command else {code}), result.output
        assert "Traceback" not in result.output
    return results


@contextlib.contextmanager
def physview_in_forks(client):
    """Let `physview` be the client of the command server, if there is a folder that has it."""
    server = command_server.server() if client else None
    if not server:
        yield
        return
    before = os.environ.copy()
    os.environ[command_server.ADDRESS_VARIABLE] = server.address
    os.environ["PATH"] = f"{client}:{os.environ['PATH']}"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
