# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks user names and passwords of HTTP's basic authentication."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import stat

from physview.errors import AccessDenied, PhysviewError, of_path
from physview.text import proctext

MAX_BYTES = 1 << 16


class Passwords:
    """The users that may scrape.

    Prometheus keeps the password as plain text, too, so a hash here would protect nothing. The
    file's permissions do.

    Args:
        pairs: "USER:PASSWORD" of each user.
    """

    def __init__(self, pairs: list[bytes]) -> None:
        # Digests have one length, and compare_digest() takes the same time for all of that length.
        self._digests = [hashlib.sha256(pair).digest() for pair in pairs]

    def accept(self, header: str) -> bool:
        """Whether the value of a header Authorization names a user and the user's password.

        >>> Passwords([b"me:secret"]).accept("Basic bWU6c2VjcmV0")
        True
        """
        scheme, _, coded = header.partition(" ")
        try:
            pair = base64.b64decode(coded.strip(" ").encode("latin-1"), validate=True)
        except (binascii.Error, ValueError):
            return False
        digest = hashlib.sha256(pair).digest()
        fits = [hmac.compare_digest(digest, each) for each in self._digests]
        return scheme.lower() == "basic" and any(fits)


def read_passwords(path: str) -> Passwords:
    """Read a file that has a line USER:PASSWORD for each user.

    Raises:
        AccessDenied: The file cannot be read, or other users can read or write it.
        PhysviewError: It has no user, or something else.
    """
    what = f"cannot use the password file {path}"
    try:
        # O_NONBLOCK: a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        failure = error if isinstance(error, OSError) else OSError(str(error))
        raise of_path(what, failure, path) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PhysviewError(what, "it is no regular file", path=path)
        if status.st_uid not in (0, os.geteuid()):
            raise AccessDenied(what, "another user owns it", "make a file of your own", path=path)
        if status.st_mode & 0o077:  # with an access control list, the group's bits are its mask
            raise AccessDenied(what, "other users can read it", f"chmod 600 {path}", path=path)
        text = os.read(fd, MAX_BYTES + 1)
    finally:
        os.close(fd)
    lines = [line for line in proctext.lines(text) if line and not line.startswith(b"#")]
    if not lines or len(text) > MAX_BYTES or any(_is_wrong(line) for line in lines):
        raise PhysviewError(what, "not every line is USER:PASSWORD", "mend it", path=path)
    return Passwords(lines)


def _is_wrong(line: bytes) -> bool:
    user, colon, password = line.partition(b":")
    return not (user and colon and password)
