# SPDX-License-Identifier: GPL-2.0-or-later
"""pagemap shows frame numbers if its opener had CAP_SYS_ADMIN at that time."""

import os
import subprocess
import sys

import pytest
from memory import Region, libc
from users import WITHOUT_CAPABILITIES

from physview import AccessDenied, Cause, Process

pytestmark = pytest.mark.needs("root", "pfn")

NOBODY = 65534
PR_SET_DUMPABLE = 4


def in_child(work):
    """Run `work` in a forked child and return what it printed as a string."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, repr(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def become_nobody():
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.mark.parametrize("source", ["pagemap", "reference"])
def test_frames_are_hidden_after_dropping_privilege_and_shown_through_what_root_opened(source):
    def look():
        region = Region(1).touch()
        with Process(source=source) as opened_by_root:
            become_nobody()
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # setuid() made /proc/self root's
            with Process(source=source) as opened_by_nobody:
                shown = opened_by_root.translate(region.start)
                hidden = opened_by_nobody.translate(region.start)
        return shown.paddr is not None, hidden.cause, hidden.entry.present, hidden.pfn

    assert in_child(look) == repr((True, Cause.HIDDEN, True, None))


def test_after_setuid_a_process_may_not_even_look_at_itself():
    def look():
        become_nobody()
        try:
            Process()
        except AccessDenied as error:
            return error.errno, error.pid == os.getpid()
        return None

    assert in_child(look) == repr((13, True))


@pytest.mark.needs("no-capabilities")
def test_uid_0_without_the_capability_sees_no_frames_and_is_told_why():
    command = [*WITHOUT_CAPABILITIES, sys.executable, "-m", "physview", "memview"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "root lacks CAP_SYS_ADMIN" in result.stderr
    assert result.stdout.count("UNKNOWN") == 40


@pytest.mark.needs("userns", "no-capabilities")
def test_a_root_of_its_own_user_namespace_only_sees_nothing():
    """CapEff has all capabilities, but they are valid in the user namespace only."""
    command = ["unshare", "-Ur", sys.executable, "-m", "physview", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        "in a user namespace, where capabilities do not give access to frame numbers"
        in result.stdout
    )
    assert "frame numbers are hidden" in result.stdout


def test_swap_entries_and_pages_of_no_privilege_are_told_apart():
    def look():
        region = Region(2).touch(0)
        with Process() as process:
            become_nobody()
            libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            with Process() as hidden:
                answers = [hidden.translate(page).cause for page in region.pages]
            assert process.translate(region.start).paddr
        return answers

    assert in_child(look) == repr([Cause.HIDDEN, Cause.ABSENT])
