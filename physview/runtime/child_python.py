# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts Python child processes that import nothing from untrusted folders.

`python -m` puts the working directory first on the module path, and PYTHONPATH comes before the
standard library. If root typed a command in a folder of another user, that user could run code as
root. So a child is isolated (-I), runs a file of this package by its absolute path, in the root
directory, without any PYTHON* variable. All Python children of physview are started here.
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
"""The file that a child runs. It imports physview from its own folder and from nowhere else."""

WORKING_DIRECTORY = "/"


def script(path: str, *options: str) -> list[str]:
    """The command that runs a file in an isolated interpreter.

    Args:
        path: The file.
        options: Further options of the interpreter, such as "-S".

    Returns:
        The program and its arguments; all paths are absolute.

    Raises:
        PhysviewError: The absolute path of the interpreter is unknown.
    """
    if not os.path.isabs(sys.executable or ""):
        raise PhysviewError(
            "cannot start another Python",
            "this one does not know the path of its own program (sys.executable)",
            "start physview by its path",
        )
    # -I ignores PYTHONDONTWRITEBYTECODE, too. Without -B, root would write __pycache__ folders into
    # a user's checkout.
    no_caches = ["-B"] if sys.dont_write_bytecode else []
    return [sys.executable, "-I", *no_caches, *options, os.path.abspath(path)]


def command(module: str, *args: str) -> list[str]:
    """The command that calls `main()` of a module of this package.

    Args:
        module: Full name of the module, such as "physview.commands".
        args: The arguments, which `main()` finds in sys.argv[1:].
    """
    return [*script(START), invocation.CHILD_OPTION, _parent_info(), module, *args]


def environment() -> dict[str, str]:
    """The environment of a child: this process's without the PYTHON* variables.

    The other variables stay, because they affect the memory that is examined: for example the
    locale and the tunables of the C library.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def start(module: str, *args: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that calls `main()` of a module of this package.

    Args:
        module: Full name of the module, such as "physview.commands".
        args: The arguments, which `main()` finds in sys.argv[1:].
        options: Further arguments of subprocess.Popen.

    Raises:
        OSError: The process cannot be started, for example because of a limit.
    """
    import subprocess

    return subprocess.Popen(
        command(module, *args), cwd=WORKING_DIRECTORY, env=environment(), **options
    )


def _parent_info() -> str:
    """What a child cannot find out itself, as JSON.

    folders: where the package cffi is, because -I may hide a user's own site-packages. typed: the
    command line that the user typed, for advice in messages.
    """
    import json

    backend = getattr(sys.modules.get("_cffi_backend"), "__file__", None)
    folders = [os.path.dirname(os.path.abspath(backend))] if backend else []
    return json.dumps({"folders": folders, "typed": invocation.typed()})
