# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the command line that installs Python packages into the environment of physview.

pip does not work everywhere. Environments of uv have no pip, pipx manages its environments itself,
and a distribution's Python forbids pip (PEP 668). A file identifies each of these cases.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from physview.runtime import invocation


def install_line(packages: Sequence[str], extras: Sequence[str]) -> str:
    """The command line that installs packages in this environment.

    Args:
        packages: Names of the packages, such as "pyarrow".
        extras: The extras of physview that install these packages, and the extras that are already
            installed. `uv tool install` installs a tool from scratch, so it needs all extras.
    """
    if invocation.is_self_contained():
        return f"in a checkout: ./scripts/zipapp --extras {','.join(extras)}"
    prefix = sys.prefix
    if os.path.exists(f"{prefix}/uv-receipt.toml"):
        return f"uv tool install {_with_extras(extras)}"
    if os.path.exists(f"{prefix}/pipx_metadata.json"):
        return f"pipx inject {shlex.join([os.path.basename(prefix), *packages])}"
    if prefix == sys.base_prefix:
        return _into_system(packages, extras)
    python = sys.executable
    if find_spec("pip") is not None:
        return _pip(packages)
    if _is_made_by_uv(prefix):
        return f"uv pip install --python {shlex.join([python, *packages])}"
    # The environment was made with --without-pip. ensurepip belongs to the standard library, but
    # Debian moves it to a package of its own.
    return f"{shlex.join([python, '-I', '-m', 'ensurepip'])} && {_pip(packages)}"


def _is_made_by_uv(prefix: str) -> bool:
    """Whether uv made a virtual environment. Source: uv writes the key "uv" to pyvenv.cfg."""
    try:
        with open(f"{prefix}/pyvenv.cfg", encoding="utf-8", errors="replace") as file:
            return any(line.partition("=")[0].strip() == "uv" for line in file)
    except OSError:
        return False


def _into_system(packages: Sequence[str], extras: Sequence[str]) -> str:
    """The command line for a Python outside of virtual environments."""
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if os.path.exists(marker):
        # Do not name the distribution's own packages: each distribution names them differently.
        return (
            "this Python belongs to the distribution, which forbids pip:"
            f" pipx install {_with_extras(extras)}"
        )
    if find_spec("pip") is None:
        return f"this Python has no pip: pipx install {_with_extras(extras)}"
    # With -I, pip would not install into a user's own site-packages. Without -I, `python -m pip`
    # imports from the working directory. So change to /, where only root can create modules.
    python = shlex.join([sys.executable, "-m", "pip", "install", *packages])
    line = f"(cd / && {python})"
    if os.access(sysconfig.get_path("purelib"), os.W_OK) or _is_users_own():
        return line
    return invocation.as_root(_pip(packages))


def _is_users_own() -> bool:
    """Whether physview is in a user's site-packages, where pip needs no root."""
    base = getattr(sys.modules.get("site"), "USER_BASE", None)
    return bool(base) and os.path.abspath(__file__).startswith(f"{base}/")


def _pip(packages: Sequence[str]) -> str:
    """The pip command with -I: without it, Python would import from the working directory."""
    return shlex.join([sys.executable, "-I", "-m", "pip", "install", *packages])


def _with_extras(extras: Sequence[str]) -> str:
    """The requirement to give an installer: physview with extras, from its original location.

    Source: PEP 508, and PEP 610 for direct_url.json
    """
    name = f"physview[{','.join(extras)}]"
    origin = _origin()
    url = str(origin.get("url", ""))
    if "dir_info" in origin and origin["dir_info"].get("editable"):
        from urllib.parse import unquote

        return f"--editable {shlex.quote(unquote(url.removeprefix('file://')) + name[8:])}"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info'].get('vcs', 'git')}+{url}"
    return shlex.quote(f"{name} @ {url}" if url else name)


def _origin() -> dict[str, Any]:
    """Where physview was installed from; empty if it came from a package index."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("physview").read_text("direct_url.json")
        found = json.loads(text) if text else {}
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
