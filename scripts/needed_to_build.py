# SPDX-License-Identifier: GPL-2.0-or-later
"""Says in one line what the compiled core cannot be built without. setup.py runs this file.

Where there is no wheel for a machine, pip builds the sdist. Without a compiler its own message is a
page long, and names only a program.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools.command.build_ext import build_ext


def missing(platform: str, compiler: str, include: str) -> str:
    """Return what is missing and what to do, or "".

    Args:
        platform: `sys.platform`.
        compiler: The command line that starts the C compiler.
        include: The folder of Python's C headers.
    """
    if platform != "linux":
        return f"physview shows the memory of Linux, and this is {platform}: install it on Linux"
    words = shlex.split(compiler) or ["cc"]
    wanted = []
    if not shutil.which(words[0]):
        wanted.append(f"a C compiler ({words[0]})")
    elif not _can_include(words):
        wanted.append("the headers of the C library and of Linux")
    if not os.path.exists(f"{include}/Python.h"):
        wanted.append(f"the headers of Python ({include})")
    if not wanted:
        return ""
    return (
        f"the core of physview is written in C, and cannot be built without {' and '.join(wanted)};"
        " to install what a build needs: apt-get install gcc libc6-dev python3-dev (Debian), or"
        " apk add gcc musl-dev linux-headers python3-dev (Alpine)"
    )


def _can_include(compiler: list[str]) -> bool:
    result = subprocess.run(
        [*compiler, "-E", "-x", "c", "-"],
        input=b"#include <stdlib.h>\n#include <linux/types.h>\n",
        capture_output=True,
        check=False,
    )
    return result.returncode == 0


class BuildCore(build_ext):  # type: ignore[misc]
    """setuptools's command, which asks first for what it needs."""

    def run(self) -> None:
        """Build the core, or end with one line."""
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
        if why := missing(sys.platform, compiler, sysconfig.get_path("include")):
            sys.exit(f"physview: {why}")
        super().run()
