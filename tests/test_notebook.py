# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/notebook.ipynb runs from its first cell to its last, without a terminal."""

import os
import subprocess
import sys

import nbformat
import pytest
from paths import ROOT
from users import AS_NOBODY

NOTEBOOK = ROOT / "docs/notebook.ipynb"
RUN = [sys.executable, "-B", str(ROOT / "tests/support/run_notebook.py"), str(NOTEBOOK)]


def run(prefix, folder):
    """Run the notebook in a session of its own, and return it with its outputs."""
    target = folder / "out.ipynb"
    done = subprocess.run(
        [*prefix, *RUN, str(target)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return nbformat.read(target, as_version=4)


def outputs(notebook):
    """What each cell of code shows: by MIME type."""
    return [
        {
            kind: text
            for output in cell.outputs
            for kind, text in (output.get("data") or {output.name: output.text}).items()
        }
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def check(shown):
    assert sum("image/png" in each for each in shown) >= 4
    html = [each["text/html"] for each in shown if "text/html" in each]
    assert any("<table><caption>mappings of process" in text for text in html)
    assert any("data:image/svg+xml;base64," in text for text in html)
    assert not any("<script" in text for text in html)


def test_it_runs(tmp_path):
    shown = outputs(run([], tmp_path))
    check(shown)
    if os.geteuid() == 0:
        assert "image/png" in shown[-1]


@pytest.mark.needs("nobody")
def test_it_runs_without_privileges(open_folder):
    folder = open_folder / "nobody"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    shown = outputs(run(AS_NOBODY, folder))
    check(shown)
    assert "run as root" in shown[-1]["stdout"]


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
