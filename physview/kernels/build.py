# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a kernel module for a kernel, into the cache. One build per content of the source."""

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
from physview.kernels.cache import Kernel, cache_dir, locked, mark_used
from physview.runtime.packages import install_line, why_no_headers

LOG = "build.log"

# Options of a kernel's configuration that describe the kernel's own compiler. They can be wrong for
# another compiler. Kbuild and the kernel's headers work without them, and no structure's layout
# depends on them. A test compilation can't find all wrong options: gcc 12.2 compiles the outputs of
# asm goto, but to wrong code (GCC_ASM_GOTO_OUTPUT_BROKEN in the kernel's init/Kconfig).
_COMPILER_OPTIONS = (
    "CONFIG_CC_HAS_ASM_GOTO_OUTPUT",
    "CONFIG_CC_HAS_ASM_GOTO_TIED_OUTPUT",
    "CONFIG_CC_HAS_ASSUME",
    "CONFIG_CC_HAS_COUNTED_BY",
    "CONFIG_CC_HAS_COUNTED_BY_PTR",
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT",
    "CONFIG_CC_HAS_MULTIDIMENSIONAL_NONSTRING",
    "CONFIG_CC_HAS_SANE_FUNCTION_ALIGNMENT",
)
# For each architecture in Kbuild's terms: its name in uname, and the GNU triplet of its tools.
_ARCHITECTURES = {"x86": ("x86_64", "x86_64-linux-gnu"), "arm64": ("aarch64", "aarch64-linux-gnu")}

# Building a module's BTF needs pahole, and physview does not use the BTF. So BTF is off, and the
# installed version of pahole does not matter.
_NO_BTF = ("CONFIG_DEBUG_INFO_BTF_MODULES=", "PAHOLE_VERSION=$(CONFIG_PAHOLE_VERSION)")


class _BuildTools(NamedTuple):
    """The tools that build modules for a kernel.

    Args:
        compiler: The compiler's name.
        options: Options of make that select another architecture's tools.
        off: Options of the kernel's configuration that must be off with this compiler.
    """

    compiler: str
    options: tuple[str, ...]
    off: tuple[str, ...]


class BuildFailed(PhysviewError):
    """The module's source does not build. `path` is the log with the compiler's messages."""


def build_module(kernel: Kernel, source: Path) -> Path:
    """Build a module for a kernel, into the cache. LOG beside it has the compiler's messages.

    Args:
        kernel: The kernel.
        source: A folder with a Kbuild file that makes one module. The build does not write to it.

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
            mark_used(target)
            return cache_dir(*place, digest, module.name)
        # Build outside of the cache: Kbuild accepts no path with a space in it.
        with tempfile.TemporaryDirectory(prefix="physview-") as work:
            build = Path(work, "module")
            _write(build, files)
            _write(Path(work, "include"), {"generated/autoconf.h": _without(tools.off)})
            # The compiler searches this folder of headers before the kernel's own.
            compiler = f"CC={tools.compiler} -I{work}/include"
            log = _make(headers, build, compiler, *tools.options, *(f"{o}=" for o in tools.off))
            module = next(build.glob("*.ko"), None)
            if module is None:
                raise _failed(kernel, log, folder / f"{target.name}.log")
            return _keep(module, log, target)


def _usable_headers(kernel: Kernel) -> Path:
    what = f"cannot build a module for {kernel.release}"
    if kernel.headers is None:
        why, remedy = "it has no headers", "choose a kernel with headers, or --module none"
        if kernel.release == os.uname().release:
            why, remedy = why_no_headers(kernel.release, remedy)
        raise Unsupported(what, why, remedy)
    compiler = _tools(kernel.headers).compiler
    for program in ("make", compiler):
        if shutil.which(program) is None:
            remedy = install_line("make", compiler=_package(compiler))
            raise Unsupported(what, f"this machine has no {program}", remedy)
    check_folder(kernel.headers, what)
    return kernel.headers


def check_folder(headers: Path, what: str) -> None:
    """Check that modules can be built with headers in a folder.

    Args:
        headers: The folder, which need not exist yet.
        what: What failed if not.

    Raises:
        Unsupported: The kernel's build system does not accept the folder's name.
    """
    if re.search(r"[\s:]", str(headers)):
        why = f"make cannot work in {headers}"
        raise Unsupported(what, why, "set PHYSVIEW_CACHE to a folder without spaces or colons")


def _source_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the relative paths and contents of the source files, without the output of builds."""
    for path in sorted(source.rglob("*")):
        is_source = path.name in ("Kbuild", "Makefile") or path.suffix in (".c", ".h", ".S")
        if is_source and path.is_file() and not path.name.endswith(".mod.c"):
            yield str(path.relative_to(source)), path.read_bytes()


def _digest(files: dict[str, bytes], *options: str) -> str:
    state = hashlib.sha256(" ".join(options).encode())
    for name, data in files.items():
        state.update(f"\0{name}\0{len(data)}\0".encode() + data)
    return state.hexdigest()[:16]


def _tools(headers: Path) -> _BuildTools:
    try:
        config = (headers / ".config").read_text(errors="replace")
    except OSError:
        config = ""
    prefix, options = _cross(config)
    match = re.search(r'^CONFIG_CC_VERSION_TEXT="(\S+)', config, re.MULTILINE)
    # A kernel that was not cross-compiled names its compiler without the prefix.
    if match and shutil.which(own := prefix + match[1].removeprefix(prefix)):
        return _BuildTools(own, options, ())
    off = tuple(option for option in _COMPILER_OPTIONS if f"{option}=y" in config)
    return _BuildTools(f"{prefix}gcc", options, off)


def _cross(config: str) -> tuple[str, tuple[str, ...]]:
    """Return what is needed to build for another architecture than this machine's.

    Args:
        config: The kernel's .config, which names the architecture.

    Returns:
        The prefix of the compiler's name, and options for make. Both are empty if the kernel is for
        this machine's architecture.
    """
    # The third line of .config. Source: scripts/kconfig/confdata.c
    match = re.search(r"^# Linux/(\w+) ", config, re.MULTILINE)
    machine, triplet = _ARCHITECTURES.get(match[1] if match else "", ("", ""))
    if not match or machine in ("", os.uname().machine):
        return "", ()
    return f"{triplet}-", (f"ARCH={match[1]}", f"CROSS_COMPILE={triplet}-")


def _package(compiler: str) -> str:
    """Return Debian's package of a compiler: aarch64-linux-gnu-gcc is in gcc-aarch64-linux-gnu."""
    triplet, dash, name = compiler.rpartition("-gcc")
    return f"gcc{name}-{triplet}" if dash else "gcc"


def _without(options: Iterable[str]) -> bytes:
    """Return a generated/autoconf.h that includes the kernel's own and then undefines options."""
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
    # A clean environment: ARCH, KCFLAGS, or the MAKEFLAGS of a calling make would change the build.
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
        # A fixed mode, whatever the umask is: root loads this module, so nobody else may write it.
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
