# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve metrics of physical memory to Prometheus: of groups of processes, zones, and the machine.

A group is a program (all processes of one name), a cgroup or a process. The largest groups have
metrics of their own; all others are one group, "other". The machine is read when Prometheus asks,
once at a time, and each answer says what it cost. Only this machine can ask, unless --listen says
otherwise. Unprivileged, only your own processes are read, and contiguity is not known.
"""

from __future__ import annotations

import argparse
import codecs
import ipaddress
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from physview.commands import _common
from physview.errors import UsageError
from physview.runtime import extras

if TYPE_CHECKING:
    from physview.exporter.collector import MachineCollector
    from physview.exporter.server import Server

NAME = "exporter"
HELP = "metrics of physical memory for Prometheus, over HTTP: by program, cgroup or process"

GROUPINGS = ("program", "cgroup", "pid")
LISTEN = "127.0.0.1:23000"
FILES = ("alerts", "dashboard", "prometheus", "unit")


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--by", choices=GROUPINGS, default="program", help="what a group is (program)"
    )
    parser.add_argument(
        "--top",
        type=_common.count(10_000),
        metavar="N",
        default=50,
        help="the N groups with most resident memory have metrics of their own (50)",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR:PORT",
        default=LISTEN,
        help=f"where to listen; port 0 is any free one ({LISTEN})",
    )
    parser.add_argument("--cert", metavar="FILE", help="use TLS, with this certificate (PEM)")
    parser.add_argument("--key", metavar="FILE", help="the certificate's private key (PEM)")
    parser.add_argument(
        "--client-ca",
        metavar="FILE",
        help="clients must show a certificate that this authority signed (PEM)",
    )
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="clients must give a user and password: lines USER:PASSWORD, readable by you only",
    )
    parser.add_argument(
        "--min-interval",
        type=_common.duration(0, 3600),
        metavar="S",
        default=1.0,
        help="read at most every S seconds (or 5m); who asks sooner gets the last answer (1)",
    )
    parser.add_argument(
        "--max-cpu",
        type=_common.duration(0.01, 3600),
        metavar="S",
        default=5.0,
        help="processor time for reading processes in a scrape; the rest keep older values (5)",
    )
    parser.add_argument(
        "--frames-every",
        type=_common.duration(1, 86400),
        metavar="S",
        help="also read all frames of the machine, at most every S seconds (or 10m, 1h): what they"
        " are used for, and which 2 MiB and 1 GiB could be had; needs root",
    )
    parser.add_argument(
        "--once", action="store_true", help="print the metrics on stdout once, and serve nothing"
    )
    parser.add_argument(
        "--print",
        choices=FILES,
        help="print a file to start from: alert rules, a dashboard for Grafana, a configuration of"
        " Prometheus, or a unit for systemd",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the metrics until a signal ends this process."""
    if args.print:
        from physview.exporter.shipped import read_shipped

        sys.stdout.write(read_shipped(args.print))
        return 0
    if (args.cert is None) is not (args.key is None):
        raise UsageError("--cert and --key need each other", "", "give both, or none")
    if args.client_ca is not None and args.cert is None:
        raise UsageError("--client-ca needs TLS", "", "give --cert and --key, too")
    client = extras.need("prometheus_client", "cannot export metrics")

    from physview.exporter.collector import MachineCollector

    with ExitStack() as stack:
        collector = stack.enter_context(
            MachineCollector(
                args.by,
                args.top,
                min_interval=args.min_interval,
                max_cpu=None if args.once else args.max_cpu,
                frames_every=args.frames_every,
                say=_common.say,
                encoding=_encoding() if args.once else "utf-8",
            )
        )
        registry = client.CollectorRegistry()
        registry.register(collector)
        if args.once:
            sys.stdout.write(client.generate_latest(registry).decode())
            _say_what_is_missing(collector)
            return 0
        client.ProcessCollector(registry=registry)
        server = stack.enter_context(_make_server(args, client.make_wsgi_app(registry)))
        collector.collect()  # what fails now would fail in each scrape
        _say_what_is_missing(collector)
        _say_if_open(args, server)
        _common.say(f"serving {server.url}")
        server.serve_forever()
    return 0


def _encoding() -> str:
    """The encoding of stdout, if Prometheus reads it: it reads UTF-8 only."""
    try:
        name = codecs.lookup(sys.stdout.encoding).name
    except LookupError:
        name = ""
    return "utf-8" if name == "utf-8" else "ascii"


def _make_server(args: argparse.Namespace, metrics: Any) -> Server:
    from physview.exporter.passwords import read_passwords
    from physview.exporter.server import Server, make_app, parse_address
    from physview.exporter.tls import Certificates

    address = parse_address(args.listen)
    passwords = None if args.password_file is None else read_passwords(args.password_file)
    certificates = None
    if args.cert is not None:
        certificates = Certificates(args.cert, args.key, args.client_ca)
    app = make_app(metrics, passwords, _common.say)
    return Server(address, app, certificates=certificates, say=_common.say)


def _say_what_is_missing(collector: MachineCollector) -> None:
    _common.say_how_many_are_left_out(len(collector.denied), collector.denied)
    if not collector.knows_frames:
        _common.say(
            f"frame numbers are hidden, so contiguity is not known; {_common.root_remedy()}"
        )


def _say_if_open(args: argparse.Namespace, server: Server) -> None:
    """Warn if other machines can read the metrics, or a password on the way."""
    host = server.socket.getsockname()[0].partition("%")[0]
    if ipaddress.ip_address(host).is_loopback:
        return
    if args.password_file is None and args.client_ca is None:
        _common.say(
            f"everybody who reaches {args.listen} can read the names and sizes of all processes;"
            " --password-file and --client-ca say who may"
        )
    elif args.cert is None:
        _common.say(
            "passwords cross the network unencrypted: use --cert and --key, or a proxy with TLS"
        )
