# SPDX-License-Identifier: GPL-2.0-or-later
"""physview for another architecture: the package of this checkout, with a core compiled for it.

The core is compiled by a cross-compiler of this machine, into the cache: once for each content of
the package.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import runpy
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from physview.errors import PhysviewError, Unsupported
from physview.kernels.cache import cache_dir, locked, mark_used
from physview.kernels.foreign_root import PYTHON, Target
from physview.runtime import invocation

PACKAGE = Path(__file__).parents[1]
SOURCES = PACKAGE.parent / "csrc"

# -I ignores PYTHONPATH and the rest of the environment. What Python compiles goes to the VM's own
# memory: the package is on a file system that the VM cannot write.
_SCRIPT = """\
#!/usr/bin/python3 -I
import sys

sys.pycache_prefix = "/var/cache/physview"
sys.path.insert(0, "{folder}")
from physview.commands._start import start

start()
"""


def package_folder(target: Target, root: Path, tell: Callable[[str], object] | None = None) -> Path:
    """Return a folder with `physview`, the package for an architecture, and `bin/physview`.

    Args:
        target: The architecture.
        root: Its root folder, which has Python's headers.
        tell: Called with a message before a step that takes long.

    Raises:
        Unsupported: This physview has no C sources, or the cross-compiler is missing.
        PhysviewError: The core does not compile, or the cache cannot be used.
    """
    check_tools(target)
    digest = _digest([*_python_files(), *_c_files(SOURCES)])
    with locked(digest, "packages") as folder:
        if not (folder / digest).exists():
            if tell:
                tell(f"compiling physview for {target.debian}")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as staging:
                whole = Path(staging, digest)
                _copy(whole / "physview")
                _compile(target, root, whole / "physview/_native.abi3.so")
                (whole / "bin").mkdir()
                script = whole / "bin/physview"
                script.write_text(_SCRIPT.format(folder=folder / digest))
                script.chmod(0o755)
                whole.chmod(0o755)
                os.rename(whole, folder / digest)
        mark_used(folder / digest)
    return cache_dir("packages", digest)


def check_tools(target: Target) -> None:
    """Check that this machine can compile the core. This takes no time.

    Raises:
        Unsupported: This physview has no C sources, or the cross-compiler is missing.
    """
    what = f"cannot make physview for {target.debian}"
    if not (SOURCES / "build_ffi.py").exists():
        raise Unsupported(what, "this installation has no C sources", "run it from a checkout")
    compiler = _compiler(target)
    if shutil.which(compiler) is None or not Path(f"/usr/{target.triplet}/include").exists():
        names = f"gcc-{target.triplet} libc6-dev-{target.debian}-cross"
        remedy = invocation.as_root(f"apt-get install {names}")
        raise Unsupported(what, f"this machine has no {compiler} with a C library", remedy)


def _compiler(target: Target) -> str:
    return f"{target.triplet}-gcc"


def _python_files() -> Iterator[Path]:
    """Yield the files of the package that are not compiled."""
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and path.suffix not in (".so", ".pyc"):
            yield path


def _c_files(sources: Path) -> Iterator[Path]:
    yield from sorted(path for path in sources.rglob("*") if path.suffix in (".c", ".h", ".py"))


def _digest(paths: list[Path]) -> str:
    state = hashlib.sha256(PYTHON.encode())
    for path in paths:
        data = path.read_bytes()
        state.update(f"\0{path.relative_to(PACKAGE.parent)}\0{len(data)}\0".encode() + data)
    return state.hexdigest()[:16]


def _copy(target: Path) -> None:
    for path in _python_files():
        copy = target / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        shutil.copymode(path, copy)


def _compile(target: Target, root: Path, library: Path) -> None:
    """Compile the core, with the headers of the root folder's Python."""
    compiler, checkout = _compiler(target), SOURCES.parent
    builder = runpy.run_path(str(SOURCES / "build_ffi.py"))["ffibuilder"]
    _, _, _, options = builder._assigned_source
    include = root / "usr/include"
    with tempfile.TemporaryDirectory(prefix="physview-") as work:
        glue = f"{work}/native.c"
        with contextlib.redirect_stdout(io.StringIO()):  # cffi tells what it writes
            builder.emit_c_code(glue)
        command = [
            *(compiler, "-shared", "-fPIC", "-DPy_LIMITED_API", *options["extra_compile_args"]),
            *("-w", f"-I{include}/python{PYTHON}", "-idirafter", str(include)),
            *(f"-I{checkout / folder}" for folder in options["include_dirs"]),
            *("-o", str(library), glue, *(str(checkout / each) for each in options["sources"])),
        ]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.split("\n") if "error" in line] or [""]
        raise PhysviewError(f"the core does not compile with {compiler}", lines[0])
