# SPDX-License-Identifier: GPL-2.0-or-later
"""Names the compiled core; everything else about the package is in pyproject.toml."""

import sysconfig

from setuptools import setup

# cffi builds against the limited API, so one wheel serves every CPython from 3.10 on. The
# free-threaded builds have no limited API.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

setup(
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
