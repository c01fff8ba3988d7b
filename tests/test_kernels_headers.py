# SPDX-License-Identifier: GPL-2.0-or-later
"""Host programs of kernel headers run with the loader and the libraries of another Debian."""

import os
import shutil
import subprocess

from physview.kernels import headers
from physview.kernels.apt import own_architecture

# The name that is looked for; what it is here is this machine's own, of whatever kind.
LOADER = headers.LOADERS[own_architecture()]


def test_a_tool_runs_with_the_unpacked_loader_not_with_this_machines(tmp_path):
    """Debian 12 packs an absolute link to its loader, too: here it leads to what is no loader."""
    libraries = tmp_path / "host"
    real = libraries / f"lib/{os.uname().machine}-linux-gnu" / LOADER
    link = libraries / "lib" / LOADER  # found first: it is in a folder above
    real.parent.mkdir(parents=True)
    link.symlink_to(shutil.which("false"))
    program = shutil.which("true")
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
    for words in map(str.split, listed.stdout.splitlines()):
        if words[1] == "=>":  # libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)
            shutil.copy(words[2], real.parent)
        elif words[0].startswith("/"):
            shutil.copy(words[0], real)
    tool = tmp_path / "tools" / "true"
    tool.parent.mkdir()
    shutil.copy(program, tool)
    headers.wrap_tools([tool], libraries)
    assert tool.read_bytes().startswith(b"#!/bin/sh")
    assert subprocess.run([tool], check=False).returncode == 0
