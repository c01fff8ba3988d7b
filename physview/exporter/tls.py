# SPDX-License-Identifier: GPL-2.0-or-later
"""Encrypts connections with TLS: reads certificates, and reads them again when they change."""

from __future__ import annotations

import os
import ssl

from physview.errors import AccessDenied, PhysviewError, of_path


class Certificates:
    """The server's certificate and key, and the authority that signs clients' certificates.

    Args:
        cert: File with the certificate, and those of the authorities between it and the root.
        key: File with the private key.
        client_ca: File with the certificates of the authorities that sign clients' certificates;
            clients have to show one. None: clients need none.

    Raises:
        PhysviewError: A file cannot be used.
    """

    def __init__(self, cert: str, key: str, client_ca: str | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._state = self._read_state()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for the next connection. Renewed files are read again.

        Raises:
            PhysviewError: The renewed files cannot be used. The next call gives the old context
                again, until the files change once more.
        """
        state = self._read_state()
        if state != self._state:
            self._state = state
            self._context = self._load()
        return self._context

    def _read_state(self) -> list[tuple[int, int, int] | None]:
        return [_state_of(path) for path in (self._cert, self._key, self._client_ca) if path]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for path in filter(None, (self._cert, self._key, self._client_ca)):
            _require_readable(path)
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            what = f"cannot use the certificate {self._cert} with the key {self._key}"
            raise PhysviewError(what, _why(error), "give PEM files that belong together") from None
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError, ValueError) as error:
                what = f"cannot use the authority's certificate {self._client_ca}"
                raise PhysviewError(what, _why(error), "give a PEM file") from None
        return context


def _no_password() -> str:
    """OpenSSL would ask for a password on the terminal, where nobody may be."""
    raise ValueError("the key is encrypted")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if reason else str(error)


def _require_readable(path: str) -> None:
    """OpenSSL's errors do not name the file that is missing."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)):
            pass
    except OSError as error:
        raise of_path(f"cannot read {path}", error, path) from None
    except ValueError as error:  # a null character
        raise AccessDenied(f"cannot read {path}", str(error), path=path) from None


def _state_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
