# SPDX-License-Identifier: GPL-2.0-or-later
"""`exporter`: labels, groups, counters, one reading at a time, who may connect, and how it ends."""

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import monitoring
import pytest
from children import wait_for
from exporters import authorization, client_context, exporter, get, make_certificates, samples
from failures import one_line
from hypothesis import given
from hypothesis import strategies as st
from limits import DEFAULT_SIGNALS
from paths import ROOT
from users import AS_NOBODY

from physview.errors import PhysviewError, ProcessGone, UsageError
from physview.exporter import metrics
from physview.exporter import server as server_module
from physview.exporter.collector import MachineCollector
from physview.exporter.frame_readings import FrameReadings
from physview.exporter.groups import GroupRows
from physview.exporter.labels import MAX_LENGTH, OTHER, label_of
from physview.exporter.passwords import Passwords
from physview.exporter.server import Address, Server, make_app, parse_address
from physview.exporter.shipped import read_shipped
from physview.exporter.single_reading import SingleReading
from physview.exporter.tls import Certificates
from physview.recording import groups
from physview.recording.schema import GROUPS, MOMENT
from physview.text.quoting import unescaped

pytestmark = pytest.mark.needs("loopback")  # most of them ask a server

NAMES = st.binary(max_size=300).map(os.fsdecode) | st.sampled_from(["other", "a\\+b", ""])


@given(NAMES, NAMES)
def test_labels_are_printable_bounded_and_tell_names_apart(one, two):
    label = label_of(one)
    assert label.isprintable()
    assert label.encode()
    assert len(label) <= MAX_LENGTH
    assert label != OTHER
    assert (label == label_of(two)) is (one == two)
    if one and "\\+" not in label:
        assert unescaped(label) == one


def columns_of(*groups):
    """Groups as the reader returns them. Each is given by some of its values."""
    names = [column.name for column in GROUPS[len(MOMENT) :]]
    rows = [dict.fromkeys(names, 0) | {"pid": None} | group for group in groups]
    return {name: [row[name] for row in rows] for name in names}


def group(name, resident=0, faults=0, **more):
    return {"name": name, "resident": resident, "minor_faults": faults, **more}


def by_label(rows):
    return {row.label: row.values for row in rows}


def test_all_groups_but_the_largest_are_one():
    rows = GroupRows(2).rows(
        columns_of(
            group("a", 30, largest_extent=5),
            group("other", 20),
            group("c", 10, largest_extent=4, nr_extents=2, age=3.0),
            group("d", 5, largest_extent=8, nr_extents=None, age=1.0),
            group(None, 2),
        )
    )
    found = by_label(rows)
    assert list(found) == ["a", "\\x6fther", "other"]
    rest = found["other"]
    assert (rest["resident"], rest["largest_extent"], rest["age"]) == (17, 8, 3.0)
    assert rest["nr_extents"] is None, "a part that is not known makes the sum unknown"


def test_counters_never_go_back_and_each_fault_counts_once():
    """`c` becomes one of the largest, a process of `a` ends, `d` ends and begins again."""
    rows = GroupRows(1)
    readings = [
        [group("a", 30, 100), group("c", 10, 50), group("d", 5, 7)],
        [group("c", 40, 60), group("a", 20, 110)],
        [group("a", 40, 20), group("c", 10, 61), group("d", 5, 3)],
    ]
    expected = [
        {"a": 100, "other": 57},
        {"c": 10, "other": 67},
        {"a": 100, "other": 71},
    ]
    for reading, counters in zip(readings, expected, strict=True):
        found = by_label(rows.rows(columns_of(*reading)))
        assert {label: values["minor_faults"] for label, values in found.items()} == counters


def nr_waiting(reading):
    return len(vars(reading._changed)["_waiters"])


def test_what_asks_during_a_reading_gets_its_answer():
    began, may_end = threading.Event(), threading.Event()
    readings = []

    def read():
        began.set()
        readings.append(1)
        assert may_end.wait(20)
        return len(readings)

    reading = SingleReading(read, min_interval=0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(reading.get)
        assert began.wait(20)
        others = [pool.submit(reading.get) for _ in range(2)]
        wait_for(lambda: nr_waiting(reading) == 2)
        may_end.set()
        assert [first.result(), *(each.result() for each in others)] == [1, 1, 1]
    assert reading.get() == 2
    reading = SingleReading(read, min_interval=60)
    assert reading.get() == reading.get() == 3


def test_who_waits_learns_that_a_reading_failed_or_does_not_end():
    began, may_end = threading.Event(), threading.Event()

    def read():
        began.set()
        assert may_end.wait(20)
        raise PhysviewError("cannot read", "it is broken")

    reading = SingleReading(read, min_interval=60, max_wait=0.1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(reading.get)
        assert began.wait(20)
        with pytest.raises(PhysviewError, match=r"running for over 0\.1 seconds"):
            reading.get()
        reading._max_wait = 20
        waiting = pool.submit(reading.get)
        wait_for(lambda: nr_waiting(reading))
        may_end.set()
        for each in (first, waiting):
            with pytest.raises(PhysviewError, match="it is broken"):
                each.result()
    with pytest.raises(PhysviewError, match="it is broken"):
        reading.get()


@pytest.mark.parametrize(
    "text",
    ["", "80", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "a:65536", "::1:80", "a:-1", "a:¹"],
)
def test_other_words_are_no_address(text):
    with pytest.raises(UsageError, match="is no address to listen on"):
        parse_address(text)


def test_only_the_exact_password_is_accepted():
    passwords = Passwords([b"me:secret", b"you:pass:word"])
    assert passwords.accept(authorization(b"you:pass:word"))
    for wrong in (b"me:", b"me:secret2", b"me:pass:word", b"me", b"", b"ME:secret"):
        assert not passwords.accept(authorization(wrong))
    for header in ("", "Basic", "Basic ====", "Bearer bWU6c2VjcmV0", "Basic \xff", "Basic Ā"):
        assert not passwords.accept(header)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with the certificates of an authority, of a server and of a client."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class Served:
    """A server of this process, with a page in place of the metrics."""

    def __init__(self, certificates=None, passwords=None):
        self.said = []
        app = make_app(self.metrics, passwords, self.said.append)
        self.server = Server(
            Address("127.0.0.1", 0), app, certificates=certificates, say=self.said.append
        )
        self.thread = threading.Thread(target=self.server.serve_forever, args=[0.02])

    def metrics(self, environ, start_response):
        if environ["QUERY_STRING"]:
            raise PhysviewError("cannot read", "it is broken")
        start_response("200 OK", [])
        return [b"fine\n"]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def connect(self):
        return socket.create_connection(self.server.socket.getsockname(), timeout=20)


@pytest.mark.needs("root", "kpage")
def test_all_frames_are_read_beside_the_scrapes():
    readings = FrameReadings(0)
    first = readings.last()
    assert sum(zone["anon"] for zone in first.values()) > 0
    assert readings.last() is first, "the second reading has only begun"
    wait_for(lambda: readings.last() is not first)


def test_silent_clients_are_few_and_end(monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server_module, "MAX_SECONDS", 0.3)
    with Served() as served:
        silent = [served.connect() for _ in range(2)]
        wait_for(lambda: len(served.server._connections) == 2)
        with served.connect() as third:
            assert third.recv(1) == b""
        for each in silent:
            assert each.recv(1) == b""
            each.close()
        wait_for(lambda: not served.server._connections)
        assert get(served.server.url) == (200, "fine\n")
        assert served.said == []


def test_pages_and_failed_readings():
    with Served() as served:
        top = served.server.url.removesuffix("metrics")
        assert get(top)[0] == 200
        assert "href=metrics" in get(top)[1]
        assert get(f"{top}other") == (404, "The metrics are at /metrics\n")
        assert get(f"{served.server.url}?broken") == (503, "cannot read: it is broken\n")
        assert [str(each) for each in served.said] == ["cannot read: it is broken"]


def test_a_silent_handshake_keeps_nobody_waiting_and_renewed_certificates_are_used(
    authority, tmp_path
):
    def use(name):
        for kind in ("pem", "key"):
            new = tmp_path / "new"
            new.write_bytes((authority / f"{name}.{kind}").read_bytes())
            new.rename(tmp_path / f"cert.{kind}")

    def name_of_server():
        context = client_context(authority)
        with served.connect() as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            return dict(pair for part in tls.getpeercert()["subject"] for pair in part)

    use("server")
    files = str(tmp_path / "cert.pem"), str(tmp_path / "cert.key")
    with Served(Certificates(*files, None)) as served, served.connect() as silent:
        wait_for(lambda: served.server._connections)
        before = name_of_server()
        use("renewed")
        assert name_of_server()["commonName"] == "renewed" != before["commonName"]
        (tmp_path / "cert.key").write_text("no key")
        with pytest.raises(OSError):  # noqa: PT011 - the connection is closed
            name_of_server()
        assert name_of_server()["commonName"] == "renewed"
        (error,) = served.said
        assert "cannot use the certificate" in str(error)
        silent.sendall(b"no handshake\n")
        wait_for(lambda: not served.server._connections)
        assert served.said == [error], "what a client sends is not the server's error"


def test_with_everything_only_who_has_a_certificate_and_a_password_reads(authority, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("# users\nme:secret\n")
    passwords.chmod(0o600)
    files = [str(authority / name) for name in ("server.pem", "server.key", "ca.pem")]
    words = ["--cert", files[0], "--key", files[1], "--client-ca", files[2]]
    with exporter(*words, "--password-file", str(passwords)) as served:
        assert served.url.startswith("https://")
        right = {"Authorization": authorization(b"me:secret")}
        with pytest.raises(OSError, match=r"certificate required|EOF|reset"):
            get(served.url, right, client_context(authority))
        known = client_context(authority, "client")
        assert get(served.url, {}, known) == (401, "Unauthorized\n")
        status, text = get(served.url, right, known)
        assert status == 200
        assert "physview_group_resident_bytes{" in text


def test_it_goes_on_after_a_limit_was_reached():
    """First a connection cannot be accepted. Then one can, and the machine cannot be read."""
    with exporter("--min-interval", "0") as served:
        pid, (_, most) = served.process.pid, resource.getrlimit(resource.RLIMIT_NOFILE)

        def allow(nr):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (nr, most))

        nr_open = len(os.listdir(f"/proc/{pid}/fd"))
        allow(nr_open)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(get, served.url)
            assert "cannot accept a connection: " in served.process.stderr.readline()
            allow(nr_open + 2)
            status, text = waiting.result()
        assert status == 503
        assert text.startswith("cannot read the machine: ")
        while "cannot accept" in (line := served.process.stderr.readline()):
            pass
        assert line == f"physview: {text}"
        allow(most)
        assert get(served.url)[0] == 200


@pytest.mark.parametrize(
    ("number", "address"), [(signal.SIGTERM, "127.0.0.1:0"), (signal.SIGINT, "0.0.0.0:0")]
)
def test_a_signal_ends_it_at_once(number, address):
    """Also while a client is connected that says nothing."""
    with exporter("--listen", address, prefix=DEFAULT_SIGNALS) as served:
        said = "everybody who reaches 0.0.0.0:0 can read the names and sizes of all processes"
        assert any(said in line for line in served.said) is (address == "0.0.0.0:0")
        where = parse_address(served.url.split("/")[2])
        with socket.create_connection(where):
            start = time.monotonic()
            served.process.send_signal(number)
            assert served.process.wait(20) == -number
            assert time.monotonic() - start < 10
        assert served.process.stderr.read() == ""


def test_what_cannot_be_is_said_in_a_line(physview, authority, tmp_path):
    def line(*words, code=1):
        return one_line(physview("exporter", *words), code)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {address}: another program uses" in line("--listen", address)
    assert "this machine has no such address" in line("--listen", "192.0.2.1:0")
    assert "cannot listen on no-such-host.invalid:1" in line("--listen", "no-such-host.invalid:1")
    assert "is no address to listen on" in line("--listen", "23000", code=2)
    cert, key, ca = (str(authority / name) for name in ("server.pem", "server.key", "ca.pem"))
    assert "--cert and --key need each other" in line("--cert", cert, code=2)
    assert "--client-ca needs TLS" in line("--client-ca", ca, code=2)
    assert "cannot read /no/key: No such file" in line("--cert", cert, "--key", "/no/key")
    other = str(authority / "client.key")
    assert "belong together" in line("--cert", cert, "--key", other)
    assert "belong together" in line("--cert", "/etc/passwd", "--key", key)
    words = ["--cert", cert, "--key", key, "--client-ca", "/etc/passwd"]
    assert "authority's certificate /etc/passwd" in line(*words)
    passwords = tmp_path / "passwords"
    for text, mode, why in (
        ("me:secret\n", 0o644, "other users can read it; chmod 600"),
        ("me secret\n", 0o600, "not every line is USER:PASSWORD"),
        ("", 0o600, "not every line is USER:PASSWORD"),
    ):
        passwords.write_text(text)
        passwords.chmod(mode)
        assert why in line("--password-file", str(passwords))
    assert "it is no regular file" in line("--password-file", str(tmp_path))


def test_every_metric_and_alert_is_on_the_page():
    text = (ROOT / "docs/commands/exporter.md").read_text()
    for metric in metrics.ALL:
        if metric in metrics.MACHINE:
            kind, _, name = metric.name.removeprefix("physview_").partition("_")
            name = name.removesuffix("_bytes")
            assert f"`physview_{kind}_NAME" in text
            assert re.search(rf"\b{name}\b", text), name
        else:
            assert re.search(rf"`{metric.name}(_total)?[`{{]", text), metric.name
        if metric.label and metric.label != "order" and metric not in metrics.MACHINE:
            values = "\\|".join(value for value in metric.columns.values() if value)
            assert f'{{{metric.label}="{values}"}}' in text or f"{{{metric.label}}}" in text
    for alert in monitoring.ALERTS:
        assert f"`{alert.name}`" in text


def test_without_prometheus_client_a_line_says_how_to_install_it():
    program = (
        "import sys; sys.modules['prometheus_client'] = None;"
        "from physview.commands import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*words):
        command = [sys.executable, "-c", program, "exporter", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    line = one_line(run("--once"), 1)
    assert "the Python package prometheus-client (extra 'exporter') is missing; " in line
    assert run("--print", "alerts").stdout == read_shipped("alerts")


@pytest.mark.needs("root", "pfn", "nobody")
def test_the_unit_s_capabilities_are_enough(physview, python, physviews_unit):
    """They show the frames of another user's process. Without them, that process is left out."""
    child = python(prefix=AS_NOBODY)
    bounding = ["setpriv", "--inh-caps=-all"]
    kept = [f"+{name.removeprefix('CAP_').lower()}" for name in physviews_unit]
    for capabilities, is_known in ((kept, True), ([], False)):
        prefix = [*bounding, f"--bounding-set={','.join(['-all', *capabilities])}"]
        result = physview("exporter", "--once", "--by", "pid", "--top", "10000", prefix=prefix)
        assert result.returncode == 0, result
        found = {
            dict(labels)["pid"]
            for name, labels in samples(result.stdout)
            if name == "physview_group_extents"
        }
        assert (str(child.pid) in found) is is_known


@pytest.fixture
def physviews_unit():
    """The capabilities that the systemd unit grants."""
    (words,) = re.findall(r"^CapabilityBoundingSet=(.*)$", read_shipped("unit"), re.M)
    return words.split(" ")


def test_a_process_that_cannot_be_read_is_named_once(monkeypatch, sleeper):
    def fail(reader, pid, start_time):
        raise OSError(errno.EIO, "broken") if pid == sleeper.pid else ProcessGone("gone")

    monkeypatch.setattr(groups, "read_memory", fail)
    said = []
    with MachineCollector(
        "pid", 50, min_interval=0, max_cpu=None, frames_every=None, say=said.append
    ) as collector:
        collector.collect()
        collector.collect()
    (line,) = said
    assert line == (f"process {sleeper.pid} could not be read: broken; it keeps its values")


@pytest.mark.needs("nobody")
def test_nobody_gets_a_line_and_their_own_processes(physview, python):
    line = one_line(physview("exporter", "--listen", "127.0.0.1:81", prefix=AS_NOBODY), 1)
    assert "cannot listen on 127.0.0.1:81: you may not use this port; choose a port" in line
    child = python(prefix=AS_NOBODY)
    result = physview("exporter", "--once", "--by", "pid", prefix=AS_NOBODY)
    assert result.returncode == 0, result
    said = (
        r"(\d+) processes are left out \(pids 1, ([0-9, ]+)(?: and (\d+) more)?\):"
        r" you may not examine"
    )
    nr_denied, some, nr_more = re.search(said, result.stderr).groups(default="0")
    assert len(some.split(", ")) + 1 + int(nr_more) == int(nr_denied)
    assert "frame numbers are hidden, so contiguity is not known" in result.stderr
    found = samples(result.stdout)
    pids = {
        dict(labels).get("pid") for name, labels in found if name == "physview_group_resident_bytes"
    }
    assert str(child.pid) in pids
    assert str(os.getpid()) not in pids
    assert found["physview_exporter_processes", frozenset({("result", "denied")})] > 0
    assert not any(name == "physview_group_contiguous_bytes" for name, _ in found)
