# SPDX-License-Identifier: GPL-2.0-or-later
"""The README for package indexes, where a relative link leads nowhere. setup.py runs this file.

With the address of the repository, relative links lead to the files of this version there. Without
it, only the text of a relative link is left, and relative pictures are left out.
"""

from __future__ import annotations

import re

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)


def publish(text: str, repository: str, version: str) -> str:
    """Return the README for a package index.

    Args:
        text: The README.
        repository: The repository's address, such as "https://host/owner/name"; "" if unknown.
        version: The version, whose tag is this text with a "v" before it.
    """

    def absolute(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        if "://" in target:
            return match[0]
        if not repository:
            return "" if picture else label
        path = f"README.md{target}" if target.startswith("#") else target
        return f"{picture}[{label}]({repository}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return _LINK.sub(absolute, _COMMENT.sub("", text))
