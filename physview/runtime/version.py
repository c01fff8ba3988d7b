# SPDX-License-Identifier: GPL-2.0-or-later
"""The version of physview. Modules import it from here without importing the whole package."""

__version__ = "0.1.0"
