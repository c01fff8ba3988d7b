# SPDX-License-Identifier: GPL-2.0-or-later
"""CI's job that builds, loads and compares the module, in a VM with another kernel."""

import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.needs("all-kernels", "vm", "kernel-6.1", "insmod")
def test_the_modules_job_passes_on_another_kernel():
    vm = [sys.executable, "-m", "physview", "vm", "--kernel", "6.1", "--module", "none", "--"]
    # Emulated, and it compiles twice: a minute and a half alone, several beside other work.
    result = subprocess.run(
        [*vm, ROOT / "scripts/ci/module"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\n0 unexplained\n") == 7
    assert "ci: the module on 6.1" in result.stderr
