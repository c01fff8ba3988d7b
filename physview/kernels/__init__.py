# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to boot and to build modules for: the running kernel, and fetched kernels in a cache."""

from physview.kernels.build import BuildFailed, build_module, check_folder
from physview.kernels.cache import Kernel, cache_dir, make_cache_dir, running_kernel
from physview.kernels.fetch import ARCHITECTURES, SERIES, fallback_version, find_kernel
from physview.kernels.own_image import fetch_own_image

__all__ = [
    "ARCHITECTURES",
    "SERIES",
    "BuildFailed",
    "Kernel",
    "build_module",
    "cache_dir",
    "check_folder",
    "fallback_version",
    "fetch_own_image",
    "find_kernel",
    "make_cache_dir",
    "running_kernel",
]
