# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs among a kernel's headers, run by the loader and the libraries of another Debian."""

import shutil
import subprocess
from pathlib import Path

import pytest

from physview.kernels import headers

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@pytest.mark.skipif(not LOADER.exists(), reason="kernels are fetched for x86-64 only")
def test_a_tool_is_run_by_the_loader_that_was_unpacked_not_by_this_machines(tmp_path):
    """Debian 12 packs an absolute link to its loader, too: here it leads to what is no loader."""
    libraries = tmp_path / "host"
    real = libraries / "lib/x86_64-linux-gnu" / LOADER.name
    link = libraries / "lib" / LOADER.name  # found first: it is in a folder above
    real.parent.mkdir(parents=True)
    shutil.copy(LOADER, real)
    link.symlink_to(shutil.which("false"))
    for line in subprocess.run(
        ["ldd", shutil.which("true")], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if " => /" in line:
            shutil.copy(line.split()[2], real.parent)
    tool = tmp_path / "tools" / "true"
    tool.parent.mkdir()
    shutil.copy(shutil.which("true"), tool)
    headers.wrap_tools([tool], libraries)
    assert tool.read_bytes().startswith(b"#!/bin/sh")
    assert subprocess.run([tool], check=False).returncode == 0
