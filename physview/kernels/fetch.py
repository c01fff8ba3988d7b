# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds a kernel of a version: in the cache, or by fetching it from Debian's or Ubuntu's archive.

From Debian's archive every version in SERIES can be fetched, whatever suites the machine's own apt
has. From Ubuntu's archive the kernels in the machine's own suites can be fetched: Ubuntu adds newer
kernels to the same suites.
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
from physview.kernels.apt import PrivateApt, missing_program, own_architecture
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

# The Debian suites of each version. A last suite without a dash is only for libraries, which the
# kernel's tools may need: a mirror may no longer have the suite that the kernel comes from.
SERIES = {
    "5.10": ("bullseye-security", "bookworm"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-security", "trixie-security", "bookworm"),
    "7.2": ("sid", "trixie-backports"),
    "7.3": ("sid", "trixie-backports"),
}

_FALLBACK = "6.1"

# Architectures in Debian's terms, or flavours of them. Modules can be built for all of them.
ARCHITECTURES = tuple(FLAVOURS)
# What no distribution has. scripts/build-kernel puts it into the cache.
_SELF_BUILT = ("arm64-64k",)

_VERSION = re.compile(r"\d+\.\d+(?!\d)[\w.+-]*$")
# linux-image-RELEASE, only of the flavours in ARCHITECTURES: the cloud flavour has no 9p, and rt is
# another kernel. Packages with fewer numbers in their names are empty, and depend on the newest
# kernel.
_IMAGE = {
    DEBIAN: re.compile(
        r"linux-image-(?P<release>\d+\.\d+\.\d+(-\d+)?(\+deb[\d.]+)?"
        rf"-(?P<architecture>{'|'.join(ARCHITECTURES)}))$"
    ),
    UBUNTU: re.compile(r"linux-image-(?P<release>\d+\.\d+\.\d+-\d+-generic)$"),
}
# Packages that are parts of a kernel. They include neither compilers nor linux-base, which has
# scripts for installation. Ubuntu's hardware enablement kernels name their headers differently:
# linux-hwe-7.0-headers-7.0.0-44.
_PART = re.compile(r"linux-(base-\d|binary-|(hwe-\S+-)?headers-|kbuild-|modules-)")
_LIBRARY = re.compile(r"(lib(?!ssl)|zlib)")


def find_kernel(
    wanted: str, tell: Callable[[str], object] | None = None, *, architecture: str = ""
) -> Kernel:
    """Return a kernel of Debian's or Ubuntu's, with its modules and headers.

    The kernel comes from the cache, or it is fetched. Nothing is installed, and no root privileges
    are needed. If two processes want the same kernel at the same time, it is fetched once.

    Args:
        wanted: A version: "6.1", "6.1.0-56" or "6.1.0-56-amd64"; for arm64 also "6.12-16k" and
            "6.12-64k", with pages of 16 KiB and of 64 KiB.
        tell: Called with a message before a step that takes long.
        architecture: One of ARCHITECTURES; by default this machine's. The headers' tools are
            always for this machine.

    Raises:
        UsageError: The version is unknown.
        Unsupported: This machine can't fetch the kernel.
        PhysviewError: The cache can't be used.
    """
    if not _VERSION.match(wanted):
        raise _unknown(wanted)
    architecture = architecture or own_architecture()
    pages = re.search("(-arm64)?(-16k|-64k)$", wanted)
    if architecture == "arm64" and pages:
        architecture, wanted = f"arm64{pages[2]}", wanted.removesuffix(pages[0])
    kernel = cached_kernel(wanted, architecture)
    if kernel is None and architecture in _SELF_BUILT:
        raise _not_built(wanted, architecture)
    if kernel is None:
        archive = _archive(wanted)
        # Lock the series: "6.1" and "6.1.0-56" can be the same kernel.
        name = f"{_series(wanted)}-{architecture}"
        with locked(name, "kernels") as folder:
            # Another process may have fetched it while this process waited for the lock.
            kernel = cached_kernel(wanted, architecture)
            if kernel is None:
                staging = folder / f".{name}.new"
                kernel = _fetch(staging, wanted, archive, architecture, tell)
    _index_modules(kernel)
    return kernel


def fallback_version() -> tuple[str, str]:
    """Return the kernel to boot if the running kernel can't be booted.

    Returns:
        The distribution's name, and the version.

    Raises:
        Unsupported: apt has not fetched its lists yet.
    """
    archives = mirrors.archives()
    if DEBIAN in archives or UBUNTU not in archives:
        return DEBIAN.name, _FALLBACK
    # Ubuntu keeps the first kernel of a release in its archive, and removes newer ones.
    names = mirrors.known_packages("linux-image-")
    found = [match["release"] for name in names if (match := _IMAGE[UBUNTU].match(name))]
    if not found:
        remedy = invocation.as_root("apt-get update")
        raise Unsupported("cannot choose a kernel", "apt has no lists", remedy)
    return UBUNTU.name, _all_series(found)[0]


def _series(wanted: str) -> str:
    """Return the first two numbers of a version: "6.1" of "6.1.0-56"."""
    return ".".join(re.split(r"[^\d]", wanted)[:2])


def _all_series(releases: Iterable[str]) -> list[str]:
    names = {_series(release) for release in releases}
    return sorted(names, key=lambda name: [int(number) for number in name.split(".")])


def _archive(wanted: str) -> Archive:
    """Return the archive to fetch a version from: Debian's if it has the version, else Ubuntu's."""
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


def _not_built(wanted: str, architecture: str) -> Unsupported:
    what = f"no kernel {wanted} for {architecture}"
    remedy = f"build Linux 6.12 in a checkout of physview: ./scripts/build-kernel {architecture}"
    return Unsupported(what, "Debian has no kernel with pages of 64 KiB", remedy)


def _fetch(
    staging: Path,
    wanted: str,
    archive: Archive,
    architecture: str,
    tell: Callable[[str], object] | None,
) -> Kernel:
    name = archive.distribution.name
    if (machine := os.uname().machine) not in ("x86_64", "aarch64"):
        why, remedy = f"this machine is {machine}", "use an x86-64 or arm64 machine"
        raise Unsupported(f"cannot use {name}'s packages", why, remedy)
    folder = staging.parent
    # Remove the files of a killed process. The lock guarantees that no process uses them.
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(0o700)
        own = own_architecture()
        foreign = {architecture.partition("-")[0]} - {own}
        series = next((series for series in SERIES if matches(wanted, series)), "")
        suites = SERIES[series] if archive.distribution is DEBIAN else ()
        lines = archive.source_lines(suites, [own, *foreign])
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
                newer = library_suites(apt.suite_of(first[0]), suites)
                apt = PrivateApt(staging / "libraries", archive.source_lines(newer), name)
            _add_libraries(apt, failing, root, first[1])
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
    """Return the suites with the libraries that a kernel's tools were linked with.

    Args:
        suite: The suite that has the kernel.
        row: The suites of the kernel in SERIES. Those without a dash are included, too.

    >>> library_suites("trixie-security", SERIES["6.12"])
    ['trixie-security', 'trixie', 'bookworm']
    """
    base = suite.partition("-")[0]
    return list(dict.fromkeys([suite, base, *(name for name in row if "-" not in name)]))


def _add_libraries(apt: PrivateApt, tools: list[Path], root: Path, package: str) -> None:
    """Fetch libraries of the kernel's distribution for the tools that lack libraries here."""
    # Debian has a separate package for the tools. Ubuntu has the tools among the headers.
    kbuild = [path.name for path in (root / "usr/lib").glob("linux-kbuild-*")] or [package]
    libraries = apt.with_dependencies(kbuild, _LIBRARY)
    apt.unpack(set(libraries) - set(kbuild), root / "host")
    headers.wrap_tools(tools, root / "host")


def _newest(apt: PrivateApt, wanted: str, archive: Archive, architecture: str) -> str:
    pattern = _IMAGE[archive.distribution]
    found = [match for name in apt.names("linux-image-") if (match := pattern.match(name))]
    of_architecture = [
        match["release"]
        for match in found
        if match.groupdict().get("architecture", own_architecture()) == architecture
    ]
    releases = [release for release in of_architecture if matches(release, wanted)]
    if releases:
        return max(releases, key=age_key)
    whose = f"{archive.distribution.name} mirror"
    what = f"kernel {wanted} for {architecture}"
    if archive.distribution is DEBIAN or not of_architecture:
        raise apt.cannot_fetch(apt.update_errors or f"this machine's {whose} has no {what}")
    raise Unsupported(
        f"no {what}",
        f"this machine's {whose} has {', '.join(_all_series(of_architecture))}",
        f"choose one of these; for Debian's {', '.join(SERIES)} apt needs a Debian mirror and the"
        f" package {DEBIAN.keyring_package}",
    )


def _index_modules(kernel: Kernel) -> None:
    """Write modules.dep, which modprobe needs. Debian makes it only at installation."""
    if (kernel.modules / "modules.dep").exists():
        return
    # A user's PATH often lacks the sbin folders.
    depmod = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if depmod:
        root = kernel.modules.parents[2]
        subprocess.run([depmod, "-b", str(root), kernel.release], capture_output=True, check=False)
