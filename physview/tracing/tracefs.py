# SPDX-License-Identifier: GPL-2.0-or-later
"""tracefs: where it is mounted, and its files, all by one descriptor that is surely tracefs's.

Source: Documentation/trace/ftrace.rst, fs/tracefs/inode.c
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from physview.errors import AccessDenied, PhysviewError, Unsupported
from physview.files import filesystems
from physview.files.descriptor import Descriptor
from physview.runtime import invocation
from physview.text import proctext

MOUNT = "mount -t tracefs nodev /sys/kernel/tracing"
LOCKDOWN = "/sys/kernel/security/lockdown"


def trace_in_vm() -> str:
    """The advice for who cannot trace here."""
    return f"trace in a throwaway VM: {invocation.in_vm('trace …', '--kernel 6.1')}"


class Tracefs(Descriptor):
    """A tracefs held open: what is mounted over its path later is not used.

    Args:
        path: Where it is mounted.

    Raises:
        OSError: It is no tracefs, or the kernel refuses.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = filesystems.open_folder(path, filesystems.TRACEFS, flags=os.O_PATH)

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder, and this user may know."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def allows(self, name: str, mode: int) -> bool:
        """Whether this user may do that with a file or folder.

        Args:
            name: The file or folder; "." is the whole.
            mode: As in os.access().
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
        """Write to a file, without cutting it off first: that would clear it.

        Raises:
            OSError: The kernel refuses.
        """
        fd = self.open(name, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, text.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)

    def names(self, folder: str) -> list[str]:
        """What lies in a folder.

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


def mounted() -> list[str]:
    """Where tracefs may be: a list of names, as /proc/self/mountinfo tells them."""
    mounts = proctext.read_mounts()
    paths = [mount.path for mount in mounts if mount.kind == "tracefs"]
    # Below debugfs the kernel mounts it by itself as soon as it is looked for.
    return paths + [f"{mount.path}/tracing" for mount in mounts if mount.kind == "debugfs"]


def iter_tracefs() -> Iterator[Tracefs]:
    """Open each tracefs that is mounted; the caller closes them."""
    for path in mounted():
        try:
            yield Tracefs(path)
        except OSError:  # something else is mounted over it, or lies behind what is root's
            continue


def find_tracefs() -> Tracefs:
    """Open the tracefs to trace with.

    Raises:
        Unsupported: It is not mounted, or not in this kernel.
        AccessDenied: It is root's.
    """
    what = "cannot trace"
    for tracefs in iter_tracefs():
        if tracefs.allows("instances", os.W_OK | os.X_OK):
            return tracefs
        is_whole = tracefs.has("instances")  # and not one of its folders, mounted by itself
        tracefs.close()
        if is_whole:
            raise AccessDenied(what, "tracefs is root's", "run as root", path=tracefs.path)
    if os.geteuid() != 0:
        raise AccessDenied(what, "tracefs is root's", "run as root")
    if is_known():
        raise Unsupported(what, "tracefs is not mounted", f"mount it: {invocation.as_root(MOUNT)}")
    why, remedy = "this kernel has no tracefs", "it takes one with CONFIG_FTRACE=y"
    raise Unsupported(what, why, f"{remedy}, or {trace_in_vm()}")


def is_known() -> bool:
    """Whether this kernel has it. Source: /proc/filesystems"""
    with open("/proc/filesystems", "rb") as file:
        return b"nodev\ttracefs" in proctext.lines(file.read())


def locked_down() -> str:
    """The kernel's lockdown, where it is on; "" where it is not."""
    try:
        with open(LOCKDOWN, "rb") as file:
            match = re.search(rb"\[(\w+)\]", file.read())
    except OSError:
        return ""
    return match[1].decode() if match and match[1] != b"none" else ""


def refused(what: str, error: OSError, path: str) -> PhysviewError:
    """What an error of a file in tracefs means."""
    if error.errno in (errno.EACCES, errno.EPERM):
        level = locked_down()
        if level:
            why = f"the kernel is locked down ({level})"
            return AccessDenied(what, why, f"boot without lockdown, or {trace_in_vm()}", path=path)
        why = "the kernel refuses this user"
        return AccessDenied(what, why, "run as root, outside of a container", path=path)
    return PhysviewError(what, f"{path}: {error.strerror}", path=path)
