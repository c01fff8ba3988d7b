# SPDX-License-Identifier: GPL-2.0-or-later
"""One module per command: prints the command's answer as text, and makes its JSON document.

Reporters only render. They read nothing from the kernel.
"""
