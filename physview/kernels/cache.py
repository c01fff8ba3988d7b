# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder that kernels and built modules are kept in, and what a kernel in it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import AccessDenied, PhysviewError
from physview.files import trusted

# By Debian's name of an architecture: how releases for it end, Debian's and Ubuntu's.
FLAVOURS = {"amd64": ("amd64", "generic"), "arm64": ("arm64",)}


class Kernel(NamedTuple):
    """The files of one kernel.

    Args:
        release: What `uname -r` says there.
        image: The bootable image, vmlinuz.
        modules: Its folder lib/modules/RELEASE.
        headers: The folder to build modules in, or None where it is not installed.
    """

    release: str
    image: Path
    modules: Path
    headers: Path | None


def cache_dir(*below: str) -> Path:
    """The cache: $PHYSVIEW_CACHE, or physview in $XDG_CACHE_HOME or in ~/.cache; or a place in it.

    Under sudo it is root's own: files of root in a user's cache would be in that user's way.

    Args:
        below: Names of folders in it, and of a file at the end.

    Raises:
        AccessDenied: Somebody other than root and the caller could change what is there.
        PhysviewError: It cannot be looked at, or the user has no home.
    """
    return _checked(trusted.check, below)


def make_cache_dir(*below: str) -> Path:
    """The same, of a folder: it is made where it is missing."""
    return _checked(trusted.make_folder, below)


def _checked(check: Callable[[Path], object], below: tuple[str, ...]) -> Path:
    cache = _location()
    place = cache.joinpath(*below)
    try:
        # It may not be a folder that others may add to, even if what is in it is nobody else's.
        check(cache)
        if below:
            check(place)
    except OSError as error:
        raise _unusable(cache, error) from None
    return place


def _location() -> Path:
    if chosen := os.environ.get("PHYSVIEW_CACHE"):
        return Path(chosen).absolute()
    try:
        if os.geteuid() == 0 and "SUDO_UID" in os.environ:
            return Path(pwd.getpwuid(0).pw_dir) / ".cache/physview"
        base = os.environ.get("XDG_CACHE_HOME", "")
        # XDG Base Directory Specification: "All paths … must be absolute"; others are ignored.
        folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        return folder.absolute() / "physview"  # HOME need not be
    except (RuntimeError, KeyError):
        raise PhysviewError(
            "there is no folder for kernels and modules",
            f"uid {os.geteuid()} has neither HOME nor an entry in /etc/passwd",
            "set PHYSVIEW_CACHE to a folder",
        ) from None


def matches(release: str, wanted: str) -> bool:
    """Whether a release is of the version that was asked for.

    >>> matches("6.1.0-56-amd64", "6.1"), matches("6.12.117+deb12-amd64", "6.1")
    (True, False)
    """
    return re.match(re.escape(wanted) + r"(?!\d)", release) is not None


def age_key(release: str) -> tuple[list[int], int, list[int]]:
    """Sorts releases, the newest last.

    Of equals the one for the older Debian comes last: its tools run on more machines.

    >>> sorted(["6.12.9+deb13-amd64", "6.12.90+deb12-amd64", "6.12.90+deb13-amd64"], key=age_key)
    ['6.12.9+deb13-amd64', '6.12.90+deb13-amd64', '6.12.90+deb12-amd64']
    """
    version, _, debian = release.rpartition("-")[0].partition("+")
    numbers = [int(number) for number in re.findall(r"\d+", debian)]
    return [int(number) for number in re.findall(r"\d+", version)], -sum(numbers[:1]), numbers[1:]


def cached_kernel(wanted: str, architecture: str) -> Kernel | None:
    """The newest kernel of a version in the cache, or None."""
    folder = cache_dir("kernels")
    suffixes = tuple(f"-{flavour}" for flavour in FLAVOURS[architecture])
    try:
        all_names = [name for name in os.listdir(folder) if name.endswith(suffixes)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(folder, error) from None
    names = [name for name in all_names if matches(name, wanted)]
    # Looked at once more, now that it is there: until now another could have made it.
    return unpacked_kernel(cache_dir("kernels", max(names, key=age_key))) if names else None


def unpacked_kernel(folder: Path) -> Kernel:
    """The kernel whose packages were unpacked in a folder with its release's name."""
    release = folder.name
    modules = folder / "lib/modules" / release
    image = next(filter(Path.exists, image_places(folder, release)))
    return Kernel(release, image, modules, folder / f"usr/src/linux-headers-{release}")


def running_kernel(root: Path = Path("/"), *, to_boot: bool = True) -> Kernel | None:
    """The kernel that runs, or None where this user cannot read its image and modules.

    Args:
        root: Where its files are looked for.
        to_boot: Whether its image is needed; modules are built without.
    """
    release = os.uname().release
    modules = root / "lib/modules" / release
    if not os.access(modules, os.R_OK | os.X_OK):
        return None
    headers = modules / "build"
    for image in image_places(root, release):
        if not to_boot or os.access(image, os.R_OK):
            return Kernel(release, image, modules, headers if headers.is_dir() else None)
    return None


def image_places(root: Path, release: str) -> tuple[Path, Path]:
    """Where a kernel's image may lie: since Debian 14, and in Arch and Fedora, by the modules."""
    return root / f"boot/vmlinuz-{release}", root / f"lib/modules/{release}/vmlinuz"


@contextlib.contextmanager
def locked(name: str, *below: str) -> Iterator[Path]:
    """Make a folder of the cache and hold a lock in it: others wait until it is let go.

    Args:
        name: What is locked in the folder.
        below: As for `cache_dir`.

    Yields:
        The folder.

    Raises:
        AccessDenied: Somebody other than root and the caller could change what is there.
        PhysviewError: The folder cannot be written.
    """
    folder = make_cache_dir(*below)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(folder / f".{name}.lock", flags, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from None
    # The kernel lets go of the lock when the file is closed, also when this process is killed.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)


def _unusable(folder: Path, error: OSError) -> PhysviewError:
    if isinstance(error, PhysviewError):
        return error
    kind = AccessDenied if isinstance(error, PermissionError) else PhysviewError
    what, why = f"cannot use the cache {folder}", error.strerror or str(error)
    return kind(what, why, "set PHYSVIEW_CACHE to a folder of your own", path=str(folder))
