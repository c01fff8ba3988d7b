# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the command lines in messages, so that they work on this machine exactly as printed.

The word `physview` alone is often not a command. Its environment may not be in PATH or in sudo's
secure_path, or physview runs from a checkout. `sudo` may be missing, and root does not need it. So
every message that names a command gets the command line from this module.
"""

from __future__ import annotations

import os
import shlex
import sys

CHILD_OPTION = "--physview-child"
"""This option tells `__main__.py` that `child_python` started the process."""

# The folders that are in secure_path of sudo on all distributions. Fedora's lacks /usr/local/bin.
SECURE_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")

# The names of the command: in an environment, and as the one file that scripts/zipapp makes.
_COMMANDS = ("physview", "physview.pyz")

_AS_ROOT = "as root: "
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_typed: list[str] = []


def typed() -> list[str]:
    """The command line that the user typed; in a child, that of the first physview process."""
    return _typed or sys.argv


def remember_typed(words: list[str]) -> None:
    """Set what `typed()` returns; a child process calls this first."""
    _typed[:] = words


def is_child() -> bool:
    """Whether another physview process started this one, which then says what is to be said."""
    return bool(_typed)


def physview(words: str) -> str:
    """A command line of physview that this user can type on this machine.

    Args:
        words: The words after "physview"; may contain placeholders, as in "maps PID".
    """
    return f"{_program(for_sudo=False)} {words}"


def physview_as_root(words: str) -> str:
    """A command line that runs physview as root; for root the same as `physview()`.

    Args:
        words: The words after "physview".
    """
    if os.geteuid() == 0:
        return physview(words)
    return as_root(f"{_program(for_sudo=True)} {words}")


def again_as_root() -> str:
    """The advice to run the typed command line again, as root."""
    line = physview_as_root(shlex.join(typed()[1:])).rstrip()
    return f"run {line}" if line.startswith(_AS_ROOT) else f"run as root: {line}"


def as_root(command: str) -> str:
    """A command line that runs a command as root.

    Args:
        command: Any command, quoted for a shell.

    Returns:
        The command itself for root. Otherwise with "sudo" before it, or with "as root: " if sudo is
        not installed.
    """
    if os.geteuid() == 0:
        return command
    return f"sudo {command}" if _has_sudo() else _AS_ROOT + command


def write_as_root(value: str, path: str) -> str:
    """The command line that writes a value to a file of /proc or /sys as root."""
    if os.geteuid() == 0:
        return f"echo {value} >{path}"
    return f"echo {value} | sudo tee {path}" if _has_sudo() else f"{_AS_ROOT}echo {value} >{path}"


def load_own_module() -> str:
    """The advice to replace the loaded module with the module of physview."""
    load = physview_as_root("module load")
    return f"load physview's own: {physview_as_root('module unload')}, then {load}"


def module_or_vm(words: str) -> str:
    """The advice for a command that needs the module: load it, or use a throwaway VM.

    A kernel without loadable modules leaves only the VM.

    Args:
        words: The words of the command after "physview".
    """
    vm = f"in a throwaway VM: {in_vm(words)}"
    if not os.path.exists("/proc/modules"):
        return vm
    return f"{physview_as_root('module load')}, or {vm}"


def build_core() -> str:
    """The advice for getting the compiled core."""
    return _checkout_run() or "install physview again, for this Python"


def in_vm(words: str, options: str = "") -> str:
    """The command line that runs a command of physview in a throwaway VM.

    Args:
        words: The words of the command after "physview".
        options: Options of `physview vm`.
    """
    return physview(" ".join(filter(None, ["vm", options, f"-- physview {words}"])))


def path_with_physview() -> str:
    """PATH for a program that the user starts through physview: `physview` is found there, too.

    In a checkout the command is not on PATH. Its folder is added at the end, so all other programs
    stay the same.
    """
    path = os.environ.get("PATH", os.defpath)
    script = _script()
    return path if script is None or _which("physview") else f"{path}:{os.path.dirname(script)}"


def _has_sudo() -> bool:
    return _which("sudo") is not None


def _which(name: str) -> str | None:
    import shutil

    found = shutil.which(name)
    # Ignore a relative folder in PATH: the working directory may belong to another user.
    return found if found and os.path.isabs(found) else None


def _program(*, for_sudo: bool) -> str:
    """The shortest command that starts physview on this machine, quoted for a shell."""
    script = _script()
    if script is None:
        # No script is installed. Run a file by its path: that does not depend on the module path.
        return shlex.join([sys.executable, "-I", f"{_PACKAGE}/__main__.py"])
    if script.endswith(".pyz") and not os.access(script, os.X_OK):
        return shlex.join([sys.executable, "-I", script])
    if not for_sudo and _is_same(_which("physview"), script):
        return "physview"
    run = _checkout_run()
    if run and script.startswith(f"{os.path.dirname(_PACKAGE)}/.venv/"):
        return run
    if for_sudo and os.path.dirname(script) in SECURE_FOLDERS:
        return "physview"
    return shlex.quote(script)


def is_self_contained() -> bool:
    """Whether physview runs from the one file that scripts/zipapp makes, with its own packages."""
    return os.path.isfile(f"{os.path.dirname(_PACKAGE)}/self-contained")


def checkout_scripts() -> list[str]:
    """The paths by which scripts/run of this checkout can be called; empty without a checkout."""
    run = f"{os.path.dirname(_PACKAGE)}/scripts/run"
    return ["./scripts/run", run] if os.path.isfile(run) else []


def _checkout_run() -> str:
    """scripts/run of the checkout that contains the package; empty if there is no checkout."""
    root = os.path.dirname(_PACKAGE)
    run = f"{root}/scripts/run"
    if not os.path.isfile(run):
        return ""
    return "./scripts/run" if _is_same(root, ".") else shlex.quote(run)


def _script() -> str | None:
    """The installed script `physview`: the one that was started, or this interpreter's."""
    started = typed()[0] if typed() else ""
    folders = [os.path.dirname(sys.executable or ""), _user_scripts()]
    for path in (started, *(f"{folder}/physview" for folder in folders if folder)):
        if os.path.basename(path) in _COMMANDS and os.path.isfile(path):
            return os.path.abspath(path)
    return None


def _user_scripts() -> str:
    """Where `pip install --user` puts scripts; empty if physview was not installed that way."""
    base = getattr(sys.modules.get("site"), "USER_BASE", None)
    return f"{base}/bin" if base and _PACKAGE.startswith(f"{base}/") else ""


def _is_same(one: str | None, other: str) -> bool:
    try:
        return one is not None and os.path.samefile(one, other)
    except OSError:
        return False
