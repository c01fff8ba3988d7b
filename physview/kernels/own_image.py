# SPDX-License-Identifier: GPL-2.0-or-later
"""The running kernel's image, from its package, where the one in /boot is for root alone.

Ubuntu has it so; modules and headers can be read there. The machine's own apt knows the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from physview.errors import Unsupported
from physview.kernels.cache import Kernel, cache_dir, image_places, locked, running_kernel
from physview.kernels.debian import complaints_of, environment


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
    folder = cache_dir() / "images"
    image = folder / f"vmlinuz-{release}"
    with locked(folder, image.name):
        if not image.exists():
            if tell:
                tell(f"{closed} is for root alone: fetching linux-image-{release} into {folder}")
            _fetch(image, release, f"sudo chmod a+r {closed}")
    headers = modules / "build"
    return Kernel(release, image, modules, headers if headers.is_dir() else None)


def _fetch(image: Path, release: str, remedy: str) -> None:
    package = f"linux-image-{release}"
    what = f"cannot fetch {package}"
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unsupported(what, f"this machine has no {program}", remedy)
    # Beside the image: only there can it be moved into place.
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".new-") as work:
        fetched = _run("apt-get", "-q", "download", package, cwd=work)
        debs = list(Path(work).glob("*.deb"))
        if fetched.returncode or not debs:
            raise Unsupported(what, complaints_of(fetched) or "apt-get got nothing", remedy)
        unpacked = _run("dpkg-deb", "-x", str(debs[0]), "unpacked", cwd=work)
        found = [path for path in image_places(Path(work, "unpacked"), release) if path.is_file()]
        if unpacked.returncode or not found:
            why = complaints_of(unpacked) or f"{debs[0].name} has no vmlinuz-{release}"
            raise Unsupported(what, why, remedy)
        os.rename(found[0], image)


def _run(*command: str, cwd: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
