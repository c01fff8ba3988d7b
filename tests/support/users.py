# SPDX-License-Identifier: GPL-2.0-or-later
"""Command prefixes that run a program as another user."""

import os

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WITHOUT_CAPABILITIES = (
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
)
