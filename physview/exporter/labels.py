# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes values of labels from names that users chose: of programs, and of cgroups."""

from __future__ import annotations

import hashlib

from physview.text.quoting import escaped, quote_letter

OTHER = "other"
"""The label of the group that has all groups beyond the largest ones. No other group has it."""

MAX_LENGTH = 256
"""A longer label is cut: the path of a cgroup may have 4096 bytes."""


def label_of(name: str, encoding: str = "utf-8") -> str:
    r"""Make the value of a label from a name.

    Args:
        name: The name.
        encoding: The encoding of the output; characters that it lacks are quoted.

    It has printable characters only, is at most MAX_LENGTH long, and is never OTHER. If it was not
    cut, `unescaped()` restores the name. A name without characters becomes \0: to Prometheus, an
    empty label is none.

    >>> print(label_of("/user.slice"), label_of("a\n\\\udcff"), label_of("other"))
    /user.slice a\n\\\xff \x6fther
    """
    label = escaped(name, encoding) or "\\0"
    if label == OTHER:
        return quote_letter(label[0]) + label[1:]
    if len(label) > MAX_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return f"{label[: MAX_LENGTH - 18]}\\+{digest}"
    return label
