# SPDX-License-Identifier: GPL-2.0-or-later
"""A pid from a number, a name or `self`."""

import os
import subprocess

import pytest
from memory import libc

from physview import ProcessGone, UsageError
from physview.runtime.resolve_pid import find_pid

PR_SET_NAME = 15


def test_numbers_and_self():
    assert find_pid("self") == "self"
    assert find_pid("1234") == 1234
    assert find_pid("0012") == 12


@pytest.mark.parametrize("text", ["-1", "+5"])
def test_signed_numbers_are_no_pids(text):
    with pytest.raises(UsageError, match="is no pid"):
        find_pid(text)


def test_a_name_finds_the_process_by_comm_or_by_program(tmp_path):
    program = tmp_path / "a-name-longer-than-fifteen-bytes"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        assert find_pid("a-name-longer-than-fifteen-bytes") == process.pid
        assert find_pid("a-name-longer-t") == process.pid
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessGone, match="no process is named"):
        find_pid("a-name-longer-t")


def test_this_process_is_not_found_by_its_name():
    name = f"pv-{os.getpid()}"
    libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    with pytest.raises(ProcessGone, match=f"no process is named '{name}'"):
        find_pid(name)
