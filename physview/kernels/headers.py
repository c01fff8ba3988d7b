# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes unpacked kernel headers usable where they lie, whatever C library this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Debian's headers are two folders in /usr/src; the first includes the second by that path. So are
# Ubuntu's, where it is done by relative links.
_INSTALLED = "/usr/src/"
_HERE = "physview_src := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)\n"

# For signed modules only. They want libcrypto, which the others do not.
_UNUSED = ("sign-file", "extract-cert", "insert-sys-cert")
# Where the host programs lie: Debian's apart from the headers, Ubuntu's among them.
_TOOLS = ("usr/lib/linux-kbuild-*", "usr/src/linux-headers-*/*")


def rewrite_makefile(text: str) -> str:
    r"""The headers' Makefile, made to find its other half beside it.

    >>> print(rewrite_makefile("include /usr/src/linux-headers-1-common/Makefile\n"))
    physview_src := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
    include $(physview_src)/linux-headers-1-common/Makefile
    <BLANKLINE>
    """
    return _HERE + text.replace(_INSTALLED, "$(physview_src)/")


def relocate(root: Path, release: str) -> None:
    """Make the headers, and the modules' links to them, independent of where `root` is.

    Args:
        root: Where the packages were unpacked.
        release: The kernel's release.
    """
    headers = root / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    text = makefile.read_text()
    if _INSTALLED in text:
        makefile.write_text(rewrite_makefile(text))
    # Since Debian 14 all is in /usr/lib, and depmod looks in /lib.
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    modules = (root / "lib/modules" / release).resolve()
    common = headers.with_name(headers.name.rpartition("-")[0] + "-common")
    for name, target in (("build", headers), ("source", common if common.is_dir() else headers)):
        link = modules / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), modules))


def tools_that_fail(root: Path) -> list[Path]:
    """The host programs among the headers that this machine's libraries cannot run."""
    return [tool for tool in _elf_programs(root) if tool.name not in _UNUSED and not _loads(tool)]


def wrap_tools(tools: list[Path], libraries: Path) -> None:
    """Put scripts in the places of programs, to run them with another C library.

    Args:
        tools: The programs.
        libraries: Where Debian's packages of libraries were unpacked.
    """
    # Debian 12 has an absolute link, too, which would lead to this machine's own loader.
    loaders = libraries.rglob("ld-linux-x86-64.so.2")
    loader = next(path for path in loaders if path.is_file() and not path.is_symlink())
    folders = sorted({path.parent for path in libraries.rglob("lib*.so.*")})
    for tool in tools:
        program = tool.with_name(f"{tool.name}.elf")
        tool.rename(program)
        # Relative: the cache may be moved.
        here = [f"$here/{os.path.relpath(path, tool.parent)}" for path in [loader, *folders]]
        path = ":".join(here[1:])
        tool.write_text(
            "#!/bin/sh\n"
            "here=${0%/*}\n"
            f'exec "{here[0]}" --library-path "{path}" "$here/{program.name}" "$@"\n'
        )
        shutil.copymode(program, tool)


def _elf_programs(root: Path) -> Iterator[Path]:
    found = (folder for pattern in _TOOLS for folder in root.glob(pattern))
    # Debian's headers have links to the tools' own folder.
    folders = (folder for folder in found if not folder.is_symlink())
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK):
            with open(path, "rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _loads(program: Path) -> bool:
    """Whether the dynamic loader finds all that a program needs; it is not started."""
    # ld.so(8): it lists and stops, as ldd has it do. Where it is missing altogether, OSError.
    environment = os.environ | {"LD_TRACE_LOADED_OBJECTS": "1", "LC_ALL": "C"}
    try:
        result = subprocess.run(
            [program], env=environment, capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return result.returncode == 0 and "not found" not in result.stdout + result.stderr
