# SPDX-License-Identifier: GPL-2.0-or-later
"""What the messages tell root to do, where root of a container may do less."""

import os
import subprocess
import time

import pytest
from failures import one_line
from users import AS_NOBODY

# Linux 6.16 shows memory for CAP_PERFMON (cap_38), too, which is part of CAP_SYS_ADMIN.
_DROPPED = "-sys_ptrace,-cap_38,-sys_admin"
PTRACE = ["setpriv", f"--bounding-set={_DROPPED}", f"--inh-caps={_DROPPED}"]
ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


@pytest.fixture
def stranger():
    """The pid of another user's process."""
    child = subprocess.Popen([*AS_NOBODY, "sleep", "600"])
    while os.stat(f"/proc/{child.pid}").st_uid == 0 or "sleep" not in _comm(child.pid):
        time.sleep(0.01)
    yield child.pid
    child.kill()
    child.wait()


def _comm(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read()


@pytest.mark.needs("root", "nobody")
@pytest.mark.parametrize("words", [["maps"], ["pages"], ["snapshot", "-o", "/tmp/no-file"]])
def test_root_is_not_told_to_become_root(physview, stranger, words):
    """As in a container, for a process whose capabilities root of the container lacks."""
    line = one_line(physview(words[0], str(stranger), *words[1:], prefix=PTRACE), 1)
    assert f"you may not examine process {stranger}" in line
    assert "run as root" not in line
    assert "root lacks CAP_SYS_PTRACE here, as in a container" in line
    assert "docker run --cap-add SYS_PTRACE" in line


@pytest.mark.needs("root", "kpage")
@pytest.mark.parametrize("words", [["frames"], ["owners", "pfn:0x1"]])
def test_root_without_the_capability_for_frames(physview, words):
    line = one_line(physview(*words, prefix=ADMIN), 1)
    assert "run as root" not in line
    assert "root lacks CAP_SYS_ADMIN here" in line


@pytest.mark.needs("root", "nobody")
def test_processes_that_are_left_out_name_what_lacks(physview, stranger):
    assert os.path.exists(f"/proc/{stranger}")
    result = physview("maps", "--all", "--rollup", prefix=PTRACE)
    assert "left out: you may not examine" in result.stderr
    assert "root lacks CAP_SYS_PTRACE here" in result.stderr


@pytest.mark.needs("userns", "no-capabilities")
def test_root_of_a_user_namespace_is_told_so(physview):
    line = one_line(physview("frames", prefix=["unshare", "-Ur"]), 1)
    assert "in a user namespace" in line
