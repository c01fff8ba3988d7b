# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the root folder of a VM of another architecture: a Debian, and physview for it."""

from __future__ import annotations

from collections.abc import Callable

from physview.kernels import foreign_package, foreign_root
from physview.vm.runner import ForeignRoot


def arm64_root(tell: Callable[[str], object] | None = None) -> ForeignRoot:
    """Return the root folder of arm64 in the cache, with physview; make them if they are missing.

    Args:
        tell: Called with a message before a step that takes long.

    Raises:
        Unsupported: This physview has no C sources, or the cross-compiler is missing.
        PhysviewError: A package cannot be fetched, the core does not compile, or the cache cannot
            be used.
    """
    target = foreign_root.ARM64
    root = foreign_root.root_folder(target, tell)
    package = foreign_package.package_folder(target, root, tell)
    return ForeignRoot(target.machine, root, "/usr/bin/python3", package)
