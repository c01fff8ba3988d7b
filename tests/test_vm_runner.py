# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways in which a VM can end, tested with a script in place of QEMU."""

import io
import os
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
from children import is_alive, wait_for
from guests import run_and_watch
from paths import ROOT

from physview import vm
from physview.runtime import packages
from physview.vm import qemu, runner, session

FAKE_QEMU = """#!{python}
import os, re, socket, sys, time
sys.path.insert(0, {root!r})
from physview.vm import messages
if sys.argv[1:] == ["-cpu", "help"]:
    sys.exit()
open({folder!r} + "/pids", "a").write(str(os.getpid()) + "\\n")
nr_started = len(open({folder!r} + "/pids").readlines())
arguments = " ".join(sys.argv)
accelerator = re.search("accel=([a-z]+)", arguments)[1]
console, port = (socket.socket(fileno=int(re.search(f"id={{name}},fd=([0-9]+)", arguments)[1]))
                 for name in ("console", "port"))
def send(kind, content=b"", stream=1):
    port.sendall(messages.pack(kind, stream, content))
received, waiting = bytearray(), []
def wait_for(kind):
    while not waiting or waiting.pop(0)[0] != kind:
        while not waiting:
            received.extend(port.recv(65536))
            waiting.extend(messages.take_whole(received))
def boot():
    send(messages.READY)
    wait_for(messages.PREPARE)
    send(messages.PREPARED)
    wait_for(messages.RUN)
{body}
"""


@pytest.fixture
def fake_qemu(tmp_path, monkeypatch):
    """A function that replaces QEMU by a script. It returns a function that runs a VM."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "modules.order").touch()
    program = tmp_path / packages.qemu_program(os.uname().machine)

    def make(body, image="vmlinuz"):
        kernel = SimpleNamespace(image=tmp_path / image, modules=tmp_path)
        program.write_text(
            FAKE_QEMU.format(python=sys.executable, root=str(ROOT), folder=str(tmp_path), body=body)
        )
        program.chmod(0o755)

        def run(**options):
            return vm.run(kernel, ["true"], **options)

        return run

    vars(make)["pids"] = lambda: [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    vars(make)["folder"] = tmp_path
    return make


def test_a_vm_lost_before_any_output_is_retried(fake_qemu):
    run = fake_qemu(
        "if nr_started > 1:\n    boot(); send(messages.EXIT, bytes([5, 0, 0, 0])); time.sleep(60)"
    )
    said = []
    outcome = run(say=said.append)
    assert (outcome.exit_code, outcome.nr_lost) == (5, 1)
    assert said[1] in ("trying once more", "trying with tcg")
    assert "the VM died while it booted" in said[0]


def test_a_vm_lost_after_output_is_not_retried(fake_qemu):
    stdout = io.BytesIO()
    run = fake_qemu("boot(); send(messages.STDOUT, b'half')")
    with pytest.raises(vm.VmLost, match="ended before the command did"):
        run(stdout=stdout)
    assert stdout.getvalue() == b"half"
    assert len(fake_qemu.pids()) == 1


def test_qemus_error_message_is_in_the_error(fake_qemu):
    run = fake_qemu("sys.exit('no such CPU')")
    with pytest.raises(vm.VmLost, match="died while it booted: no such CPU"):
        run()


def test_a_vm_that_does_not_boot_in_time_is_ended(fake_qemu):
    run = fake_qemu("console.sendall(b'[ 0.1] Booting\\n'); time.sleep(60)")
    with pytest.raises(vm.VmLost, match=r"did not boot in 1 s; (?s:.*)Booting"):
        run(boot_timeout=1)
    assert not any(is_alive(pid) for pid in fake_qemu.pids())


def test_a_command_that_takes_too_long_is_ended(fake_qemu):
    run = fake_qemu("boot(); time.sleep(60)")
    with pytest.raises(vm.VmTimeout):
        run(timeout=0.2)
    assert not is_alive(*fake_qemu.pids())


def test_a_command_with_endless_output_is_ended_too(fake_qemu):
    run = fake_qemu("boot()\nwhile True: send(messages.STDOUT, bytes(60000))")
    with pytest.raises(vm.VmTimeout):
        run(timeout=0.2, stdout=io.BytesIO())


def test_a_guest_that_refuses_its_setup_is_said(fake_qemu):
    run = fake_qemu(
        "send(messages.READY); wait_for(messages.PREPARE)\n"
        "send(messages.REFUSED, b'no \\xff', 0); time.sleep(60)"
    )
    with pytest.raises(vm.VmUnusable, match="cannot be set up for the command: no �"):
        run()


def test_a_command_that_has_read_something_is_not_run_again(fake_qemu):
    run = fake_qemu("boot(); wait_for(messages.STDIN)")
    ours, theirs = os.pipe()
    os.write(theirs, b"an answer")
    with pytest.raises(vm.VmLost, match="ended before the command did"):
        run(stdin=ours)
    os.close(ours)
    os.close(theirs)
    assert len(fake_qemu.pids()) == 1


def test_a_kernel_that_hangs_in_its_panic_ends_the_wait(fake_qemu, monkeypatch):
    monkeypatch.setattr(session, "PANIC_SECONDS", 0.2)
    run = fake_qemu(
        "boot()\n"
        "console.sendall(b'[ 9.1] Oops: 1\\n[ 9.2] Kernel panic - not syncing\\n')\n"
        "time.sleep(60)"
    )
    with pytest.raises(vm.KernelCrashed, match="crashed: Oops: 1;"):
        run()


def test_a_kernel_that_falls_silent_is_lost(fake_qemu, monkeypatch):
    monkeypatch.setitem(runner.SILENCE_TIMEOUTS, "tcg", 1)
    run = fake_qemu(
        "for i in range(8): console.sendall(b'[ 0.1] a word\\n'); time.sleep(0.2)\n"
        "boot(); send(messages.EXIT, bytes(4)); time.sleep(60)"
    )
    assert run().boot_seconds > 1
    run = fake_qemu("time.sleep(60)")
    with pytest.raises(vm.VmLost, match="did not boot in 1 s: its kernel printed nothing"):
        run()


def test_after_kvm_has_failed_tcg_is_used(fake_qemu, monkeypatch):
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "auto")
    monkeypatch.setattr(qemu, "can_open_kvm", lambda: True)
    run = fake_qemu(
        "if accelerator == 'kvm': time.sleep(60)\n"
        "boot(); send(messages.EXIT, bytes(4)); time.sleep(60)"
    )
    said = []
    first = run(boot_timeout=1, say=said.append)
    assert (first.accelerator, first.nr_lost) == ("tcg", 1)
    assert said[-2:] == [
        "trying with tcg",
        "no VM will try KVM again until this machine is rebooted",
    ]
    assert run(boot_timeout=1).nr_lost == 0


def test_kvm_is_tried_again_after_a_kernel_with_larger_pages(fake_qemu, monkeypatch):
    """Only such a kernel may fail with KVM: on a processor of arm64 that lacks these pages."""
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "auto")
    monkeypatch.setattr(qemu, "can_open_kvm", lambda: True)
    run = fake_qemu(
        "if accelerator == 'kvm': sys.exit()\n"
        "boot(); send(messages.EXIT, bytes(4)); time.sleep(60)",
        image="vmlinuz-6.12.9-arm64-16k",
    )
    assert [run().nr_lost, run().nr_lost] == [1, 1]


def test_a_wait_for_kvm_is_said(fake_qemu, monkeypatch):
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "kvm")
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.3)
    run = fake_qemu("time.sleep(60)")
    said = []
    with pytest.raises(vm.VmLost):
        run(boot_timeout=2, say=said.append)
    waits = [each for each in said if "no sign of life" in each]
    assert waits == ["no sign of life with KVM yet; waiting for at most 2 s more"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_qemu_ends_with_physview(fake_qemu, number):
    fake_qemu("boot(); time.sleep(60)")
    code = (
        "import signal, sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from physview import vm\n"
        "vm.run(N(image=Path('x'), modules=Path(sys.argv[1])), ['true'])"
    )
    before = set(os.listdir(tempfile.gettempdir()))
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(fake_qemu.folder)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    wait_for((fake_qemu.folder / "pids").exists)
    wait_for(fake_qemu.pids)
    caller.send_signal(number)
    caller.wait(10)
    wait_for(lambda: not is_alive(*fake_qemu.pids()))
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not [name for name in left if "vm" in name.lower() or "qemu" in name.lower()]


def test_without_qemu_the_error_has_the_command_that_installs_it(fake_qemu, monkeypatch):
    run = fake_qemu("")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(vm.VmUnusable, match=r"there is no qemu-system-\w+; .*install"):
        run()


def test_the_tests_notice_a_guest_that_says_nothing_for_long(tmp_path):
    """As guests.run_in_guest() does; the silent command is one on this machine."""
    output = tmp_path / "stdout"
    silent = ["touched", "self", "--for", "60"]
    assert run_and_watch(silent, dict(os.environ), output, 1.0) is None
    assert run_and_watch(["--version"], dict(os.environ), output, 20.0) == 0
    assert "physview" in output.read_text()
