# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/ci in a root directory of its own. test_vm_ci.py tests the part in VMs."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from paths import ROOT

CI = ROOT / "scripts/ci"


def run(*command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **options
    )


def processes_with(word):
    """The processes whose command line has a word as an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it is gone
            continue
        if word.encode() in arguments:
            found.append(path.parent.name)
    return found


def mounts():
    """The mounts, but for those in temporary folders, which are other tests'."""
    lines = Path("/proc/self/mounts").read_bytes().split(b"\n")
    return [line for line in lines if f" {tempfile.gettempdir()}/".encode() not in line]


@pytest.mark.needs("mountns")
def test_a_command_in_a_root_leaves_no_mount_and_no_process_behind(tmp_path):
    # This machine's own root as another "/": its /proc, /sys and /dev are mounted anew.
    before = mounts()
    seconds = str(100_000 + os.getpid())
    shell = f"setsid sleep {seconds} & ls /dev; echo $$ >/dev/null; exit 7"
    result = run(
        CI / "in-root", "/", "sh", "-c", shell, env=os.environ | {"PHYSVIEW_VM_ACCEL": "tcg"}
    )
    assert result.returncode == 7, result.stderr
    names = set(result.stdout.split())
    assert {"null", "zero", "pts", "shm", "fd"} <= names
    assert "kvm" not in names
    deadline = time.monotonic() + 10
    while processes_with(seconds) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_with(seconds)
    assert mounts() == before


@pytest.mark.needs("mountns", "userns")
def test_a_command_in_a_root_may_make_user_namespaces():
    result = run(CI / "in-root", "/", "unshare", "--user", "--map-root-user", "id", "-u")
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "usage: fresh ROOT"),
        (["trixie", "--as", "nobody"], "fresh knows no user nobody"),
        (["trixie", "--do", "dance"], "fresh knows no command dance"),
        (["trixie", "--as"], "usage: fresh ROOT"),
    ],
)
def test_fresh_names_what_it_does_not_know(arguments, why):
    result = run(CI / "fresh", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"ci: {why}")
    assert result.stderr.count("\n") == 1
