# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of kernels and built modules: its location, its locks, and the kernels in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from physview.errors import AccessDenied, PhysviewError
from physview.files import trusted

# For each architecture in Debian's terms: the last part of Debian's and Ubuntu's release names.
# arm64-16k and arm64-64k are flavours: arm64 with pages of 16 KiB and of 64 KiB.
FLAVOURS = {
    "amd64": ("amd64", "generic"),
    "arm64": ("arm64", "generic"),
    "arm64-16k": ("arm64-16k",),
    "arm64-64k": ("arm64-64k",),
}


class Kernel(NamedTuple):
    """The files of one kernel.

    Args:
        release: The kernel's release, as `uname -r` prints it.
        image: The bootable image, vmlinuz.
        modules: The kernel's folder lib/modules/RELEASE.
        headers: The folder for building modules; None if the headers are not installed.
    """

    release: str
    image: Path
    modules: Path
    headers: Path | None


def cache_dir(*below: str) -> Path:
    """Return the path of the cache, or of a folder or file in it.

    The cache is $PHYSVIEW_CACHE, or physview in $XDG_CACHE_HOME or in ~/.cache. Under sudo it is
    root's own cache: the user could not delete files of root in the user's cache.

    Args:
        below: The path within the cache: names of folders, and perhaps of a file at the end.

    Raises:
        AccessDenied: A user other than root and the caller could change the files there.
        PhysviewError: The cache can't be examined, or the user has no home.
    """
    return _checked(trusted.check, below)


def make_cache_dir(*below: str) -> Path:
    """Return the path of a folder in the cache, and make it if it is missing. As `cache_dir()`."""
    return _checked(trusted.make_folder, below)


def _checked(check: Callable[[Path], object], below: tuple[str, ...]) -> Path:
    cache = _location()
    place = cache.joinpath(*below)
    try:
        # Others may not even add files to the cache's own folder.
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
    """Whether a release belongs to a version.

    >>> matches("6.1.0-56-amd64", "6.1"), matches("6.12.117+deb12-amd64", "6.1")
    (True, False)
    """
    return re.match(re.escape(wanted) + r"(?!\d)", release) is not None


def age_key(release: str) -> tuple[list[int], int, list[int]]:
    """Return a key that sorts releases by age, the newest last.

    Among equal versions, the release for the oldest Debian comes last: its tools run on more
    machines.

    >>> sorted(["6.12.9+deb13-amd64", "6.12.90+deb12-amd64", "6.12.90+deb13-amd64"], key=age_key)
    ['6.12.9+deb13-amd64', '6.12.90+deb13-amd64', '6.12.90+deb12-amd64']
    """
    version, _, debian = release.rpartition("-")[0].partition("+")
    numbers = [int(number) for number in re.findall(r"\d+", debian)]
    return [int(number) for number in re.findall(r"\d+", version)], -sum(numbers[:1]), numbers[1:]


def cached_kernel(wanted: str, architecture: str) -> Kernel | None:
    """Return the newest kernel of a version in the cache; None if there is none."""
    folder = cache_dir("kernels")
    suffixes = tuple(f"-{flavour}" for flavour in FLAVOURS[architecture])
    try:
        all_names = [name for name in os.listdir(folder) if name.endswith(suffixes)]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(folder, error) from None
    names = [name for name in all_names if matches(name, wanted)]
    # cache_dir() checks the path again: another user could have made the folder in the meantime.
    return unpacked_kernel(cache_dir("kernels", max(names, key=age_key))) if names else None


def unpacked_kernel(folder: Path) -> Kernel:
    """Return the kernel whose packages are unpacked in a folder named after the release."""
    release = folder.name
    mark_used(folder)
    modules = folder / "lib/modules" / release
    image = next(filter(Path.exists, image_paths(folder, release)))
    return Kernel(release, image, modules, folder / f"usr/src/linux-headers-{release}")


def running_kernel(root: Path = Path("/"), *, to_boot: bool = True) -> Kernel | None:
    """Return the running kernel; None if this user can't read its image and modules.

    Args:
        root: The root folder of the kernel's files.
        to_boot: Whether the image must be readable. Building modules does not need the image.
    """
    release = os.uname().release
    modules = root / "lib/modules" / release
    if not os.access(modules, os.R_OK | os.X_OK):
        return None
    headers = modules / "build"
    for image in image_paths(root, release):
        if not to_boot or os.access(image, os.R_OK):
            return Kernel(release, image, modules, headers if headers.is_dir() else None)
    return None


def image_paths(root: Path, release: str) -> tuple[Path, Path]:
    """Return the possible paths of a kernel's image.

    The image is in /boot, or beside the modules in Debian 14, Arch and Fedora.
    """
    return root / f"boot/vmlinuz-{release}", root / f"lib/modules/{release}/vmlinuz"


@contextlib.contextmanager
def locked(name: str, *below: str) -> Iterator[Path]:
    """Make a folder of the cache, and hold a lock in it. Other processes wait for the lock.

    Args:
        name: The name of the lock.
        below: The path of the folder, as for `cache_dir()`.

    Yields:
        The folder.

    Raises:
        AccessDenied: A user other than root and the caller could change the files there.
        PhysviewError: The folder can't be written.
    """
    folder = make_cache_dir(*below)
    lock = _lock(lock_path(folder, name), fcntl.LOCK_EX)
    # The kernel releases the lock when the file is closed, also if this process is killed.
    try:
        yield folder
    finally:
        os.close(lock)


@contextlib.contextmanager
def locked_if_free(name: str, *below: str) -> Iterator[bool]:
    """As `locked()`, but do not wait; yield whether the lock was free."""
    try:
        lock = _lock(lock_path(make_cache_dir(*below), name), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def lock_path(folder: Path, name: str) -> Path:
    """The file of a lock."""
    return folder / f".{name}.lock"


def _lock(path: Path, how: int) -> int:
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock = os.open(path, flags, 0o600)
        except OSError as error:
            raise _unusable(path.parent, error) from None
        try:
            fcntl.flock(lock, how)
            # Who held the lock may have removed the file.
            if os.fstat(lock).st_ino == os.stat(path).st_ino:
                return lock
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def mark_used(place: Path) -> None:
    """Note that something in the cache is used now; see `unused`."""
    with contextlib.suppress(OSError):  # a cache that root made for all users
        os.utime(place)


@contextlib.contextmanager
def held(paths: Iterable[Path]) -> Iterator[list[int]]:
    """Keep what is used in the cache from being removed.

    Args:
        paths: Paths in the cache, at any depth. Others are left out.

    Yields:
        Descriptors. The files and folders are locked as long as a process has these open.
    """
    try:
        cache = _location()
    except PhysviewError:  # there is none
        yield []
        return
    places = set()
    for path in paths:
        with contextlib.suppress(ValueError):  # it is not in the cache
            parts = Path(os.path.abspath(path)).relative_to(cache).parts
            places.add(Path(*parts[: 3 if parts[:1] == ("modules",) else 2]))
    locks: list[int] = []
    try:
        for place in sorted(places):
            mark_used(cache / place)
            # Without read permission there is no lock.
            with contextlib.suppress(OSError):
                locks.append(os.open(cache / place, os.O_RDONLY | os.O_CLOEXEC))
                fcntl.flock(locks[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield locks
    finally:
        for lock in locks:
            os.close(lock)


def _unusable(folder: Path, error: OSError) -> PhysviewError:
    if isinstance(error, PhysviewError):
        return error
    kind = AccessDenied if isinstance(error, PermissionError) else PhysviewError
    what, why = f"cannot use the cache {folder}", error.strerror or str(error)
    return kind(what, why, "set PHYSVIEW_CACHE to a folder of your own", path=str(folder))
