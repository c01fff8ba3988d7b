# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds an out-of-tree module for a kernel, beside its source, once for each content of it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import PhysviewError, Unsupported
from physview.kernels.cache import Kernel, cache_dir, locked
from physview.runtime import invocation
from physview.runtime.packages import why_no_headers

LOG = "build.log"

# What a kernel's configuration says of its own compiler need not be true of another. Kbuild and the
# kernel's headers do without these, and no structure depends on them. Not all can be tried out:
# the outputs of asm goto compile in gcc 12.2, to wrong code (GCC_ASM_GOTO_OUTPUT_BROKEN in the
# kernel's init/Kconfig).
_OWN_COMPILER = (
    "CONFIG_CC_HAS_ASM_GOTO_OUTPUT",
    "CONFIG_CC_HAS_ASM_GOTO_TIED_OUTPUT",
    "CONFIG_CC_HAS_ASSUME",
    "CONFIG_CC_HAS_COUNTED_BY",
    "CONFIG_CC_HAS_COUNTED_BY_PTR",
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT",
    "CONFIG_CC_HAS_MULTIDIMENSIONAL_NONSTRING",
    "CONFIG_CC_HAS_SANE_FUNCTION_ALIGNMENT",
)
# By Kbuild's name for an architecture: what uname calls it, the GNU triplet of its tools.
_ARCHITECTURES = {"x86": ("x86_64", "x86_64-linux-gnu"), "arm64": ("aarch64", "aarch64-linux-gnu")}

# BTF of a module takes pahole and is of no use here; a pahole that is not used need not fit.
_NO_BTF = ("CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=$(CONFIG_PAHOLE_VERSION)")


class _Tools(NamedTuple):
    """What builds for a kernel.

    Args:
        compiler: Its name.
        options: For make: where another architecture's tools are.
        off: The kernel's options that are to be off with this compiler.
    """

    compiler: str
    options: tuple[str, ...]
    off: tuple[str, ...]


class BuildFailed(PhysviewError):
    """The module's source does not build; `path` is the log with the compiler's words."""


def build_module(kernel: Kernel, source: Path) -> Path:
    """Build a module for a kernel, into the cache. The compiler's words are in LOG beside it.

    Args:
        kernel: The kernel.
        source: A folder with a Kbuild file that makes one module. It is not written to.

    Returns:
        The path of the module, MODULE.ko.

    Raises:
        Unsupported: The kernel's headers, make or a compiler are missing.
        BuildFailed: The source does not build for this kernel.
        PhysviewError: The cache cannot be written.
    """
    headers = _usable_headers(kernel)
    tools = _tools(headers)
    files = dict(_source_files(source))
    place = ("modules", kernel.release)
    digest = _digest(files, tools.compiler, *tools.off)
    with locked(digest, *place) as folder:
        target = folder / digest
        if module := next(target.glob("*.ko"), None):
            return cache_dir(*place, digest, module.name)
        # Not in the cache: Kbuild takes no path with a blank in it.
        with tempfile.TemporaryDirectory(prefix="physview-") as work:
            build = Path(work, "module")
            _write(build, files)
            _write(Path(work, "include"), {"generated/autoconf.h": _without(tools.off)})
            # The compiler's first folder of headers: it comes before the kernel's own.
            compiler = f"CC={tools.compiler} -I{work}/include"
            log = _make(headers, build, compiler, *tools.options, *(f"{o}=" for o in tools.off))
            module = next(build.glob("*.ko"), None)
            if module is None:
                raise _failed(kernel, log, folder / f"{target.name}.log")
            return _keep(module, log, target)


def _usable_headers(kernel: Kernel) -> Path:
    what = f"cannot build a module for {kernel.release}"
    if kernel.headers is None:
        why, remedy = "it came without headers", "choose one that has them, or --module none"
        if kernel.release == os.uname().release:
            why, remedy = why_no_headers(kernel.release, remedy)
        raise Unsupported(what, why, remedy)
    compiler = _tools(kernel.headers).compiler
    for program in ("make", compiler):
        if shutil.which(program) is None:
            install = invocation.as_root(f"apt-get install make {_package(compiler)}")
            remedy = f"install {program}, as with: {install}"
            raise Unsupported(what, f"this machine has no {program}", remedy)
    if re.search(r"[\s:]", str(kernel.headers)):
        why = f"make cannot work in {kernel.headers}"
        raise Unsupported(what, why, "set PHYSVIEW_CACHE to a folder without blanks or colons")
    return kernel.headers


def _source_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names below `source` and contents of what is written by hand; builds may lie there, too."""
    for path in sorted(source.rglob("*")):
        is_source = path.name in ("Kbuild", "Makefile") or path.suffix in (".c", ".h", ".S")
        if is_source and path.is_file() and not path.name.endswith(".mod.c"):
            yield str(path.relative_to(source)), path.read_bytes()


def _digest(files: dict[str, bytes], *options: str) -> str:
    state = hashlib.sha256(" ".join(options).encode())
    for name, data in files.items():
        state.update(f"\0{name}\0{len(data)}\0".encode() + data)
    return state.hexdigest()[:16]


def _tools(headers: Path) -> _Tools:
    try:
        config = (headers / ".config").read_text(errors="replace")
    except OSError:
        config = ""
    prefix, options = _cross(config)
    match = re.search(r'^CONFIG_CC_VERSION_TEXT="(\S+)', config, re.MULTILINE)
    # The kernel may have been built where it runs, and so by a compiler without the prefix.
    if match and shutil.which(own := prefix + match[1].removeprefix(prefix)):
        return _Tools(own, options, ())
    off = tuple(option for option in _OWN_COMPILER if f"{option}=y" in config)
    return _Tools(f"{prefix}gcc", options, off)


def _cross(config: str) -> tuple[str, tuple[str, ...]]:
    """The prefix of the tools' names, and make's options, for another machine's kernel."""
    # The third line, by scripts/kconfig/confdata.c.
    match = re.search(r"^# Linux/(\w+) ", config, re.MULTILINE)
    machine, triplet = _ARCHITECTURES.get(match[1] if match else "", ("", ""))
    if not match or machine in ("", os.uname().machine):
        return "", ()
    return f"{triplet}-", (f"ARCH={match[1]}", f"CROSS_COMPILE={triplet}-")


def _package(compiler: str) -> str:
    """Debian's package of a compiler: gcc-aarch64-linux-gnu has aarch64-linux-gnu-gcc."""
    triplet, dash, name = compiler.rpartition("-gcc")
    return f"gcc{name}-{triplet}" if dash else "gcc"


def _without(options: Iterable[str]) -> bytes:
    """A generated/autoconf.h that stands before the kernel's and takes options out of it."""
    lines = ["#include_next <generated/autoconf.h>", *(f"#undef {option}" for option in options)]
    return "\n".join([*lines, ""]).encode()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _make(headers: Path, build: Path, *options: str) -> str:
    jobs = f"-j{os.cpu_count() or 1}"
    command = ["make", jobs, "-C", str(headers), f"M={build}", *_NO_BTF, *options, "modules"]
    # An environment of its own: ARCH, KCFLAGS or the MAKEFLAGS of a make above would get in.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    return f"{shlex.join(command)}\n{result.stdout}"


def _keep(module: Path, log: str, target: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as staging:
        whole = Path(staging, target.name)
        whole.mkdir(0o755)
        shutil.copyfile(module, whole / module.name)
        (whole / LOG).write_text(log, errors="backslashreplace")
        # Whatever the umask is: what is loaded as root is written by nobody else.
        (whole / module.name).chmod(0o644)
        os.rename(whole, target)
    return target / module.name


def _failed(kernel: Kernel, log: str, path: Path) -> BuildFailed:
    path.write_text(log, errors="backslashreplace")
    lines = log.splitlines()
    errors = [line for line in lines[1:] if re.search(r"\berror\b|ERROR|\*\*\*", line)]
    return BuildFailed(
        f"the module does not build for {kernel.release}",
        (errors or lines[-1:])[0].strip(),
        f"the whole log is {path}",
        path=str(path),
    )
