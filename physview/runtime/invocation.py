# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines in messages that work as they are typed here, for physview and for root.

`physview` alone is often not a command: its environment is not in PATH or in sudo's secure_path,
or physview runs from a checkout. `sudo` may be missing, and root does not need it. Every message
that names a command gets the command line from this module.
"""

from __future__ import annotations

import os
import shlex
import sys

CHILD_OPTION = "--physview-child"
"""By this option `__main__.py` knows that `child_python` started it."""

# The folders that every secure_path of sudo has. Fedora's lacks /usr/local/bin.
SECURE_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

_AS_ROOT = "as root: "
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_typed: list[str] = []


def typed() -> list[str]:
    """The arguments that the person typed: in a child, those of the first physview."""
    return _typed or sys.argv


def remember_typed(words: list[str]) -> None:
    """Tell a child what `typed()` is."""
    _typed[:] = words


def physview(words: str) -> str:
    """A command line of physview, as this user can type it here.

    Args:
        words: What comes after "physview"; may have places to fill in, as "maps PID".
    """
    return f"{_program(for_sudo=False)} {words}"


def physview_as_root(words: str) -> str:
    """A command line of physview for root to run; the same as `physview()` if we are root."""
    if os.geteuid() == 0:
        return physview(words)
    return as_root(f"{_program(for_sudo=True)} {words}")


def again_as_root() -> str:
    """The advice to run the command line that was typed once more, as root."""
    line = physview_as_root(shlex.join(typed()[1:])).rstrip()
    return f"run {line}" if line.startswith(_AS_ROOT) else f"run as root: {line}"


def as_root(command: str) -> str:
    """A command line that needs root: with sudo where it is needed and installed.

    Args:
        command: Any command, quoted for a shell.
    """
    if os.geteuid() == 0:
        return command
    return f"sudo {command}" if _has_sudo() else _AS_ROOT + command


def write_as_root(value: str, path: str) -> str:
    """The command line that writes a word to one of the kernel's files."""
    if os.geteuid() == 0:
        return f"echo {value} >{path}"
    return f"echo {value} | sudo tee {path}" if _has_sudo() else f"{_AS_ROOT}echo {value} >{path}"


def load_own_module() -> str:
    """How to replace a loaded module with physview's own."""
    load = physview_as_root("module load")
    return f"load physview's own: {physview_as_root('module unload')}, then {load}"


def module_or_vm(words: str) -> str:
    """How a command gets the module: here, if the kernel can load modules, or in a throwaway VM.

    Args:
        words: The command, after "physview".
    """
    vm = f"in a throwaway VM: {in_vm(words)}"
    if not os.path.exists("/proc/modules"):
        return vm
    return f"{physview_as_root('module load')}, or {vm}"


def build_core() -> str:
    """How to get the compiled core."""
    return _checkout_run() or "install physview again, for this Python"


def in_vm(words: str, options: str = "") -> str:
    """The command line that runs a command of physview in a throwaway VM.

    Args:
        words: The command, after "physview".
        options: Of physview vm.
    """
    return physview(" ".join(filter(None, ["vm", options, f"-- physview {words}"])))


def _has_sudo() -> bool:
    return _which("sudo") is not None


def _which(name: str) -> str | None:
    import shutil

    found = shutil.which(name)
    # A relative folder in PATH depends on the working directory, which may be another user's.
    return found if found and os.path.isabs(found) else None


def _program(*, for_sudo: bool) -> str:
    """The shortest form that works here, quoted for a shell."""
    script = _script()
    if script is None:
        # No script is installed: run a file by its path, which needs no module path.
        return shlex.join([sys.executable, "-I", f"{_PACKAGE}/__main__.py"])
    if not for_sudo and _is_same(_which("physview"), script):
        return "physview"
    run = _checkout_run()
    if run and script.startswith(f"{os.path.dirname(_PACKAGE)}/.venv/"):
        return run
    if for_sudo and os.path.dirname(script) in SECURE_FOLDERS:
        return "physview"
    return shlex.quote(script)


def _checkout_run() -> str:
    """scripts/run of the checkout that the package lies in, or nothing."""
    root = os.path.dirname(_PACKAGE)
    run = f"{root}/scripts/run"
    if not os.path.isfile(run):
        return ""
    return "./scripts/run" if _is_same(root, ".") else shlex.quote(run)


def _script() -> str | None:
    """The installed script: the one that was started, or this interpreter's own."""
    started = typed()[0] if typed() else ""
    folders = [os.path.dirname(sys.executable or ""), _user_scripts()]
    for path in (started, *(f"{folder}/physview" for folder in folders if folder)):
        if os.path.basename(path) == "physview" and os.path.isfile(path):
            return os.path.abspath(path)
    return None


def _user_scripts() -> str:
    """Where `pip install --user` puts scripts, where the package is one of those."""
    base = getattr(sys.modules.get("site"), "USER_BASE", None)
    return f"{base}/bin" if base and _PACKAGE.startswith(f"{base}/") else ""


def _is_same(one: str | None, other: str) -> bool:
    try:
        return one is not None and os.path.samefile(one, other)
    except OSError:
        return False
