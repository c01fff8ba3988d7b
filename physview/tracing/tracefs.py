# SPDX-License-Identifier: GPL-2.0-or-later
"""Access to tracefs: finds its mount point, and reaches all its files through one descriptor.

The descriptor is checked to be in a tracefs, so that no other file system mounted over the path is
mistaken for it.

Source: Documentation/trace/ftrace.rst, fs/tracefs/inode.c
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.files import filesystems
from physview.files.descriptor import Descriptor
from physview.runtime import invocation, privileges
from physview.text import proctext

MOUNT = "mount -t tracefs nodev /sys/kernel/tracing"


def trace_in_vm() -> str:
    """Return the remedy for a user who cannot trace here."""
    return f"trace in a throwaway VM: {invocation.in_vm('trace …', '--kernel 6.1')}"


class Tracefs(Descriptor):
    """An open tracefs. A file system that is mounted over its path later has no effect.

    Args:
        path: The mount point.

    Raises:
        OSError: The path is not in a tracefs, or the kernel refuses.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = filesystems.open_folder(path, filesystems.TRACEFS, flags=os.O_PATH)

    def has(self, name: str) -> bool:
        """Whether a file or folder exists and this user may see it."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def allows(self, name: str, mode: int) -> bool:
        """Whether this user may access a file or folder.

        Args:
            name: The file or folder; "." is the root of tracefs.
            mode: The kind of access, as in os.access().
        """
        return os.access(name, mode, dir_fd=self._fd)

    def open(self, name: str, flags: int) -> int:
        """Open a file and return its descriptor.

        Raises:
            OSError: The kernel refuses.
        """
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            PhysviewError: The kernel refuses.
        """
        try:
            with open(self.open(name, os.O_RDONLY), "rb") as file:
                return file.read()
        except OSError as error:
            raise refused("cannot trace", error, f"{self.path}/{name}") from None

    def write(self, name: str, text: str) -> None:
        """Write to a file without truncating it. Truncation would clear the kernel's list.

        Raises:
            OSError: The kernel refuses.
        """
        fd = self.open(name, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, text.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder.

        Raises:
            OSError: The kernel refuses.
        """
        fd = self.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def make_folder(self, name: str) -> None:
        """Make a folder. Raises OSError."""
        os.mkdir(name, dir_fd=self._fd)

    def remove_folder(self, name: str) -> None:
        """Remove a folder. Raises OSError."""
        os.rmdir(name, dir_fd=self._fd)


def mount_paths() -> list[str]:
    """Return the paths at which tracefs may be mounted, from /proc/self/mountinfo."""
    mounts = proctext.read_mounts()
    paths = [mount.path for mount in mounts if mount.kind == "tracefs"]
    # The kernel mounts tracefs below debugfs automatically at the first access.
    return paths + [f"{mount.path}/tracing" for mount in mounts if mount.kind == "debugfs"]


def iter_tracefs() -> Iterator[Tracefs]:
    """Open each mounted tracefs. The caller closes them."""
    for path in mount_paths():
        try:
            yield Tracefs(path)
        except OSError:  # another file system is mounted over it, or only root may reach the path
            continue


def find_tracefs() -> Tracefs:
    """Open the tracefs to trace with.

    Raises:
        Unsupported: tracefs is not mounted, or this kernel has no tracefs.
        AccessDenied: Only root may use tracefs.
    """
    what = "cannot trace"
    for tracefs in iter_tracefs():
        if tracefs.allows("instances", os.W_OK | os.X_OK):
            return tracefs
        is_root = tracefs.has("instances")  # False for a bind mount of one of its folders
        tracefs.close()
        if is_root:
            raise AccessDenied(what, *_WHY_NOT[os.geteuid() == 0], path=tracefs.path)
    if os.geteuid() != 0:
        raise AccessDenied(what, *_WHY_NOT[False])
    if is_supported():
        raise Unsupported(what, "tracefs is not mounted", f"mount it: {invocation.as_root(MOUNT)}")
    why, remedy = "this kernel has no tracefs", "boot a kernel with CONFIG_FTRACE=y"
    raise Unsupported(what, why, f"{remedy}, or {trace_in_vm()}")


_WHY_NOT = {
    False: ("only root may use tracefs", "run as root"),
    True: ("root may not write to tracefs here, as in a container", "run physview outside of it"),
}


def is_supported() -> bool:
    """Whether this kernel has tracefs. Source: /proc/filesystems"""
    with open("/proc/filesystems", "rb") as file:
        return b"nodev\ttracefs" in proctext.lines(file.read())


def refused(what: str, error: OSError, path: str) -> PhysviewError:
    """Return the error of physview for an OSError of a file in tracefs."""
    if error.errno in (errno.EACCES, errno.EPERM):
        level = privileges.lockdown()
        if level:
            why = f"the kernel is locked down ({level})"
            return AccessDenied(what, why, f"boot without lockdown, or {trace_in_vm()}", path=path)
        why = "the kernel refuses this user"
        return AccessDenied(what, why, "run as root, outside of a container", path=path)
    return PhysviewError(what, f"{path}: {error.strerror}", path=path)
