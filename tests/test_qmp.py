# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP: what physview takes from a QEMU, and from whoever pretends to be one."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from failures import one_line
from qemus import GREETING, answers, run_qemu, serve
from users import AS_NOBODY

from physview.errors import PhysviewError, Unsupported
from physview.sources.qmp import MAX_QUOTED, Qmp

READY = GREETING + b'{"return": {}}\r\n'


def send(data):
    """A server that sends these bytes at once, and then keeps the connection open."""
    return lambda connection: (connection.sendall(data), connection.recv(1 << 16), time.sleep(3))


def trickle(connection):
    """A server that sends a byte of a greeting now and then."""
    for byte in GREETING:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def endless(data):
    """A server that never ends its answer."""

    def answer(connection):
        while True:
            connection.sendall(data)

    return answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        pytest.param(send(b""), "does not answer within", id="silent"),
        pytest.param(trickle, "does not answer within", id="trickle"),
        pytest.param(endless(b"x" * 4096), "more than 4 MiB", id="endless line"),
        pytest.param(endless(b'{"event": "X"}\n' * 99), "no greeting", id="no greeting"),
        pytest.param(
            lambda connection: (
                connection.sendall(GREETING),
                endless(b'{"event": "' + b"a" * 999 + b'"}\n')(connection),
            ),
            "more than 4 MiB and no answer",
            id="endless events",
        ),
        pytest.param(send(b"\xff\xfe\n"), "something else than QMP", id="not UTF-8"),
        pytest.param(send(b"[1, 2]\n"), "something else than QMP", id="no object"),
        pytest.param(send(b"[" * 100_000 + b"\n"), "something else than QMP", id="deep"),
        pytest.param(send(b"9" * 10_000 + b"\n"), "something else than QMP", id="digits"),
        pytest.param(send(b"SSH-2.0-OpenSSH\r\n"), "something else than QMP", id="SSH"),
        pytest.param(lambda connection: None, "closed the connection", id="closes"),
        pytest.param(send(GREETING + b'{"error": 7}\n'), "does not say why", id="error 7"),
        pytest.param(
            send(GREETING + b'{"error": {"desc": "a\\u001b[31m\\u202e' + b"b" * 9999 + b'"}}\n'),
            r"a\\x1b\[31m\\u202eb+…",
            id="escapes",
        ),
    ],
)
def test_who_answers_anything_is_refused_in_one_line_and_in_time(tmp_path, answer, why):
    # 4 MiB take long on arm64, which tests have emulated.
    timeout = 10 if "4 MiB" in why and os.uname().machine == "aarch64" else 1
    started = time.monotonic()
    with serve(tmp_path, answer) as path, pytest.raises(PhysviewError, match=why) as error:
        Qmp(path, timeout=timeout)
    assert time.monotonic() - started < 2.5 * timeout
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < MAX_QUOTED + 200


@pytest.mark.parametrize("answer", [None, 7, {"a": 1}, ["b"], True])
def test_an_answer_of_another_type_is_refused(tmp_path, answer):
    with (
        serve(tmp_path, lambda connection: answers(connection, lambda line: answer)) as path,
        Qmp(path) as qmp,
        pytest.raises(PhysviewError, match="its answer to 'info mtree' is no text"),
    ):
        qmp.monitor("info mtree")


@pytest.mark.parametrize(
    "greeting", [b'{"QMP": 1}', b'{"QMP": {"version": {"qemu": {"major": 1e9}}}}', b'{"QMP": null}']
)
def test_a_greeting_without_a_version(tmp_path, greeting):
    data = greeting + b'\n{"return": {}}\n'
    with serve(tmp_path, send(data)) as path, Qmp(path) as qmp:
        assert qmp.version == ""


def test_events_and_another_greeting_before_the_answer_are_left_out(tmp_path):
    data = GREETING + b'{"event": "STOP"}\n' * 99 + GREETING + b'{"return": {}}\n'
    with serve(tmp_path, send(data)) as path, Qmp(path) as qmp:
        assert qmp.version == "9.2.1"


def test_the_process_is_the_one_that_answers_not_the_one_that_listens(tmp_path):
    # libvirt makes the socket and listens, and QEMU inherits it.
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        code = (
            "import socket, sys\n"
            f"listener = socket.socket(fileno={listener.fileno()})\n"
            "connection, _ = listener.accept()\n"
            f"connection.sendall({READY!r})\n"
            "connection.recv(1000); connection.recv(1000)"
        )
        words = [sys.executable, "-c", code]
        with subprocess.Popen(words, pass_fds=[listener.fileno()]) as child, Qmp(path) as qmp:
            assert qmp.pid == child.pid != os.getpid()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text(""), "it is no socket"),
        (lambda path: path.mkdir(), "it is no socket"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "no process listens there"),
    ],
)
def test_no_socket_is_one_line(physview, tmp_path, make, why):
    path = tmp_path / "a\nb"
    make(path)
    line = one_line(physview("guest", "--qmp", str(path)), 1)
    assert line.startswith(f"physview: cannot ask QEMU at {tmp_path}/a\\nb: {why}; ")
    document = physview("guest", "--qmp", str(path), "--json")
    assert why in json.loads(document.stdout)["errors"][0]["message"]


def test_a_path_that_no_socket_can_have(physview):
    assert "path too long" in one_line(physview("guest", "--qmp", "/" + "a" * 200), 1)


@pytest.mark.needs("nobody")
def test_a_socket_of_another_user(physview, open_folder):
    with serve(open_folder, send(READY)) as path:
        os.chmod(path, 0o600)
        line = one_line(physview("guest", "--qmp", path, prefix=AS_NOBODY), 1)
        assert "Permission denied; run as root" in line


@pytest.mark.needs("qemu")
def test_a_real_qemu(tmp_path):
    with run_qemu(tmp_path) as qemu:
        with Qmp(qemu.path) as qmp:
            assert qmp.pid == qemu.pid
            said = subprocess.run(
                ["qemu-system-x86_64", "--version"], check=True, capture_output=True
            )
            assert f"version {qmp.version} " in said.stdout.decode()
            with pytest.raises(Unsupported, match="QEMU refuses no-such"):
                qmp.execute("no-such\x1b")
            # It serves one connection at a time.
            with pytest.raises(PhysviewError, match="one connection at a time"):
                Qmp(qemu.path, timeout=0.5)
        with Qmp(qemu.path) as qmp:
            assert "is not RAM" in qmp.monitor("gpa2hva 0xfed00000")
