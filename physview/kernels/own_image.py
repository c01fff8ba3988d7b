# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches the running kernel's image from its package, if only root may read the image in /boot.

Ubuntu makes the image readable for root only. Modules and headers are readable for all users. The
machine's own apt has the package.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from physview.errors import Unsupported
from physview.kernels import mirrors
from physview.kernels.apt import PrivateApt, missing_program
from physview.kernels.cache import Kernel, cache_dir, image_paths, locked, mark_used, running_kernel
from physview.runtime import invocation


def fetch_own_image(
    tell: Callable[[str], object] | None = None, root: Path = Path("/")
) -> Kernel | None:
    """Fetch the running kernel's image, if the installed one can be read by root only.

    The image goes into the cache, and comes from there the next time.

    Args:
        tell: Called with a message before a step that takes long.
        root: The root folder of the kernel's files.

    Returns:
        The kernel, with the fetched image. None if fetching does not help: the installed image is
        readable or missing, or the modules are not readable.

    Raises:
        Unsupported: This machine can't fetch the image.
        PhysviewError: The cache can't be written.
    """
    release = os.uname().release
    closed = next(filter(os.path.exists, image_paths(root, release)), None)
    modules = root / "lib/modules" / release
    if not closed or running_kernel(root) or not os.access(modules, os.R_OK | os.X_OK):
        return None
    if os.uname().machine not in ("x86_64", "aarch64"):
        return None
    name = f"vmlinuz-{release}"
    with locked(name, "images") as folder:
        if not (folder / name).exists():
            if tell:
                tell(f"only root may read {closed}: fetching linux-image-{release} into {folder}")
            _fetch(folder / name, release, invocation.as_root(f"chmod a+r {closed}"))
        image = cache_dir("images", name)
        mark_used(image)
    headers = modules / "build"
    return Kernel(release, image, modules, headers if headers.is_dir() else None)


def _fetch(image: Path, release: str, remedy: str) -> None:
    package = f"linux-image-{release}"
    what = f"cannot fetch {package}"
    if program := missing_program():
        raise Unsupported(what, f"this machine has no {program}", remedy)
    why = "apt has no mirror of Debian or Ubuntu"
    # Unpack in the image's folder, so that the image can be renamed into place.
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".new-") as work:
        for archive in mirrors.archives().values():
            whose = archive.distribution.name
            apt = PrivateApt(Path(work, whose), archive.source_lines(), whose)
            if package not in apt.names(package):
                why = apt.update_errors or f"this machine's {whose} mirror has no such package"
                continue
            apt.unpack([package], Path(work, "unpacked"))
            paths = image_paths(Path(work, "unpacked"), release)
            if found := next(filter(Path.is_file, paths), None):
                os.rename(found, image)
                return
            why = f"{package} has no vmlinuz-{release}"
    raise Unsupported(what, why, remedy)
