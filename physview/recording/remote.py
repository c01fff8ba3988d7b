# SPDX-License-Identifier: GPL-2.0-or-later
"""Object stores, through pyarrow.fs, or through fsspec where pyarrow does not know the scheme."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

from physview.errors import PhysviewError, Unsupported, UsageError, first_line
from physview.recording.parts import Part
from physview.runtime.extras import need

# Those that pyarrow.fs.FileSystem.from_uri() knows.
ARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
TIMEOUT_SECONDS = 20.0


class Remote(Protocol):
    """An object store."""

    def put(self, path: str, data: bytes) -> None:
        """Write a whole object. It replaces the object of this path."""

    def parts(self, folders: list[str]) -> list[Part]:
        """List all objects below folders."""

    def remove(self, path: str) -> None:
        """Remove an object."""


def is_url(dataset: str) -> bool:
    """Whether a dataset is a URL, and not a local folder.

    >>> is_url("s3://bucket/x"), is_url("/tmp/x"), is_url("a:b")
    (True, False, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", dataset) is not None


def without_secrets(url: str) -> str:
    """A URL for messages: a user, a password and the query may be secret.

    >>> without_secrets("s3://key:secret@bucket/a?region=x")
    's3://bucket/a'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_remote(url: str) -> Remote:
    """Open an object store. Nothing is sent yet.

    Raises:
        UsageError: It is no URL of an object store.
        Unsupported: The Python package that reads such stores is not installed.
    """
    scheme = url.partition("://")[0]
    what = f"cannot use {without_secrets(url)}"
    if scheme in ARROW_SCHEMES:
        fs = need("pyarrow.fs", what)
        try:
            found, path = fs.FileSystem.from_uri(url)
        except Exception as error:
            raise UsageError(what, first_line(error)) from None
        if not path.strip("/"):
            raise UsageError(what, "it names no bucket")
        return _Arrow(found, path.rstrip("/"))
    try:
        core = import_module("fsspec.core")
    except ImportError:
        why = f"the Python package fsspec, which may know {scheme}://, is missing"
        raise Unsupported(what, why, "pip install fsspec") from None
    try:
        found, path = core.url_to_fs(url)
    except Exception as error:
        raise UsageError(what, first_line(error)) from None
    return _Fsspec(found, path.rstrip("/"))


class _Arrow:
    """An object store through pyarrow.fs."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root

    def put(self, path: str, data: bytes) -> None:
        # An object of S3 or GCS appears when its stream is closed. A stream of a failed write must
        # not be closed, so this is no `with`.
        stream = self._fs.open_output_stream(f"{self._root}/{path}")
        stream.write(data)
        stream.close()

    def parts(self, folders: list[str]) -> list[Part]:
        from pyarrow import fs

        found = []
        for folder in folders:
            selector = fs.FileSelector(
                f"{self._root}/{folder}", allow_not_found=True, recursive=True
            )
            try:
                infos = self._fs.get_file_info(selector)
            except OSError as error:
                raise PhysviewError(f"cannot list {folder}", first_line(error)) from None
            found += [
                Part(info.path.removeprefix(f"{self._root}/"), info.size)
                for info in infos
                if info.is_file
            ]
        return found

    def remove(self, path: str) -> None:
        try:
            self._fs.delete_file(f"{self._root}/{path}")
        except OSError as error:
            raise PhysviewError(f"cannot remove {path}", first_line(error)) from None


class _Fsspec:
    """An object store through fsspec."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root

    def put(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{path}", data)

    def parts(self, folders: list[str]) -> list[Part]:
        found = []
        for folder in folders:
            try:
                infos = self._fs.find(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                continue
            except Exception as error:
                raise PhysviewError(f"cannot list {folder}", first_line(error)) from None
            for name, info in infos.items():
                start = name.find(folder)
                found.append(Part(name[start:], int(info.get("size") or 0)))
        return found

    def remove(self, path: str) -> None:
        try:
            self._fs.rm_file(f"{self._root}/{path}")
        except Exception as error:
            raise PhysviewError(f"cannot remove {path}", first_line(error)) from None
