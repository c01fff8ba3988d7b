# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the files that a process maps, and opens them as the process would.

Root opens them by /proc/PID/map_files, which leads to exactly the file that is mapped, even if it
was deleted or another has taken its name. Other users open them by name, below the process's own
root folder, and compare device and inode. Nothing of a process's tree of files is trusted: no link
leads out of its root, and no device is opened.

Source: /proc/PID/maps, /proc/PID/map_files, /proc/PID/root, openat2(2)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from physview import _ffi
from physview.errors import AccessDenied, PhysviewError, of_path
from physview.files import filesystems
from physview.sources.page_cache import cannot_look_up
from physview.sources.procfs import ProcDir

Identity = tuple[int, int]
"""Device and inode, as in /proc/PID/maps."""

_DELETED = " (deleted)"
# Their files may have another device number in maps than stat() has.
_BTRFS, _OVERLAY = 0x9123683E, 0x794C7630


class MappedFile(NamedTuple):
    """A file that a process maps.

    Args:
        path: As the process sees it; the kernel adds " (deleted)" if it has no name any more.
        identity: Device and inode.
        start: Address of its first mapping.
        end: End of this mapping.
    """

    path: str
    identity: Identity
    start: int
    end: int


def iter_mapped_files(proc: ProcDir) -> Iterator[MappedFile]:
    """Yield each file that a process maps once, in the order of the first mappings.

    Raises as `ProcDir.iter_vmas()` does.
    """
    seen = set()
    for vma in proc.iter_vmas():
        if not vma.inode:
            continue
        major, _, minor = vma.device.partition(":")
        identity = (os.makedev(int(major, 16), int(minor, 16)), vma.inode)
        if identity not in seen:
            seen.add(identity)
            yield MappedFile(vma.path, identity, vma.start, vma.end)


def open_mapped(proc: ProcDir, mapped: MappedFile) -> int:
    """Find a file that a process maps.

    Returns:
        A descriptor that names the file (O_PATH), and was not opened for reading.

    Raises:
        PhysviewError: It cannot be reached by this user, or is not mapped any more.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    name = f"map_files/{mapped.start:x}-{mapped.end:x}"
    try:
        return os.open(name, flags, dir_fd=proc.fd)
    except OSError:  # without CAP_CHECKPOINT_RESTORE, or not mapped there any more
        pass
    what = cannot_look_up(mapped.path)
    if mapped.path.endswith(_DELETED) or not mapped.path.startswith("/"):
        why = "it has no name, and only root may open it by the mapping"
        raise AccessDenied(what, why, "run as root" if os.geteuid() else "", path=mapped.path)
    try:
        root = os.open("root", flags | os.O_DIRECTORY, dir_fd=proc.fd)
    except OSError as error:
        raise of_path(what, error, mapped.path) from None
    try:
        fd = _open_below(root, mapped.path)
    except OSError as error:
        raise of_path(what, error, mapped.path) from None
    finally:
        os.close(root)
    if not _is(fd, mapped.identity):
        os.close(fd)
        raise PhysviewError(what, "another file has taken its name", path=mapped.path)
    return fd


def _open_below(root: int, path: str) -> int:
    _, lib = _ffi.load()
    return _ffi.check(lib.pv_open_in_root(root, os.fsencode(path)), path)


def _is(fd: int, identity: Identity) -> bool:
    info = os.fstat(fd)
    if info.st_ino != identity[1]:
        return False
    return info.st_dev == identity[0] or filesystems.type_of(fd) in (_BTRFS, _OVERLAY)
