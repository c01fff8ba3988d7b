# SPDX-License-Identifier: GPL-2.0-or-later
"""physview vm with booted VMs: the guest's results and output, and what the guest must not have."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT
from screens import PtyRun
from users import AS_NOBODY

from physview import kernels, vm
from physview.vm import initramfs

# One accelerator for all. To open a /dev/kvm that does not work can do harm.
os.environ.setdefault("PHYSVIEW_VM_ACCEL", "tcg")

pytestmark = pytest.mark.needs("vm", "kernels")

LARGE = bytes(range(256)) * 40960  # 10 MiB, every byte
FACTS = """
import json, os, sys
os.makedirs(os.path.expanduser("~/deep/er"))
print(json.dumps({
    "uid": os.getuid(),
    "stdin": sys.stdin.read(),
    "cwd": os.getcwd(),
    "made": os.path.exists(os.environ["MADE"]),
    "hostname": os.uname().nodename,
    "release": os.uname().release,
    "loopback": int(open("/sys/class/net/lo/flags").read(), 16) & 1,
    "cpuflags": open("/proc/cpuinfo").read().split(),
    "dummies": [name for name in os.listdir("/sys/class/net") if name != "lo"],
    "modules": os.path.isdir(f"/lib/modules/{os.uname().release}/kernel"),
    "swaps": open("/proc/swaps").read().split(),
    "mounts": [line.split()[1] for line in open("/proc/mounts")],
}), file=sys.stderr)
for i in range(10):
    sys.stdout.buffer.write(bytes(range(256)) * 4096)
"""


@pytest.fixture(scope="module")
def kernel():
    return kernels.find_kernel("6.1")


@pytest.fixture(scope="module")
def booted(kernel, tmp_path_factory):
    """The result of one VM that runs with many options."""
    folder = tmp_path_factory.mktemp("vm")
    made = folder / "made in the guest"
    script = 'echo mark > "$MADE"; "$0" -c "$FACTS"; echo done > /dev/stderr; kill -TERM $$'
    stdout, stderr = io.BytesIO(), io.BytesIO()
    outcome = vm.run(
        kernel,
        ["sh", "-c", script, sys.executable],
        modules=[kernel.modules / "kernel/drivers/net/dummy.ko"],
        la57=True,
        swap_mib=16,
        append="dummy.numdummies=3",
        cwd=folder,
        env=os.environ | {"MADE": str(made), "FACTS": FACTS, "ODD": "\udcff"},
        timeout=120,
        stdout=stdout,
        stderr=stderr,
    )
    facts, done = stderr.getvalue().splitlines()
    assert done == b"done"
    return SimpleNamespace(
        outcome=outcome, stdout=stdout.getvalue(), facts=json.loads(facts), made=made, folder=folder
    )


class TestBooted:
    def test_the_exit_code_is_the_commands(self, booted):
        assert booted.outcome.exit_code == 128 + signal.SIGTERM

    def test_large_binary_output_comes_whole_and_apart_from_stderr(self, booted):
        assert booted.stdout == LARGE

    def test_the_command_is_root_where_the_caller_stands_with_an_empty_stdin(self, booted):
        facts = booted.facts
        assert (facts["uid"], facts["cwd"], facts["stdin"]) == (0, str(booted.folder), "")

    def test_what_it_writes_is_there_for_it_and_nowhere_else(self, booted):
        assert booted.facts["made"]
        assert not booted.made.exists()

    def test_the_kernel_and_its_paging_are_as_asked_for(self, booted, kernel):
        assert booted.facts["release"] == kernel.release
        assert "la57" in booted.facts["cpuflags"]

    def test_modules_are_loaded_with_their_parameters(self, booted):
        assert sorted(booted.facts["dummies"]) == ["dummy0", "dummy1", "dummy2"]
        assert booted.facts["modules"]

    def test_it_has_the_swap_that_was_asked_for(self, booted):
        assert booted.facts["swaps"][5:8] == ["/dev/zram0", "partition", str(16 * 1024 - 4)]

    def test_it_is_a_whole_machine(self, booted):
        wanted = {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/sys/kernel/debug"}
        assert wanted | {"/sys/kernel/tracing"} <= set(booted.facts["mounts"])
        assert (booted.facts["hostname"], booted.facts["loopback"]) == ("physview-vm", 1)


def test_a_kernel_that_panics_is_an_error_of_its_own(kernel):
    stdout = io.BytesIO()
    crash = "echo before; echo c > /proc/sysrq-trigger"
    with pytest.raises(vm.KernelCrashed, match="sysrq") as caught:
        vm.run(kernel, ["sh", "-c", crash], timeout=120, stdout=stdout)
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)
    assert stdout.getvalue() == b"before\n"


def test_a_module_that_does_not_load_is_said(kernel, tmp_path):
    module = tmp_path / "none.ko"
    module.write_bytes(b"no module")
    with pytest.raises(vm.VmUnusable, match=r"Exec format error.*none\.ko"):
        vm.run(kernel, ["true"], modules=[module])


@pytest.mark.needs("nobody")
def test_a_plain_user_can_run_it(kernel):
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N\n"
        "from physview import vm\n"
        "kernel = N(image=Path('vmlinuz'), modules=Path('.'))\n"
        "command = ['sh', '-c', 'id -u; touch $HOME/x && echo $HOME; cat /etc/shadow; exit 7']\n"
        "sys.exit(vm.run(kernel, command).exit_code)"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copy(kernel.image, f"{folder}/vmlinuz")
        for name in ("modules.order", "modules.builtin"):
            shutil.copy(kernel.modules / name, folder)
        modules = dict(initramfs.load_order(kernel.modules, initramfs.MODULES))
        for line in (kernel.modules / "modules.order").read_text().split():
            if (content := modules.get(Path(line).stem.replace("-", "_"))) is not None:
                path = Path(folder, line)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        result = subprocess.run(
            [*AS_NOBODY, sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | {"HOME": "/root", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert result.stdout == "0\n/home/physview-vm\n", result
    assert "/etc/shadow: Permission denied" in result.stderr
    assert result.returncode == 7


def test_an_image_that_is_no_kernel_is_a_lost_vm_and_tried_twice(kernel, tmp_path):
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"no kernel" * 1000)
    said = []
    with pytest.raises(vm.VmLost):
        vm.run(kernel._replace(image=image), ["true"], boot_timeout=3, say=said.append)
    assert len(said) == 2
    assert said[0].startswith("the VM di")
    assert said[1] == "trying once more"


def test_two_terminals_share_a_vm_that_stays(kernel, tmp_path):
    env = {"PHYSVIEW_VMS": str(tmp_path / "vms")}
    physview = [sys.executable, "-m", "physview", "vm"]

    def run(*words, **options):
        usual = {"env": os.environ | env, "capture_output": True, "text": True, "timeout": 200}
        return subprocess.run([*physview, *words], check=False, **usual | options)

    started = run("start", "--kernel", "6.1", "--module", "none")
    assert f"runs Linux {kernel.release}" in started.stdout, started
    with (
        PtyRun([*physview, "shell"], env=env, columns=90, lines=20) as one,
        PtyRun([*physview, "shell"], env=env) as two,
    ):
        one.press("uname -n; id -un; stty size; touch /tmp/from-one\n")
        one.shows("physview-vm")
        one.shows("20 90")
        one.resize(70, 15)
        one.press("sleep 99\n")
        one.nr_written_in(1)
        one.press("\x03")
        one.press("stty size; echo code $?\n")
        one.shows("15 70")
        one.press("sleep 98\n")
        one.nr_written_in(1)
        one.press("\x1a")
        one.shows("Stopped")
        two.press("ls /tmp/from-one; ps -e | grep -c 'sleep$'\n")
        two.until(lambda lines: "1" in lines)
        one.process.kill()
        one.process.wait()
        gone = "while pgrep -x sleep; do sleep 0.2; done; echo all\n"
        two.press(gone.replace("all", "a''ll"))
        two.shows("all")
        two.press("exit 5\n")
        assert two.wait() == 5
    assert run("exec", "--", "sh", "-c", "cat; uname -r; exit 6", input="hi\n").stdout == (
        f"hi\n{kernel.release}\n"
    )
    crashed = run("exec", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 60")
    assert crashed.returncode == 123
    assert "the VM's kernel crashed: sysrq: Trigger a crash" in crashed.stderr
    assert run("list").stdout == "no VM runs\n"


def test_input_is_passed_on(kernel):
    command = [sys.executable, "-m", "physview", "vm", "--kernel", "6.1", "--module", "none"]
    result = subprocess.run(
        [*command, "--", "cat"], input="hi\n", capture_output=True, text=True, check=False
    )
    assert result.stdout == "hi\n", result
