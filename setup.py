# SPDX-License-Identifier: GPL-2.0-or-later
"""Names the compiled core, and makes the README's links absolute; the rest is in pyproject.toml."""

import os
import re
import runpy
import sysconfig
from pathlib import Path

from setuptools import setup

# cffi builds against the limited API, so one wheel serves every CPython from 3.10 on. The
# free-threaded builds have no limited API.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

# The release sets the address of the repository.
repository = os.environ.get("PHYSVIEW_REPOSITORY", "").rstrip("/")
version = re.search(r'^version = "(.*)"$', Path("pyproject.toml").read_text(), re.M)[1]
publish = runpy.run_path("scripts/published_readme.py")["publish"]

setup(
    cmdclass={"build_ext": runpy.run_path("scripts/needed_to_build.py")["BuildCore"]},
    cffi_modules=["csrc/build_ffi.py:ffibuilder"],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
    long_description=publish(Path("README.md").read_text(encoding="utf-8"), repository, version),
    long_description_content_type="text/markdown",
    project_urls={"Source": repository} if repository else {},
)
