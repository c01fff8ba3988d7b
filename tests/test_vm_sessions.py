# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs that stay: start, exec, shell, list and stop, with several terminals, and all kinds of ends.

A program takes QEMU's place: it runs the guest's own process 1, on this machine, as an ordinary
process. tests/test_vm.py does the same with a real VM.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import is_alive, wait_for
from limits import DEFAULT_SIGNALS
from paths import ROOT
from screens import PtyRun

from physview.runtime import packages
from physview.vm import owner, running

GUEST = """#!{python}
import os, re, signal, socket, sys
sys.path.insert(0, {root!r})
from physview.vm import guest, messages
if sys.argv[1:] == ["-cpu", "help"]:
    sys.exit()
open({folder!r} + "/pid", "w").write(str(os.getpid()))
port = socket.socket(fileno=int(re.search("id=port,fd=([0-9]+)", " ".join(sys.argv))[1]))
class Host(guest.HostPort):
    def __init__(self):
        self.fd = port.fileno()
        self._received = bytearray()
    def receive(self):
        if not port.recv(1, socket.MSG_PEEK):
            os._exit(0)
        return super().receive()
guest.prepare = lambda request: None
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # as a process 1 has them
host = Host()
host.send(messages.READY)
guest.Guest(host).serve()
"""
PHYSVIEW = [sys.executable, "-m", "physview"]
OTHER_SESSION = (
    "import subprocess, sys; subprocess.run(sys.argv[1:]); print(flush=True); sys.stdin.read()"
)


class Vms:
    """Commands of `physview vm` whose VMs are no VMs."""

    def __init__(self, folder):
        self.folder = folder
        self.files = folder / "cache/vms"
        self.env = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PHYSVIEW_CACHE": str(folder / "cache"),
            "PHYSVIEW_VM_ACCEL": "tcg",
        }
        self.program = self.make_qemu(os.uname().machine)
        (folder / "bzImage").touch()
        self.start_words = ["vm", "start", "--kernel", f"{folder}/bzImage", "--module", "none"]

    def make_qemu(self, machine):
        """Put a program in place of the QEMU that makes VMs of an architecture."""
        program = self.folder / packages.qemu_program(machine)
        program.write_text(
            GUEST.format(python=sys.executable, root=str(ROOT), folder=str(self.folder))
        )
        program.chmod(0o755)
        return program

    def __call__(self, *words, **options):
        usual = {"env": os.environ | self.env, "capture_output": True, "text": True, "timeout": 20}
        return subprocess.run([*PHYSVIEW, "vm", *words], check=False, **usual | options)

    def start(self, *words):
        started = self(*self.start_words[1:], *words)
        assert started.returncode == 0, started
        return started.stdout

    def terminal(self, *words, **size):
        return PtyRun([*PHYSVIEW, "vm", *words], env=self.env, **size)

    def described(self):
        return json.loads(self("list", "--json").stdout)["vms"]

    def qemu(self):
        return int((self.folder / "pid").read_text())


@pytest.fixture
def vms(tmp_path):
    vms = Vms(tmp_path)
    yield vms
    vms("stop", "--all")
    assert not [*vms.files.iterdir()] if vms.files.exists() else True


def answers(shell):
    """Wait until a shell reads what is typed."""
    shell.press("echo in''side\n")
    shell.shows("inside")


def test_one_vm_runs_many_commands(vms):
    assert "the VM default runs" in vms.start()
    assert vms("exec", "--", "cat", input="hi\n").stdout == "hi\n"
    result = vms("exec", "default", "--", "sh", "-c", "echo a; echo b >&2; exit 9", cwd="/")
    assert (result.returncode, result.stdout, result.stderr) == (9, "a\n", "b\n")
    assert vms("exec", "--", "sh", "-c", "kill -9 $$").returncode == 137
    assert vms("exec", "--", "pwd", cwd=vms.folder).stdout == f"{vms.folder}\n"
    (described,) = vms.described()
    assert (described["name"], described["commands"]) == ("default", [])
    assert "the VM default runs already" in vms(*vms.start_words[1:]).stderr
    assert vms("stop").returncode == 0
    assert "no VM runs; start one: " in vms("exec", "--", "true").stderr
    assert vms("list").stdout == "no VM runs\n"


def test_a_command_of_physview_is_run_by_physview(vms):
    vms.start()
    assert "usage: physview lab" in vms("exec", "--", "lab", "--help").stdout
    missing = vms("exec", "--", "nowhere-found")
    assert missing.returncode == 127
    assert missing.stderr == "physview: cannot run nowhere-found: No such file or directory\n"


def test_several_vms_have_names(vms):
    vms.start("one")
    vms.start("two")
    assert [each["name"] for each in vms.described()] == ["one", "two"]
    for action in (["exec", "--", "true"], ["shell"], ["stop"]):  # never a VM of another name
        nameless = vms(*action)
        assert nameless.returncode == 1
        assert nameless.stderr.startswith("physview: no VM default runs: these run: one, two; ")
    vms("exec", "two", "--", "touch", str(vms.folder / "made"))
    assert (vms.folder / "made").exists()
    assert vms("stop", "two").stdout == "the VM two has ended\n"
    assert [each["name"] for each in vms.described()] == ["one"]
    assert "no VM two runs: these run: one; " in vms("stop", "two").stderr


def test_much_data_goes_both_ways(vms):
    vms.start()
    data = os.urandom(5 << 20)
    returned = vms("exec", "--", "cat", input=data, text=False).stdout
    assert hashlib.md5(returned).digest() == hashlib.md5(data).digest()
    assert vms("exec", "--", "head", "-c", "1", input=data, text=False).stdout == data[:1]


@contextlib.contextmanager
def killed_at_the_end(*command, **options):
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_who_does_not_read_holds_up_nobody(vms):
    vms.start()
    execute = [*PHYSVIEW, "vm", "exec", "--"]
    options = {"env": os.environ | vms.env, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        killed_at_the_end(*execute, "yes", **options) as silent,
        killed_at_the_end(*execute, "sleep", "60", **options) as deaf,
    ):
        silent.stdout.read(1)
        silent.send_signal(signal.SIGSTOP)
        os.set_blocking(deaf.stdin.fileno(), False)
        wait_for(lambda: len(vms.described()[0]["commands"]) == 2)
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                os.write(deaf.stdin.fileno(), bytes(1 << 20))
            time.sleep(0.05)
        assert vms("exec", "--", "cat", input="hi").stdout == "hi"
    wait_for(lambda: vms.described()[0]["commands"] == [])


def test_a_shell_has_a_terminal(vms):
    vms.start()
    with vms.terminal("shell", columns=90, lines=20) as one, vms.terminal("shell") as two:
        answers(one)
        answers(two)
        one.press("stty size; tty | grep -c pts; echo $TERM\n")
        one.shows("20 90")
        one.shows("xterm-256color")
        one.resize(70, 15)
        one.press("\n")
        wait_for(lambda: one.press("stty size\n") or (one.nr_written_in(0.3) and "15 70" in
                 "\n".join(one.lines)))  # fmt: skip
        one.press("sleep 99\n")
        time.sleep(0.5)
        one.press("\x03")
        one.press("echo code $?\n")
        one.shows("code 130")
        one.press("sleep 98\n")
        time.sleep(0.5)
        one.press("\x1a")
        one.shows("Stopped")
        one.press("jobs | wc -l; fg\n")  # bash does not exit while a job is stopped
        time.sleep(0.5)
        one.press("\x03")
        one.press("echo then $?\n")
        one.shows("then 130")
        assert len(vms.described()[0]["commands"]) == 2
        two.press("exit 7\n")
        assert two.wait() == 7
        one.press("exit 3\n")
        assert one.wait() == 3
        assert one.is_as_before() or b"?25" not in one.raw


def test_a_command_at_a_terminal_can_be_answered(vms):
    vms.start()
    with vms.terminal("exec", "--", "sh", "-c", 'printf "name? "; read n; echo "<$n>"') as asked:
        asked.shows("name?")
        asked.press("cow\n")
        asked.shows("<cow>")
        assert asked.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_command_ends_with_its_client(vms, number):
    vms.start()
    kept = vms.folder / "pid of sleep"
    line = f'trap "" INT; echo $$ >"{kept}"; exec sleep 90'
    with vms.terminal("exec", "--", "sh", "-c", line) as client:
        wait_for(lambda: kept.exists() and kept.read_text())
        pid = int(kept.read_text())
        client.process.send_signal(number)
        client.wait()
        wait_for(lambda: not is_alive(pid))
        if number != signal.SIGKILL:
            assert client.process.returncode == -number
    assert vms("exec", "--", "echo", "fine").stdout == "fine\n"


def test_what_ignores_the_hang_up_is_killed(vms):
    vms.start()
    kept = vms.folder / "pid of sleep"
    line = f'trap "" HUP; echo $$ >"{kept}"; exec sleep 90'
    command = [*PHYSVIEW, "vm", "exec", "--", "sh", "-c", line]
    with killed_at_the_end(*command, env=os.environ | vms.env):
        wait_for(lambda: kept.exists() and kept.read_text())
    pid = int(kept.read_text())
    assert is_alive(pid)
    wait_for(lambda: not is_alive(pid))


def test_ctrl_c_without_a_terminal_is_the_commands(vms):
    vms.start()
    line = 'trap "echo caught; exit 5" INT; echo ready; while :; do sleep 0.1; done'
    command = [*DEFAULT_SIGNALS, *PHYSVIEW, "vm", "exec", "--", "sh", "-c", line]
    options = {"env": os.environ | vms.env, "stdout": subprocess.PIPE, "text": True}
    with killed_at_the_end(*command, **options) as client:
        assert client.stdout.readline() == "ready\n"
        client.send_signal(signal.SIGINT)
        assert client.stdout.read() == "caught\n"
        assert client.wait() == 5


def test_a_timeout_ends_the_command_only(vms):
    vms.start()
    late = vms("exec", "--timeout", "0.5", "--", "sleep", "80")
    assert late.returncode == 124
    assert late.stderr == "physview: the command was ended: it took more than 0.5 s\n"
    assert vms("exec", "--", "true").returncode == 0


def test_a_killed_qemu_is_said_in_every_terminal(vms):
    vms.start()
    with vms.terminal("shell") as shell:
        answers(shell)
        os.kill(vms.qemu(), signal.SIGKILL)
        shell.shows("the VM ended before the command did")
        assert shell.wait() == 125
        assert shell.is_as_before()
    wait_for(lambda: not [*vms.files.iterdir()])


@pytest.mark.parametrize("killed", ["keeper", "its parent", "both"])
def test_nothing_is_left_of_a_killed_keeper(vms, killed):
    vms.start()
    keeper = vms.described()[0]["pid"]
    parent = int(Path(f"/proc/{keeper}/stat").read_text().rpartition(") ")[2].split()[1])
    with vms.terminal("shell") as shell:
        answers(shell)
        if killed != "keeper":
            os.kill(parent, signal.SIGKILL)
            wait_for(lambda: not is_alive(parent))
            assert vms("exec", "--", "echo", "on").stdout == "on\n"
        if killed == "its parent":
            vms("stop")
        else:
            os.kill(keeper, signal.SIGKILL)
        shell.shows("the VM default has ended")
        assert shell.wait() == 125
    wait_for(lambda: not is_alive(vms.qemu()))
    if killed == "both":
        assert vms("list").stdout == "no VM runs\n"
    wait_for(lambda: not [*vms.files.iterdir()])


def test_a_vm_ends_with_the_session_in_which_it_was_started(vms):
    command = [sys.executable, "-c", OTHER_SESSION, *PHYSVIEW, *vms.start_words]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
    with killed_at_the_end(*command, env=os.environ | vms.env, **options) as session:
        while session.stdout.readline() not in (b"\n", b""):
            pass
        assert vms.described()[0]["owner"] == session.pid
    wait_for(lambda: not is_alive(vms.qemu()) and not [*vms.files.iterdir()])


def test_a_vm_may_stay(vms):
    subprocess.run(
        [*PHYSVIEW, *vms.start_words, "--stay"], env=os.environ | vms.env, check=True,
        start_new_session=True, capture_output=True,
    )  # fmt: skip
    assert vms.described()[0]["owner"] is None


def start_by_the_library(vms, *, idle_seconds, foreign=()):
    code = (
        "import json, sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from physview import vm\n"
        "from physview.vm import keeper\n"
        "machine, folder, package = json.loads(sys.argv[1]) or [None] * 3\n"
        "root = vm.ForeignRoot(machine, Path(folder), sys.executable, Path(package))"
        " if machine else None\n"
        "plan = vm.plan(N(image=Path('x'), modules=Path('none')), foreign=root)\n"
        "shown = {'name': 'x', 'release': '6', 'machine': plan.machine.architecture}\n"
        f"keeper.start('x', plan, shown, owner=None, idle_seconds={idle_seconds}, say=print)"
    )
    environment = os.environ | vms.env | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(foreign)]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.needs("root")  # to enter /root, which is this machine's here
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_vm_of_another_architecture_has_none_of_this_machines_paths(vms, machine):
    """Its commands start in its own root folder, and find the physview of its own."""
    vms.make_qemu(machine)
    home = vms.folder / "package"
    (home / "bin").mkdir(parents=True)
    line = 'echo "$PWD $HOME $LANG $NO_COLOR $SECRET" "$@"'
    (home / "bin/physview").write_text(f"#!/bin/sh\n{line}\n")
    (home / "bin/physview").chmod(0o755)
    start_by_the_library(vms, idle_seconds=60, foreign=(machine, "/", str(home)))
    vms.env |= {"NO_COLOR": "1", "SECRET": "here"}
    ran = vms("exec", "x", "--", "translate", "self", cwd=vms.folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "/root /root C.UTF-8 1  translate self\n"
    assert vms.described()[0]["machine"] == machine
    heads, row = (line.split() for line in vms("list").stdout.splitlines())
    assert row[heads.index("MACHINE")] == machine


def test_what_a_vm_uses_stays_in_the_cache(vms):
    package = vms.folder / "cache/packages/0123"
    (package / "bin").mkdir(parents=True)
    start_by_the_library(vms, idle_seconds=60, foreign=(os.uname().machine, "/", str(package)))
    kept = vms("clean", "--older-than", "0")
    assert kept.stdout.startswith("nothing was removed; "), kept
    os.kill(vms.described()[0]["pid"], signal.SIGKILL)  # the keeper: QEMU ends with it
    wait_for(lambda: not is_alive(vms.qemu()))
    assert "packages/0123: not in use\n" in vms("clean", "--older-than", "0").stdout
    assert not package.exists()


def test_an_idle_vm_ends(vms):
    start_by_the_library(vms, idle_seconds=0.5)
    assert is_alive(vms.qemu())
    wait_for(lambda: not is_alive(vms.qemu()) and not [*vms.files.iterdir()])


def test_start_leaves_no_descriptor_open(vms):
    """A script can read what `vm start` prints to its end."""
    ours, theirs = os.pipe()
    started = subprocess.run(
        [*PHYSVIEW, *vms.start_words], env=os.environ | vms.env, check=True,
        stdout=theirs, pass_fds=[theirs],
    )  # fmt: skip
    os.close(theirs)
    assert started.returncode == 0
    with open(ours) as told:
        assert "runs Linux" in told.read()


def test_a_vm_that_does_not_boot_is_said(vms):
    vms.program.write_text("#!/bin/sh\necho no such CPU >&2; exit 1\n")
    failed = vms(*vms.start_words[1:])
    assert failed.returncode == 125
    assert "died while it booted: no such CPU" in failed.stderr
    wait_for(lambda: not [*vms.files.iterdir()])


def test_a_start_that_is_interrupted_leaves_nothing(vms):
    vms.program.write_text(
        f'#!/bin/sh\n[ "$*" = "-cpu help" ] || {{ echo $$ >{vms.folder}/pid; exec sleep 60; }}\n'
    )
    with vms.terminal(*vms.start_words[1:]) as starting:
        wait_for(lambda: (vms.folder / "pid").exists() and (vms.folder / "pid").read_text())
        starting.press("\x03")
        assert starting.wait() == -signal.SIGINT
    wait_for(lambda: not is_alive(vms.qemu()) and not [*vms.files.iterdir()])


def test_nobody_else_may_enter_the_folder(vms):
    vms.start()
    assert vms.files.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["", ".", "a/b", "a\n", "-x", "x" * 33, "ü", "a.lock"])
def test_names_that_could_harm_are_refused(name):
    with pytest.raises(ValueError, match="is no name for a VM"):
        running.check_name(name)


def test_a_session_for_one_command_is_not_the_users(tmp_path):
    """As sudo's, which has its own session if it gives the command a terminal."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from physview.vm import owner; print(owner.find())"
    )
    # comm is the name of the file, of which the shell's is "sudo" here.
    (tmp_path / "sudo").symlink_to("/bin/sh")
    inner = [sys.executable, "-c", code, str(ROOT)]
    found = subprocess.run(
        ["setsid", "-w", str(tmp_path / "sudo"), "-c", '"$@"; :', "x", *inner],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # None for both where the leader is outside of the pid namespace, as in some containers.
    assert found.stdout == f"{owner.find()}\n"
