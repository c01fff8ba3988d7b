# SPDX-License-Identifier: GPL-2.0-or-later
"""The advised line for a missing package works in each kind of environment. The tests run it.

The lines for `uv tool` and pipx need a package index: test_packaging.py has them.
"""

import glob
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

from physview.runtime import invocation

UV = Path(sys.prefix) / "bin/uv"
SYSTEM_PYTHON = "/usr/bin/python3"
ENSUREPIP = pytest.mark.needs("ensurepip")
ASK = f"""
import sys
sys.path.append({str(ROOT)!r})
from physview.runtime.install_advice import install_line
print(install_line(sys.argv[1:], ["parquet"]))
"""


def advice(python, *packages):
    command = [python, "-I", "-c", ASK, *packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def tiny(tmp_path):
    """A wheel with a single module, which installs without an index."""
    path = tmp_path / "tiny_package-1-py3-none-any.whl"
    about = "tiny_package-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_package.py", "")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return str(path)


def make(tmp_path, kind):
    folder = tmp_path / "an environment"
    command = [sys.executable, "-m", "venv", folder]
    if kind == "uv":
        command = [UV, "venv", "-q", "--offline", "--python", sys.executable, folder]
    elif kind == "no pip":
        command.append("--without-pip")
    subprocess.run(command, check=True, capture_output=True)
    return str(folder / "bin/python")


@pytest.mark.parametrize(
    ("kind", "start"),
    [
        ("uv", "uv pip install --python '{python}' "),
        pytest.param("pip", "'{python}' -I -m pip install ", marks=ENSUREPIP),
        pytest.param(
            "no pip", "'{python}' -I -m ensurepip && '{python}' -I -m pip install ", marks=ENSUREPIP
        ),
    ],
)
def test_the_line_installs_a_package_where_it_is_typed(tmp_path, tiny, kind, start):
    python = make(tmp_path, kind)
    line = advice(python, tiny)
    assert line.startswith(start.format(python=python)), line
    traps = tmp_path / "traps"
    traps.mkdir()
    for name in ("pip", "ensurepip", "os"):
        (traps / f"{name}.py").write_text("raise SystemExit('a trap')\n")
    path = f"{UV.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=traps, env=os.environ | {"PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subprocess.run([python, "-I", "-c", "import tiny_package"], check=True)


@pytest.mark.needs("managed-python")
def test_a_distributions_python_is_left_alone():
    line = advice(SYSTEM_PYTHON, "pyarrow")
    assert line.endswith(": pipx install 'physview[parquet]'")
    assert "-m pip" not in line


def test_in_a_python_of_ones_own_pip_starts_where_no_one_else_can_put_a_module():
    names = [*(f"python3.{minor}" for minor in range(10, 20)), f"{sys.base_prefix}/bin/python3"]
    found = [path for path in map(shutil.which, names) if path and "shims" not in path]
    found += glob.glob(os.path.expanduser("~/.pyenv/versions/3.1?.*/bin/python3"))
    lines = {python: advice(python, "pyarrow") for python in found}
    own = {python: line for python, line in lines.items() if "this Python" not in line}
    if not own:
        pytest.skip("every Python here is its distribution's, or has no pip")
    for python, line in own.items():
        assert line in (
            f"(cd / && {python} -m pip install pyarrow)",
            invocation.as_root(f"{python} -I -m pip install pyarrow"),
        )
