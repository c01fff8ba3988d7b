# SPDX-License-Identifier: GPL-2.0-or-later
"""Exporters that tests start, and requests to them."""

from __future__ import annotations

import base64
import contextlib
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Proxies in the environment are for other machines.
_DIRECT = urllib.request.ProxyHandler({})


class Exporter(NamedTuple):
    """An exporter that runs, where it answers, and what it said before that."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]


@contextlib.contextmanager
def exporter(*words: str, prefix: list[str] | tuple[str, ...] = ()) -> Iterator[Exporter]:
    """Start an exporter on a free port, and end it after the `with` block."""
    command = [*prefix, sys.executable, "-m", "physview", "exporter", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd="/"
    )
    try:
        said = []
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if "serving " in line:
                break
        assert said, "no exporter"
        assert "serving " in said[-1], said
        yield Exporter(process, said[-1].rpartition(" ")[2].strip(), said[:-1])
    finally:
        process.kill()
        process.communicate()


def get(
    url: str, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None
) -> tuple[int, str]:
    """Ask for a page; return the status and the text."""
    opener = urllib.request.build_opener(_DIRECT, urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a text in Prometheus' format, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def authorization(pair: bytes) -> str:
    """The header with which a client gives USER:PASSWORD."""
    return "Basic " + base64.b64encode(pair).decode()


def make_certificates(folder: Path) -> Path:
    """Make certificates of an authority (ca.pem), of two servers and of a client in a folder."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("server", "renewed", "client"):
        cert = authority.issue_cert("127.0.0.1", common_name=name)
        cert.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        cert.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    return folder


def client_context(folder: Path, name: str | None = None) -> ssl.SSLContext:
    """A client's side of TLS, which shows the certificate with this name."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context
