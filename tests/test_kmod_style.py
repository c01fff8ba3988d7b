# SPDX-License-Identifier: GPL-2.0-or-later
"""checkpatch and kernel-doc, the kernel's own tools, find nothing in the module's source."""

import subprocess

import pytest
from paths import ROOT

from physview import kernels

KMOD = ROOT / "csrc/kmod"
SOURCES = sorted([*KMOD.glob("*.[ch]"), *KMOD.glob("uapi/*.h")])


@pytest.mark.needs("checkpatch.pl", "perl")
def test_checkpatch_has_nothing_to_say():
    command = ["checkpatch.pl", "--strict", "--no-tree", "--no-summary", "--terse", "--file"]
    result = subprocess.run([*command, *SOURCES], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.needs("kernels", "perl")
def test_kernel_doc_has_nothing_to_say():
    headers = kernels.find_kernel("6.1").headers
    script = next(headers.parents[2].glob("usr/lib/linux-kbuild-*/scripts/kernel-doc"))
    command = ["perl", script, "-v", "-none", "-Werror", *SOURCES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "physicalview_walk_table" in result.stderr  # it has looked
