# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds a kernel of a version: in the cache, or among Debian's, which then are in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from physview.errors import PhysviewError, Unsupported, UsageError
from physview.kernels import headers
from physview.kernels.cache import (
    Kernel,
    age_key,
    cache_dir,
    cached_kernel,
    locked,
    matches,
    unpacked_kernel,
)
from physview.kernels.debian import PrivateApt, cannot_fetch

# Where Debian has them, and the suite that has the libraries which their tools may need.
SERIES = {
    "5.10": ("bullseye-security", "bookworm"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-security", "trixie-security", "bookworm"),
    "7.2": ("sid", "trixie-backports"),
    "7.3": ("sid", "trixie-backports"),
}

# Debian's names: those to run here, and those whose modules can be built here.
ARCHITECTURES = ("amd64", "arm64")

# linux-image-RELEASE of the flavour amd64 or arm64: the cloud's has no 9p, rt is another kernel.
# Names with fewer numbers are of packages without content, which depend on the newest.
_IMAGE = re.compile(
    r"linux-image-(?P<release>\d+\.\d+\.\d+(-\d+)?(\+deb[\d.]+)?"
    rf"-(?P<architecture>{'|'.join(ARCHITECTURES)}))$"
)
# Parts of a kernel; not compilers, nor linux-base, which is scripts for installing.
_PART = re.compile(r"linux-(base-\d|binary-|headers-|kbuild-|modules-)")
_LIBRARY = re.compile(r"(lib(?!ssl)|zlib)")


def find_kernel(
    wanted: str, tell: Callable[[str], object] | None = None, *, architecture: str = "amd64"
) -> Kernel:
    """A kernel of Debian's with its modules and headers, fetched unless it is in the cache.

    Nothing is installed, and root is not needed. Two that fetch the same at once get the same.

    Args:
        wanted: One of SERIES, or more of a release: "6.1", "6.1.0-56", "6.1.0-56-amd64".
        tell: Called with a line of text before something that takes long.
        architecture: One of ARCHITECTURES. The headers' tools are of amd64 in any case.

    Raises:
        UsageError: No such version is known.
        Unsupported: It cannot be fetched here.
        PhysviewError: The cache cannot be written.
    """
    series = next((series for series in SERIES if matches(wanted, series)), None)
    if series is None:
        remedy = f"choose one of {', '.join(SERIES)}"
        raise UsageError(f"no kernel {wanted}", "Debian's that physview knows are others", remedy)
    kernel = cached_kernel(wanted, architecture)
    if kernel is None:
        folder = cache_dir() / "kernels"
        # Of the series: "6.1" and "6.1.0-56" may be the same kernel.
        name = f"{series}-{architecture}"
        with locked(folder, name):
            # Another may have fetched it while this one waited for the lock.
            kernel = cached_kernel(wanted, architecture)
            if kernel is None:
                if tell:
                    tell(f"fetching Debian's kernel {wanted} for {architecture} into {folder}")
                kernel = _fetch(folder / f".{name}.new", wanted, SERIES[series], architecture)
    _index_modules(kernel)
    return kernel


def _fetch(staging: Path, wanted: str, suites: tuple[str, ...], architecture: str) -> Kernel:
    if (machine := os.uname().machine) != "x86_64":
        why, remedy = f"they are for x86_64, and this is {machine}", "use a machine of that kind"
        raise Unsupported("cannot use Debian's amd64 packages", why, remedy)
    folder = staging.parent
    # What one that was killed left behind: under the lock it is nobody's.
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        apt = PrivateApt(staging / "apt", suites, {architecture} - {"amd64"})
        release = _newest(apt, wanted, architecture)
        root = staging / release
        root.mkdir()
        first = [f"linux-image-{release}", f"linux-headers-{release}"]
        apt.unpack(apt.with_dependencies(first, _PART), root)
        headers.relocate(root, release)
        if failing := headers.tools_that_fail(root):
            kbuild = [path.name for path in (root / "usr/lib").glob("linux-kbuild-*")]
            libraries = apt.with_dependencies(kbuild, _LIBRARY)
            apt.unpack(set(libraries) - set(kbuild), root / "host")
            headers.wrap_tools(failing, root / "host")
        os.rename(root, folder / release)
    except OSError as error:
        if isinstance(error, PhysviewError):
            raise
        what, why = f"cannot unpack a kernel in {folder}", error.strerror or str(error)
        raise PhysviewError(what, why, path=str(folder)) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return unpacked_kernel(folder / release)


def _newest(apt: PrivateApt, wanted: str, architecture: str) -> str:
    found = [match for name in apt.names("linux-image-") if (match := _IMAGE.match(name))]
    its_own = [match["release"] for match in found if match["architecture"] == architecture]
    releases = [release for release in its_own if matches(release, wanted)]
    if not releases:
        what = f"kernel {wanted} for {architecture}"
        raise cannot_fetch(apt.complaints or f"this machine's mirror has no {what}")
    return max(releases, key=age_key)


def _index_modules(kernel: Kernel) -> None:
    """Write modules.dep, which Debian makes when it installs and modprobe cannot do without."""
    if (kernel.modules / "modules.dep").exists():
        return
    # In a user's PATH there often is no sbin.
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod:
        root = kernel.modules.parents[2]
        subprocess.run([depmod, "-b", str(root), kernel.release], capture_output=True, check=False)
