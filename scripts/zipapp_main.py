# SPDX-License-Identifier: GPL-2.0-or-later
"""What physview.pyz starts with: scripts/zipapp packs this file as its __main__.py.

The dynamic linker cannot load compiled parts from an archive. So the first run unpacks the parts
for this Python into a folder of the cache, and later runs use this folder. The folder's name is a
checksum of its content, so versions do not mix.

Root runs what is in this folder. So nobody but root and the caller may change it: physview.files
checks the whole path, and the parts are unpacked under a new name, complete or not at all. Under
sudo the folder is below root's own home, not below the caller's.
"""

import os
import sys
import sysconfig


def _name() -> str:
    """Return the name of this Python's parts, as "cp313-x86_64"; with musl it ends in "-musl"."""
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    version = sys.version_info
    libc = "-musl" if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "") else ""
    return f"cp{version.major}{version.minor}{threads}-{os.uname().machine}{libc}"


def _cache() -> str:
    """Return the cache's folder, as `physview.kernels` does; an empty HOME is none."""
    import pwd

    if chosen := os.environ.get("PHYSVIEW_CACHE"):
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = os.environ.get("HOME", "")
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        base, home = "", ""
    if os.path.isabs(base):
        return f"{base}/physview"
    try:
        home = home if os.path.isabs(home) else pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        sys.exit("physview: there is no folder to unpack to: you have no HOME; set PHYSVIEW_CACHE")
    return f"{home}/.cache/physview"


def _unpack(archive: str, name: str) -> str:
    """Return the folder with the parts of a name; unpack them if it is missing."""
    from pathlib import Path

    from contents import SUMS  # ty: ignore[import-not-found]: made by scripts/zipapp

    from physview.files import trusted

    if name not in SUMS:
        have = ", ".join(sorted(SUMS))
        sys.exit(f"physview: this file has no parts for {name}: it has {have}; use such a Python")
    parent = Path(_cache()) / "zipapp"
    folder = parent / SUMS[name]
    try:
        if trusted.check(folder):
            return str(folder)
        trusted.make_folder(parent)
        _write(archive, name, parent, folder)
    except OSError as error:
        # trusted's errors have a remedy; others are the system's.
        text = str(error) if hasattr(error, "remedy") else f"{error.strerror}; set PHYSVIEW_CACHE"
        sys.exit(f"physview: cannot unpack to {str(parent)!r}: {text}")
    return str(folder)


def _write(archive: str, name: str, parent: "os.PathLike[str]", folder: "os.PathLike[str]") -> None:
    import io
    import shutil
    import tempfile
    import zipfile

    # Nobody else may write to these files, whatever the caller's umask is. mkdtemp makes a new
    # folder that only this user can enter.
    os.umask(0o022)
    new = tempfile.mkdtemp(prefix=".new-", dir=parent)
    try:
        with zipfile.ZipFile(archive) as outer:
            inner = outer.read(f"{name}.zip")
        with zipfile.ZipFile(io.BytesIO(inner)) as parts:
            parts.extractall(new)
        _write_script(new, os.fspath(folder))
        os.chmod(new, 0o755)
        os.rename(new, folder)
    except OSError:
        # Another process was faster: its folder has the same content, and its name is checked.
        if not os.path.isdir(folder):
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_script(new: str, folder: str) -> None:
    """Write bin/physview, for VMs: they see this machine's files, and have no other command."""
    import shlex

    line = shlex.join([sys.executable, "-I", f"{folder}/physview/__main__.py"])
    os.mkdir(f"{new}/bin")
    with open(f"{new}/bin/physview", "w", encoding="utf-8") as file:
        file.write(f'#!/bin/sh\nexec {line} "$@"\n')
        os.fchmod(file.fileno(), 0o755)


def _is_standard(path: str) -> bool:
    """Whether a folder or archive of sys.path has Python's own modules.

    Packages of this machine have other versions than physview was tried with, and lines of .pth
    files may name any folder, even one with another physview.
    """
    path = os.path.abspath(path)
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    archives = [f"{os.path.dirname(library)}/python" for library in libraries]
    if path.endswith(".zip"):
        return path.startswith(tuple(archives))
    inside = any(path == library or path.startswith(f"{library}/") for library in libraries)
    return inside and "-packages" not in path


def main() -> object:
    """Unpack if needed, and run the unpacked physview in this process."""
    archive = os.path.dirname(os.path.abspath(__file__))
    if sys.version_info < (3, 10):  # noqa: UP036 (this file is started by any Python)
        sys.exit(f"physview: Python {sys.version.split()[0]} is too old: use Python 3.10 or newer")
    folder = _unpack(archive, _name())
    # What was imported from the archive is imported again, from the folder.
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("physview", "contents")
    ]:
        del sys.modules[name]
    sys.path[:] = [*filter(_is_standard, sys.path), folder]
    sys.path_importer_cache.clear()
    sys.argv[0] = archive
    from physview.commands._start import start

    return start()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
