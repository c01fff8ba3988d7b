# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes unpacked kernel headers usable in any folder, and with any C library of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from physview.kernels.apt import own_architecture

# Debian's headers are two folders in /usr/src, and the Makefile of the first includes the second by
# its absolute path. Ubuntu's headers are two folders, too, but with relative links.
_INSTALLED = "/usr/src/"
_HERE = "physview_src := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)\n"

# Programs that only signed modules need. They alone need libcrypto.
_UNUSED = ("sign-file", "extract-cert", "insert-sys-cert")
# The dynamic loader, by architecture in Debian's terms.
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
# The folders of the host programs: beside the headers in Debian, among the headers in Ubuntu.
_TOOLS = ("usr/lib/linux-kbuild-*", "usr/src/linux-headers-*/*")


def rewrite_makefile(text: str) -> str:
    r"""Return the headers' Makefile, changed to include the second folder by a relative path.

    >>> print(rewrite_makefile("include /usr/src/linux-headers-1-common/Makefile\n"))
    physview_src := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
    include $(physview_src)/linux-headers-1-common/Makefile
    <BLANKLINE>
    """
    return _HERE + text.replace(_INSTALLED, "$(physview_src)/")


def common_name(name: str) -> str:
    """Return the name of the folder of headers that all flavours of a kernel have in common.

    >>> common_name("linux-headers-6.1.0-56-amd64")
    'linux-headers-6.1.0-56-common'
    >>> common_name("linux-headers-7.3.4+deb13-arm64-16k")
    'linux-headers-7.3.4+deb13-common'
    """
    return re.sub("-[^-]+(-16k)?$", "-common", name)


def relocate(root: Path, release: str) -> None:
    """Make the headers, and the modules' links to them, independent of the path of `root`.

    Args:
        root: The folder of the unpacked packages.
        release: The kernel's release.
    """
    headers = root / "usr/src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    text = makefile.read_text()
    if _INSTALLED in text:
        makefile.write_text(rewrite_makefile(text))
    # Since Debian 14 the modules are in /usr/lib, but depmod reads /lib.
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    modules = (root / "lib/modules" / release).resolve()
    common = headers.with_name(common_name(headers.name))
    for name, target in (("build", headers), ("source", common if common.is_dir() else headers)):
        link = modules / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target.resolve(), modules))


def tools_that_fail(root: Path) -> list[Path]:
    """Return the host programs of the headers that can't run with this machine's libraries."""
    return [tool for tool in _elf_programs(root) if tool.name not in _UNUSED and not _loads(tool)]


def wrap_tools(tools: list[Path], libraries: Path) -> None:
    """Replace programs by scripts that run them with another C library.

    Args:
        tools: The programs.
        libraries: The folder of the unpacked packages of libraries.
    """
    # Skip links: Debian 12 has an absolute link, which leads to this machine's own loader.
    loaders = libraries.rglob(LOADERS[own_architecture()])
    loader = next(path for path in loaders if path.is_file() and not path.is_symlink())
    folders = sorted({path.parent for path in libraries.rglob("lib*.so.*")})
    for tool in tools:
        program = tool.with_name(f"{tool.name}.elf")
        tool.rename(program)
        # Relative paths, so that the cache can be moved.
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
    # Debian's headers contain links to the folder of the tools.
    folders = (folder for folder in found if not folder.is_symlink())
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK):
            with open(path, "rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _loads(program: Path) -> bool:
    """Whether the dynamic loader finds all libraries of a program. The program does not run."""
    # As ldd does: with this variable the loader lists the libraries and stops (ld.so(8)). If the
    # loader itself is missing, the start fails with an OSError.
    environment = os.environ | {"LD_TRACE_LOADED_OBJECTS": "1", "LC_ALL": "C"}
    try:
        result = subprocess.run(
            [program], env=environment, capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return result.returncode == 0 and "not found" not in result.stdout + result.stderr
