# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds a kernel of a version: in the cache, or in an archive of Debian's or Ubuntu's.

From Debian's archive it can be each of SERIES, whatever suites the machine itself has. From
Ubuntu's it can be what is in the machine's own suites: Ubuntu's newer kernels come to those.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from physview.errors import PhysviewError, Unsupported, UsageError
from physview.kernels import headers, mirrors
from physview.kernels.apt import PrivateApt, missing_program
from physview.kernels.cache import (
    FLAVOURS,
    Kernel,
    age_key,
    cache_dir,
    cached_kernel,
    locked,
    matches,
    unpacked_kernel,
)
from physview.kernels.mirrors import DEBIAN, UBUNTU, Archive
from physview.runtime import invocation

# Where Debian has them. A suite without a dash at the end of a row is only for the libraries that
# their tools may need: a mirror may no longer have the suite that is a kernel's own.
SERIES = {
    "5.10": ("bullseye-security", "bookworm"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-security", "trixie-security", "bookworm"),
    "7.2": ("sid", "trixie-backports"),
    "7.3": ("sid", "trixie-backports"),
}

_FALLBACK = "6.1"

# Debian's names: those to run here, and those whose modules can be built here.
ARCHITECTURES = tuple(FLAVOURS)

_VERSION = re.compile(r"\d+\.\d+(?!\d)[\w.+-]*$")
# linux-image-RELEASE of the flavour amd64 or arm64: the cloud's has no 9p, rt is another kernel.
# Names with fewer numbers are of packages without content, which depend on the newest.
_IMAGE = {
    DEBIAN: re.compile(
        r"linux-image-(?P<release>\d+\.\d+\.\d+(-\d+)?(\+deb[\d.]+)?"
        rf"-(?P<architecture>{'|'.join(ARCHITECTURES)}))$"
    ),
    UBUNTU: re.compile(r"linux-image-(?P<release>\d+\.\d+\.\d+-\d+-generic)$"),
}
# Parts of a kernel; not compilers, nor linux-base, which is scripts for installing.
# Ubuntu's of a newer release are headers by another name: linux-hwe-7.0-headers-7.0.0-44.
_PART = re.compile(r"linux-(base-\d|binary-|(hwe-\S+-)?headers-|kbuild-|modules-)")
_LIBRARY = re.compile(r"(lib(?!ssl)|zlib)")


def find_kernel(
    wanted: str, tell: Callable[[str], object] | None = None, *, architecture: str = "amd64"
) -> Kernel:
    """A kernel of Debian's or Ubuntu's with its modules and headers, fetched unless it is cached.

    Nothing is installed, and root is not needed. Two that fetch the same at once get the same.

    Args:
        wanted: A series, or more of a release: "6.1", "6.1.0-56", "6.1.0-56-amd64".
        tell: Called with a line of text before something that takes long.
        architecture: One of ARCHITECTURES. The headers' tools are of amd64 in any case.

    Raises:
        UsageError: No such version is known.
        Unsupported: It cannot be fetched here.
        PhysviewError: The cache cannot be used.
    """
    if not _VERSION.match(wanted):
        raise _unknown(wanted)
    kernel = cached_kernel(wanted, architecture)
    if kernel is None:
        archive = _archive(wanted)
        # Of the series: "6.1" and "6.1.0-56" may be the same kernel.
        name = f"{_series(wanted)}-{architecture}"
        with locked(name, "kernels") as folder:
            # Another may have fetched it while this one waited for the lock.
            kernel = cached_kernel(wanted, architecture)
            if kernel is None:
                staging = folder / f".{name}.new"
                kernel = _fetch(staging, wanted, archive, architecture, tell)
    _index_modules(kernel)
    return kernel


def fallback_version() -> tuple[str, str]:
    """What to boot where the running kernel cannot be: whose kernel, and its version.

    Raises:
        Unsupported: None can be had before apt has fetched its lists.
    """
    archives = mirrors.archives()
    if DEBIAN in archives or UBUNTU not in archives:
        return DEBIAN.name, _FALLBACK
    # Its first kernel, which it keeps; the newer ones come and go.
    names = mirrors.known_packages("linux-image-")
    found = [match["release"] for name in names if (match := _IMAGE[UBUNTU].match(name))]
    if not found:
        remedy = invocation.as_root("apt-get update")
        raise Unsupported("cannot choose a kernel", "apt has no lists", remedy)
    return UBUNTU.name, _all_series(found)[0]


def _series(wanted: str) -> str:
    """The first two numbers of a version."""
    return ".".join(re.split(r"[^\d]", wanted)[:2])


def _all_series(releases: Iterable[str]) -> list[str]:
    names = {_series(release) for release in releases}
    return sorted(names, key=lambda name: [int(number) for number in name.split(".")])


def _archive(wanted: str) -> Archive:
    """The archive to fetch a version from: Debian's where it has that, or else Ubuntu's."""
    is_debians = any(matches(wanted, series) for series in SERIES)
    archives = mirrors.archives()
    if is_debians and DEBIAN in archives:
        return archives[DEBIAN]
    if UBUNTU in archives:
        return archives[UBUNTU]
    if not is_debians:
        raise _unknown(wanted)
    what = "cannot fetch Debian's kernels"
    if program := missing_program():
        remedy = "use Debian or Ubuntu, also in a container, or this machine's own kernel"
        raise Unsupported(what, f"this machine has no {program}", remedy)
    remedy = "add one to /etc/apt/sources.list.d, or use this machine's own kernel"
    raise Unsupported(what, "apt has no Debian mirror", remedy)


def _unknown(wanted: str) -> UsageError:
    if UBUNTU in mirrors.archives():
        return UsageError(f"no kernel {wanted}", "", "name a version, such as 6.8")
    remedy = f"choose one of {', '.join(SERIES)}"
    return UsageError(
        f"no kernel {wanted}", "physview does not know this version of Debian's kernel", remedy
    )


def _fetch(
    staging: Path,
    wanted: str,
    archive: Archive,
    architecture: str,
    tell: Callable[[str], object] | None,
) -> Kernel:
    name = archive.distribution.name
    if (machine := os.uname().machine) != "x86_64":
        why, remedy = f"they are for x86_64, and this is {machine}", "use a machine of that kind"
        raise Unsupported(f"cannot use {name}'s amd64 packages", why, remedy)
    folder = staging.parent
    # What one that was killed left behind: under the lock it is nobody's.
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(0o700)
        foreign = {architecture} - {"amd64"}
        series = next((series for series in SERIES if matches(wanted, series)), "")
        suites = SERIES[series] if archive.distribution is DEBIAN else ()
        lines = archive.source_lines(suites, ["amd64", *foreign])
        apt = PrivateApt(staging / "apt", lines, name, foreign)
        release = _newest(apt, wanted, archive, architecture)
        if tell:
            tell(f"fetching {name}'s kernel {release} into {folder}")
        root = staging / release
        root.mkdir(0o755)
        first = [f"linux-image-{release}", f"linux-headers-{release}"]
        apt.unpack(apt.with_dependencies(first, _PART), root)
        headers.relocate(root, release)
        if failing := headers.tools_that_fail(root):
            if suites:
                own = library_suites(apt.suite_of(first[0]), suites)
                apt = PrivateApt(staging / "libraries", archive.source_lines(own), name)
            _bring_libraries(apt, failing, root, first[1])
        os.rename(root, folder / release)
    except OSError as error:
        if isinstance(error, PhysviewError):
            raise
        what, why = f"cannot unpack a kernel in {folder}", error.strerror or str(error)
        raise PhysviewError(what, why, path=str(folder)) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return unpacked_kernel(cache_dir("kernels", release))


def library_suites(suite: str, row: Iterable[str]) -> list[str]:
    """Where the libraries are that a kernel's tools were linked with.

    Args:
        suite: The suite that has the kernel.
        row: One of SERIES: what has no dash in it is looked at, too.

    >>> library_suites("trixie-security", SERIES["6.12"])
    ['trixie-security', 'trixie', 'bookworm']
    """
    base = suite.partition("-")[0]
    return list(dict.fromkeys([suite, base, *(name for name in row if "-" not in name)]))


def _bring_libraries(apt: PrivateApt, tools: list[Path], root: Path, package: str) -> None:
    """Make tools run that miss a library here, with the libraries of their own distribution."""
    # Debian's tools have a package of their own, Ubuntu's lie among the headers.
    kbuild = [path.name for path in (root / "usr/lib").glob("linux-kbuild-*")] or [package]
    libraries = apt.with_dependencies(kbuild, _LIBRARY)
    apt.unpack(set(libraries) - set(kbuild), root / "host")
    headers.wrap_tools(tools, root / "host")


def _newest(apt: PrivateApt, wanted: str, archive: Archive, architecture: str) -> str:
    pattern = _IMAGE[archive.distribution]
    found = [match for name in apt.names("linux-image-") if (match := pattern.match(name))]
    its_own = [
        match["release"]
        for match in found
        if match.groupdict().get("architecture", "amd64") == architecture
    ]
    releases = [release for release in its_own if matches(release, wanted)]
    if releases:
        return max(releases, key=age_key)
    whose = f"{archive.distribution.name} mirror"
    what = f"kernel {wanted} for {architecture}"
    if archive.distribution is DEBIAN or not its_own:
        raise apt.cannot_fetch(apt.complaints or f"this machine's {whose} has no {what}")
    raise Unsupported(
        f"no {what}",
        f"this machine's {whose} has {', '.join(_all_series(its_own))}",
        f"choose one of them; for Debian's {', '.join(SERIES)} apt needs a Debian mirror and the"
        f" package {DEBIAN.keyring_package}",
    )


def _index_modules(kernel: Kernel) -> None:
    """Write modules.dep, which Debian makes when it installs and modprobe cannot do without."""
    if (kernel.modules / "modules.dep").exists():
        return
    # In a user's PATH there often is no sbin.
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod:
        root = kernel.modules.parents[2]
        subprocess.run([depmod, "-b", str(root), kernel.release], capture_output=True, check=False)
