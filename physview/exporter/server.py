# SPDX-License-Identifier: GPL-2.0-or-later
"""Serves the metrics over HTTP.

prometheus_client makes the answers (`make_wsgi_app`). Its own server, `start_http_server()`, is not
used. It has no basic authentication, one client that says nothing during the TLS handshake keeps
all others waiting, and it starts a thread for each connection, however many there are. So this
module has a server of wsgiref's with limits.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from physview.errors import AccessDenied, PhysviewError, UsageError
from physview.exporter.passwords import Passwords
from physview.exporter.tls import Certificates
from physview.runtime import resource_limits

MAX_CONNECTIONS = 32
MAX_SECONDS = 60.0
"""A connection is closed after this time, even if its client sends a byte now and then."""
IDLE_SECONDS = 10.0
"""A connection is closed if its client neither sends nor takes a byte for this time."""
PAUSE_SECONDS = 1.0
"""Pause between two connections if this process has no free descriptor."""

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
METRICS = "/metrics"
_INDEX = b"<!DOCTYPE html><title>physview exporter</title><a href=metrics>Metrics</a>\n"


class Address(NamedTuple):
    """Where to listen.

    Args:
        host: An address, or a name.
        port: The port; 0 for any that is free.
    """

    host: str
    port: int


def parse_address(text: str) -> Address:
    """Parse ADDR:PORT.

    Raises:
        UsageError: It is something else.

    >>> parse_address("127.0.0.1:80"), parse_address("[::1]:0")
    (Address(host='127.0.0.1', port=80), Address(host='::1', port=0))
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"'{text}' is no address to listen on", "", "give IPv6 as [ADDR]:PORT")
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not (host and colon and is_number and int(port) <= 65535):
        raise UsageError(
            f"'{text}' is no address to listen on", "", "give ADDR:PORT, and a port up to 65535"
        )
    return Address(host, int(port))


class Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each connection, and limits. A context manager.

    Args:
        address: Where to listen.
        app: Answers the requests.
        certificates: For TLS; None for plain HTTP.
        say: Is called with each error that is not the client's.

    Raises:
        PhysviewError: It cannot listen there.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: Address,
        app: Application,
        *,
        certificates: Certificates | None = None,
        say: Callable[[PhysviewError], object],
    ) -> None:
        self._certificates = certificates
        self._say = say
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, tuple[float, socket.socket]] = {}
        self.address_family, where = _resolve(address)
        try:
            super().__init__(where, _Handler)
        except OSError as error:
            raise _cannot_listen(address, error) from None
        self.set_app(app)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self.socket.getsockname()[:2]
        scheme = "https" if self._certificates else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{METRICS}"

    def server_bind(self) -> None:
        """Bind the socket. HTTPServer would ask DNS for the name of the address, too."""
        TCPServer.server_bind(self)
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)
        self.setup_environ()

    def get_request(self) -> Any:
        """Accept a connection. serve_forever() calls this, and calls it again if it fails."""
        try:
            return super().get_request()
        except OSError as error:
            if limit := resource_limits.reached(error):
                self._say(PhysviewError("cannot accept a connection", *limit))
                time.sleep(PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close it if there are too many."""
        with self._lock:
            is_full = len(self._connections) >= MAX_CONNECTIONS
            if not is_full:
                # A second descriptor, with which another thread can end the connection at any time.
                self._connections[request] = (time.monotonic() + MAX_SECONDS, request.dup())
        if is_full:
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake, which may take as long as the client likes, and answer."""
        request.settimeout(IDLE_SECONDS)
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        context = self._certificates.context()
        with context.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def service_actions(self) -> None:
        """End the connections that last too long. serve_forever() calls this twice a second."""
        with self._lock:
            late = [each for end, each in self._connections.values() if end < time.monotonic()]
            for connection in late:
                _end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless a client has caused it: by hanging up, for example."""
        import sys

        error = sys.exc_info()[1]
        limit = resource_limits.reached(error) if error else None
        if isinstance(error, PhysviewError):
            self._say(error)
        elif limit:
            self._say(PhysviewError("cannot answer a request", *limit))
        elif not isinstance(error, (OSError, ValueError)):  # ssl.SSLError is an OSError
            why = f"{type(error).__name__}: {error}"
            self._say(PhysviewError("cannot answer a request", why, "this is a bug of physview"))

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            _, connection = self._connections.pop(request)
            connection.close()


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client was faster


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write no log: each scrape would be a line."""


def make_app(
    metrics: Application, passwords: Passwords | None, say: Callable[[PhysviewError], object]
) -> Application:
    """Make the application: the metrics, a page that leads to them, and who may read them.

    Args:
        metrics: prometheus_client's application.
        passwords: Who may read; None for everybody.
        say: Is called with the error of a reading.
    """

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if passwords and not passwords.accept(environ.get("HTTP_AUTHORIZATION", "")):
            asks = ("WWW-Authenticate", 'Basic realm="physview", charset="UTF-8"')
            return _answer(start_response, "401 Unauthorized", b"Unauthorized\n", asks)
        if environ["PATH_INFO"] == "/":
            return _answer(start_response, "200 OK", _INDEX, kind="text/html")
        if environ["PATH_INFO"] != METRICS:
            return _answer(start_response, "404 Not Found", b"The metrics are at /metrics\n")
        try:
            return metrics(environ, start_response)
        except PhysviewError as error:
            say(error)
            return _answer(start_response, "503 Service Unavailable", f"{error}\n".encode())

    return app


def _answer(
    start_response: Callable[..., Any],
    status: str,
    body: bytes,
    *headers: tuple[str, str],
    kind: str = "text/plain",
) -> Iterable[bytes]:
    about = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*about, *headers])
    return [body]


def _resolve(address: Address) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise PhysviewError(_what(address), why, "give an address of this machine") from None
    family, _, _, _, where = found[0]
    return family, where


def _what(address: Address) -> str:
    return f"cannot listen on {address.host}:{address.port}"


def _cannot_listen(address: Address, error: OSError) -> PhysviewError:
    what, why = _what(address), error.strerror or str(error)
    if limit := resource_limits.reached(error):
        return PhysviewError(what, *limit)
    if error.errno == errno.EADDRINUSE:
        return PhysviewError(what, "another program uses this port", "choose another with --listen")
    if error.errno == errno.EADDRNOTAVAIL:
        return PhysviewError(what, "this machine has no such address", "ip address lists them")
    if error.errno == errno.EACCES:
        remedy = "choose a port from 1024 on"
        if os.geteuid():
            remedy += ", or run as root"
        return AccessDenied(what, "you may not use this port", remedy)
    return PhysviewError(what, why)
