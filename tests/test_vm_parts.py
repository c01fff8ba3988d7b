# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a VM, each tested without booting a VM."""

import ast
import gzip
import lzma
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT

from physview import vm
from physview.errors import Unsupported, UsageError
from physview.runtime import packages
from physview.vm import failures, guest, init, initramfs, machine_code, qemu, runner


@pytest.fixture
def run_steps(tmp_path):
    """A function that runs the guest's init program on the host, as an ordinary program."""

    def run(*steps):
        program = tmp_path / "init"
        program.write_bytes(init.make_elf(steps))
        program.chmod(0o755)
        return subprocess.run([program], capture_output=True, text=True, timeout=10, check=False)

    return run


def test_init_makes_its_system_calls_and_then_runs_a_command(run_steps, tmp_path):
    result = run_steps(
        init.Step("write", "write", (1, b"first ", 6)),
        init.make_directory(str(tmp_path / "made")),
        init.make_directory(str(tmp_path / "made")),
        init.execute(["/bin/sh", "-c", 'echo "$0" $A; exit 3', "two words"], ["A=B"]),
    )
    assert (result.stdout, result.returncode) == ("first two words B\n", 3)
    assert (tmp_path / "made").is_dir()


def test_init_names_a_failed_step_and_exits_with_its_errno(run_steps):
    result = run_steps(
        init.Step("enter nowhere", "chdir", (b"/nonexistent",)),
        init.Step("write", "write", (1, b"never", 5)),
    )
    assert (result.stdout, result.returncode) == ("physview-init: cannot enter nowhere\n", 2)


def test_the_instructions_of_arm64():
    """The words are those that GNU's assembler makes: tests of VMs on arm64 run the program."""
    arm64 = machine_code.PROCESSORS["aarch64"]
    code = arm64.fail_routine() + arm64.call("mkdirat", [init.AT_FDCWD])
    words = struct.unpack(f"<{len(code) // 4}I", code)
    assert words[:2] == (0xCB0003F3, 0xD2800020)  # neg x19, x0; mov x0, #1
    assert words[9:11] == (0xD4000001, 0xAA1303E0)  # svc #0; mov x0, x19
    assert words[16:20] == (0xD29FF380, 0xF2BFFFE0, 0xF2DFFFE0, 0xF2FFFFE0)  # x0 = -100
    assert words[20] == 0xD2800448  # mov x8, #34
    check = arm64.check(0x400100, 7, 0x74)
    words = struct.unpack("<10I", check)
    assert (words[0], words[1], words[5], words[9]) == (
        *(0xB6F80140, 0xD2802001),  # tbz x0, #63, over it all; mov x1, #0x100
        *(0xD28000E2, 0x17FFFFDA),  # mov x2, #7; b 0
    )


@pytest.fixture
def modules(tmp_path):
    """A kernel's modules: a needs b-1 and c, b-1 needs c. No module needs d."""

    def add(path, depends, compress=lambda content: content, suffix=""):
        file = tmp_path / f"{path}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(compress(b"\x7fELF\0name=x\0depends=" + depends + b"\0end\0"))

    add("kernel/a.ko", b"b_1,c")
    add("kernel/x/b-1.ko", b"c", lzma.compress, ".xz")
    add("kernel/x/c.ko", b"", gzip.compress, ".gz")
    add("kernel/d.ko", b"")
    (tmp_path / "modules.order").write_text(
        "kernel/a.ko\nkernel/x/b-1.ko\nkernel/x/c.ko\nkernel/d.ko\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/virtio.ko\n")
    return tmp_path


def test_modules_follow_their_dependencies_and_are_decompressed(modules):
    found = list(initramfs.load_order(modules, ["virtio", "a", "b-1"]))
    assert [name for name, _ in found] == ["c", "b_1", "a"]
    assert all(content.startswith(b"\x7fELF") for _, content in found)


def test_a_kernel_without_a_driver_is_refused(modules):
    with pytest.raises(Unsupported, match="it has no 9p; choose a kernel with 9p"):
        list(initramfs.load_order(modules, ["9p"]))
    assert "has no virtio_pci" in vm.why_unbootable(SimpleNamespace(modules=modules))


def test_a_kernel_without_modules_counts_as_having_all_built_in(tmp_path):
    assert not list(initramfs.load_order(tmp_path / "none", initramfs.MODULES))


def test_an_archive_is_aligned_and_has_a_trailer():
    archive = initramfs.cpio(["d"], {"f": b"12345"})
    assert len(archive) % 4 == 0
    assert archive.count(b"070701") == 3
    at = archive.index(b"12345")
    assert at % 4 == 0
    assert archive[at + 8 :].startswith(b"070701")
    assert archive.rstrip(b"\0").endswith(b"TRAILER!!!")


GUEST = """
import os, sys
from types import SimpleNamespace
from physview.vm import guest, messages
sent = {messages.STDOUT: b"", messages.STDERR: b""}
class Host:
    fd = os.pipe()[0]
    def send(self, kind, stream, content):
        if kind == messages.EXIT:
            print((messages.NUMBER.unpack(content)[0], *sent.values()), flush=True)
            os._exit(0)
        sent[kind] += content
serving = guest.Guest(Host())
home = os.environ | {"HOME": "/nonexistent"}
guest.os.makedirs = lambda path, exist_ok: None
serving._run(1, {"command": sys.argv[1:], "otherwise": [], "env": dict(home), "cwd": "/",
                 "terminal": None})
serving.serve()
"""


def run_in_guest(*words):
    """Run a command with the guest's program, on the host; return exit code, stdout and stderr."""
    command = [sys.executable, "-c", GUEST, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT, check=True)
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh", "-c", "echo a; echo b >&2; exit 9"], (9, b"a\n", b"b\n")),
        (["sh", "-c", "kill -KILL $$"], (137, b"", b"")),
        (["sh", "-c", "exec >&- 2>&-; exit 4"], (4, b"", b"")),
        (["none"], (127, b"", b"physview: cannot run none: No such file or directory\n")),
        (["/"], (126, b"", b"physview: cannot run /: Permission denied\n")),
    ],
)
def test_exit_codes_follow_the_shells_convention(words, expected):
    assert run_in_guest(*words) == expected


def test_a_background_process_does_not_delay_the_end():
    code, stdout, _ = run_in_guest("sh", "-c", "sleep 60 & echo $!; exit 1")
    os.kill(int(stdout), signal.SIGKILL)
    assert code == 1


def test_the_guests_program_imports_few_modules():
    listing = """
import sys
path, before = sys.argv[1], set(sys.modules)
source = open(path).read().partition("def main()")[0]
exec(compile(source, path, "exec"), {"__name__": "__main__", "__file__": path})
print(*set(sys.modules) - before)
"""
    command = [sys.executable, "-I", "-S", "-c", listing, guest.__file__]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "physview.vm.messages" in loaded
    assert not {"enum", "json", "re", "socket", "subprocess", "typing"} & set(loaded)


@pytest.mark.needs("qemu")
def test_the_command_line_has_the_chosen_machine():
    vm_ = qemu.QemuMachine(Path("/k"), 512, 3, True, "hugepages=2")
    words = vm_.command("tcg", 5, 6, 7)
    line = " ".join(words)
    assert "-smp 3 -m 512" in line
    assert "max,la57=on" in line
    assert words[words.index("-append") + 1].endswith(" hugepages=2")
    assert "readonly=on" in line
    assert "-numa" not in words


@pytest.mark.needs("qemu")
def test_an_emulated_cpu_lacks_flags_that_qemu_emulates_slowly_or_wrongly():
    words = qemu.QemuMachine(Path("/k")).command("tcg", 5, 6, 7)
    off = {flag for flag in words[words.index("-cpu") + 1].split(",") if flag.endswith("=off")}
    result = subprocess.run(
        [packages.qemu_program("x86_64"), "-cpu", "help"], capture_output=True, check=True
    )
    known = result.stdout.decode().split()
    # Kernels up to 6.1 hang in memmove() on a CPU that has fsrm without erms.
    strings = {flag for flag in ("erms", "fsrm", "fsrs", "fzrm", "fsrc") if flag in known}
    assert off == {"la57=off", "avx2=off"} | {f"{flag}=off" for flag in strings}


def test_a_vm_of_another_architecture_is_emulated_and_has_a_root_of_its_own(monkeypatch):
    monkeypatch.setattr(qemu.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(qemu, "can_open_kvm", lambda: True)
    monkeypatch.setattr(qemu.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "auto")
    vm_ = qemu.QemuMachine(
        Path("/k"), machine="aarch64", root=Path("/a,b"), shares=(Path("/c/d"), Path("/e"))
    )
    assert list(vm_.accelerators()) == ["tcg", "tcg"]
    words = vm_.command("tcg", 5, 6, 7)
    line = " ".join(words)
    assert words[0] == "qemu-system-aarch64"
    assert "-machine virt,mem-merge=off,accel=tcg -cpu max,pauth-impdef=on -smp" in line
    assert "-append console=ttyAMA0 oops=panic" in line
    assert "la57" not in line
    assert "tsc=" not in line
    assert "id=root,path=/a,,b,security_model=none,readonly=on" in line
    assert "path=/c/d,security" in line
    assert "fsdev=share1,mount_tag=physview1" in line


def test_qemu_is_asked_for_by_the_architecture_of_the_vm(monkeypatch):
    monkeypatch.setattr(qemu.shutil, "which", lambda name: None)
    for machine, package in (("aarch64", "qemu-system-a"), ("x86_64", "qemu-")):
        with pytest.raises(vm.VmUnusable, match=f"there is no qemu-system-{machine}; ") as error:
            qemu.check_installed(machine)
        assert package in str(error.value)
    with pytest.raises(vm.VmUnusable, match="x86_64 and aarch64 only, and this machine is riscv64"):
        qemu.check_installed("riscv64")


@pytest.mark.needs("qemu")
def test_a_real_cpu_keeps_its_flags():
    words = qemu.QemuMachine(Path("/k"), la57=True).command("kvm", 5, 6, 7)
    assert words[words.index("-cpu") + 1] == "max,la57=on"


@pytest.mark.needs("qemu")
def test_memory_and_cpus_are_divided_among_nodes():
    words = qemu.QemuMachine(Path("/k"), 1025, 3, nr_nodes=2).command("tcg", 5, 6, 7)
    line = " ".join(words)
    assert "-smp 3,sockets=3 -m 1025 -object memory-backend-ram,id=node0,size=513M" in line
    assert "-numa node,nodeid=0,memdev=node0,cpus=0,cpus=2 -object" in line
    assert "size=512M -numa node,nodeid=1,memdev=node1,cpus=1 -kernel" in line


@pytest.mark.parametrize(
    ("machine", "nr_cpus", "option"),
    [
        ("aarch64", 8, "virt,mem-merge=off,accel=tcg"),
        ("aarch64", 9, "virt,mem-merge=off,gic-version=max,accel=tcg"),
        ("x86_64", 9, "q35,mem-merge=off,accel=tcg"),
    ],
)
def test_more_than_8_cpus_of_arm64_need_another_interrupt_controller(
    monkeypatch, machine, nr_cpus, option
):
    monkeypatch.setattr(qemu, "check_installed", lambda machine: None)
    made = qemu.QemuMachine(Path("/k"), nr_cpus=nr_cpus, machine=machine)
    assert option in made.command("tcg", 5, 6, 7)


def test_an_unknown_accelerator_is_refused(monkeypatch):
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "warp")
    with pytest.raises(UsageError, match="use kvm, tcg or auto"):
        list(qemu.QemuMachine(Path("/k")).accelerators())


@pytest.mark.parametrize(("has", "expected"), [("fpu la57", "kvm"), ("fpu", "tcg")])
def test_five_levels_are_emulated_if_the_cpu_lacks_them(monkeypatch, has, expected):
    monkeypatch.setenv("PHYSVIEW_VM_ACCEL", "auto")
    monkeypatch.setattr(qemu, "can_open_kvm", lambda: True)
    monkeypatch.setattr(qemu, "_read", lambda path: has if path.name == "cpuinfo" else path.name)
    assert next(qemu.QemuMachine(Path("/k"), la57=True).accelerators()) == expected


def test_a_long_crash_is_shown_with_its_beginning_and_end():
    end = "[ 3.0] Kernel panic - not syncing"
    log = ["[ 1.0] Fine", "[ 2.0] BUG: bad", *["[ 2.1] trace"] * 99, end]
    error = failures.crash_error("\n".join(log))
    assert str(error).startswith("the VM's kernel crashed: BUG: bad; its log:\n")
    assert str(error).endswith("…\n  [ 3.0] Kernel panic - not syncing")
    assert "Fine" not in str(error)


def test_a_crash_of_arm64_is_shown_from_its_first_line():
    log = (
        "[ 1.0] Fine\n[ 2.0] Unable to handle kernel NULL pointer dereference at 0000000000000008\n"
        "[ 2.1] Internal error: Oops: 0000000096000005 [#1] SMP\n"
        "[ 3.0] Kernel panic - not syncing: Oops: Fatal exception\n"
    )
    first = "Unable to handle kernel NULL pointer dereference at 0000000000000008"
    assert str(failures.crash_error(log)).startswith(f"the VM's kernel crashed: {first}; its log:")


def test_a_bug_without_a_panic_is_not_a_crash():
    assert failures.crash_error("[ 1.0] BUG: noticed\n") is None


def test_a_command_in_a_foreign_root_gets_nothing_of_this_machines_paths():
    foreign = vm.ForeignRoot("aarch64", Path("/r"), "/usr/bin/python3", Path("/cache/p"))
    own = {"TERM": "xterm", "LD_PRELOAD": "/tmp/here.so", "PATH": "/here", "HOME": "/here"}
    asked = runner.foreign_request({"command": ["x"], "cwd": "/here", "env": own}, foreign)
    assert asked == {
        "command": ["x"],
        "cwd": "/root",
        "env": {
            "TERM": "xterm",
            "PATH": "/cache/p/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
        },
    }


def test_a_shared_folder_is_mounted_at_its_own_path(modules):
    listing = [f"{name.replace('_', '-')}.ko" for name in initramfs.MODULES]
    (modules / "modules.builtin").write_text("\n".join(listing))
    archive = initramfs.make(modules, ["/x"], machine="aarch64", shares=[Path("/a/b c")])
    program = archive[archive.index(b"\x7fELF") :]
    assert program[18:20] == b"\xb7\0"  # EM_AARCH64
    made = [program.index(each) for each in (b"/root/a\0", b"/root/a/b c\0", b"physview0\0")]
    assert made == sorted(made)
