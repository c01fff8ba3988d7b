# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way in which physview starts another Python interpreter.

`python -m` puts the working directory first on the module path, and PYTHONPATH comes before the
standard library. So whoever owns a folder in which root types a command could run code as root.
A child is therefore isolated (-I), is started by the absolute path of a file of this package, in
the root directory, and without any PYTHON* variable.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from physview.errors import PhysviewError
from physview.runtime import invocation

if TYPE_CHECKING:
    import subprocess

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START = os.path.join(_PACKAGE, "__main__.py")
"""Imports the package that it lies in, from there and from nowhere else."""

WORKING_DIRECTORY = "/"


def script(path: str, *options: str) -> list[str]:
    """The command that runs a file in an isolated interpreter.

    Args:
        path: The file.
        options: Further options of the interpreter, as "-S".

    Returns:
        Program and arguments, all absolute.

    Raises:
        PhysviewError: Python does not know which program it is.
    """
    if not os.path.isabs(sys.executable or ""):
        raise PhysviewError(
            "cannot start another Python",
            "this one does not know the path of its own program (sys.executable)",
            "start physview by its path",
        )
    # -I ignores PYTHONDONTWRITEBYTECODE, too: root would leave caches in a user's checkout.
    no_caches = ["-B"] if sys.dont_write_bytecode else []
    return [sys.executable, "-I", *no_caches, *options, os.path.abspath(path)]


def command(module: str, *args: str) -> list[str]:
    """The command that calls `main()` of a module of this package.

    Args:
        module: Its full name, as "physview.commands".
        args: Its arguments, in sys.argv[1:].
    """
    return [*script(START), invocation.CHILD_OPTION, _about_us(), module, *args]


def environment() -> dict[str, str]:
    """Ours without what Python and its libraries take modules and options from.

    The rest stays: a C library's tunables, or a locale, are part of what is looked at.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def start(module: str, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that calls `main()` of a module of this package.

    Args:
        module: Its full name, as "physview.commands".
        args: Its arguments, in sys.argv[1:].
        options: Further ones of subprocess.Popen.

    Raises:
        OSError: There is no memory, or no process, to be had.
    """
    import subprocess

    return subprocess.Popen(
        command(module, *args), cwd=WORKING_DIRECTORY, env=environment(), **options
    )


def _about_us() -> str:
    """What a child cannot find out: where the core's Python package is, which -I may hide (a
    user's own site-packages), and what the person typed, for advice."""
    import json

    backend = getattr(sys.modules.get("_cffi_backend"), "__file__", None)
    folders = [os.path.dirname(os.path.abspath(backend))] if backend else []
    return json.dumps({"folders": folders, "typed": invocation.typed()})
