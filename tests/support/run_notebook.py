# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a notebook in a kernel of its own, and writes it with its outputs: run_notebook.py IN OUT"""

import os
import sys

import nbformat
from nbclient import NotebookClient


def main(source: str, target: str) -> None:
    notebook = nbformat.read(source, as_version=4)
    folder = os.path.dirname(os.path.abspath(target))
    # The settings of this user's own Jupyter must not matter; nobody has no home.
    os.environ |= {"HOME": folder, "IPYTHONDIR": folder, "JUPYTER_CONFIG_DIR": folder}
    os.environ |= {"JUPYTER_DATA_DIR": folder, "JUPYTER_RUNTIME_DIR": folder}
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    nbformat.write(notebook, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
