# SPDX-License-Identifier: GPL-2.0-or-later
"""The running kernel's image, from its package, where the one in /boot is for root alone.

Ubuntu has it so; modules and headers can be read there. The machine's own apt knows the package.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from physview.errors import Unsupported
from physview.kernels import mirrors
from physview.kernels.apt import PrivateApt, missing_program
from physview.kernels.cache import Kernel, cache_dir, image_places, locked, running_kernel
from physview.runtime import invocation


def fetch_own_image(
    tell: Callable[[str], object] | None = None, root: Path = Path("/")
) -> Kernel | None:
    """The kernel that runs, with an image from the cache, or fetched into it.

    Args:
        tell: Called with a line of text before something that takes long.
        root: Where the kernel's files are looked for.

    Returns:
        None where that would not help: the image can be read, or is not there at all, or the
        modules cannot be read either.

    Raises:
        Unsupported: It cannot be fetched here.
        PhysviewError: The cache cannot be written.
    """
    release = os.uname().release
    closed = next(filter(os.path.exists, image_places(root, release)), None)
    modules = root / "lib/modules" / release
    if not closed or running_kernel(root) or not os.access(modules, os.R_OK | os.X_OK):
        return None
    if os.uname().machine != "x86_64":
        return None
    name = f"vmlinuz-{release}"
    with locked(name, "images") as folder:
        if not (folder / name).exists():
            if tell:
                tell(f"{closed} is for root alone: fetching linux-image-{release} into {folder}")
            _fetch(folder / name, release, invocation.as_root(f"chmod a+r {closed}"))
        image = cache_dir("images", name)
    headers = modules / "build"
    return Kernel(release, image, modules, headers if headers.is_dir() else None)


def _fetch(image: Path, release: str, remedy: str) -> None:
    package = f"linux-image-{release}"
    what = f"cannot fetch {package}"
    if program := missing_program():
        raise Unsupported(what, f"this machine has no {program}", remedy)
    why = "apt has no mirror of Debian or Ubuntu"
    # Beside the image: only there can it be moved into place.
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".new-") as work:
        for archive in mirrors.archives().values():
            whose = archive.distribution.name
            apt = PrivateApt(Path(work, whose), archive.source_lines(), whose)
            if package not in apt.names(package):
                why = apt.complaints or f"this machine's {whose} mirror has no such package"
                continue
            apt.unpack([package], Path(work, "unpacked"))
            places = image_places(Path(work, "unpacked"), release)
            if found := next(filter(Path.is_file, places), None):
                os.rename(found, image)
                return
            why = f"{package} has no vmlinuz-{release}"
    raise Unsupported(what, why, remedy)
