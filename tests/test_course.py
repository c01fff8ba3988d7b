# SPDX-License-Identifier: GPL-2.0-or-later
"""The course's folder, csrc/course: memview2 in C, and the Makefile with the course's targets."""

import os
import re
import shutil
import subprocess
from itertools import pairwise

import pytest
from paths import ROOT

import physview as api
from physview.sources.probes import visit_probes
from physview.system import module

SOURCE = ROOT / "csrc/course"
UAPI = ROOT / "csrc/kmod/uapi"
# Keeps memview2 alive after its report, as long as stdin is open.
STAY = """
#include <stdio.h>
__attribute__((destructor)) static void stay(void)
{
	fflush(stdout);
	getchar();
}
"""
LINE = re.compile(r"(\S+):  0x(\w{16}) -> 0x(\w{16})\n")
NO_KMOD = ["unshare", "-m", "sh", "-c", 'mount --bind /dev/null "$0" && exec "$@"']


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder and of the module's source, as in a checkout."""
    for name in ("course", "kmod"):
        ignore = shutil.ignore_patterns("*.o", "*.ko", "*.mod*", ".*", "memview2")
        shutil.copytree(ROOT / "csrc" / name, tmp_path / "csrc" / name, ignore=ignore)
    return tmp_path / "csrc/course"


def make(folder, *args, prefix=(), **options):
    command = [*prefix, "make", *args]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, **options
    )


def compile_client(source, program, *more, compiler="cc"):
    warnings = ["-O2", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *warnings, "-I", UAPI, "-o", program, source, *more]
    subprocess.run(command, check=True)


@pytest.mark.needs("cc", "make")
def test_make_builds_memview2_without_a_warning_and_clean_removes_it(folder):
    result = make(folder, "memview2", "CFLAGS=-O2 -Wall -Wextra -Werror")
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "memview2").exists()
    make(folder, "clean")
    assert sorted(os.listdir(folder)) == ["Makefile", "memview2.c"]


@pytest.mark.needs("cc")
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_with_the_sleep_there_is_no_warning_either(tmp_path, compiler):
    if shutil.which(compiler) is None:
        compiler = "cc"
    text = (SOURCE / "memview2.c").read_text()
    assert text.count("\t// sleep(10);\n") == 1
    awake = text.replace("// sleep(10);", "sleep(10);")
    (tmp_path / "sleeps.c").write_text(awake)
    for source in (SOURCE / "memview2.c", tmp_path / "sleeps.c"):
        compile_client(source, tmp_path / "program", compiler=compiler)


@pytest.mark.needs("cc", "no-modules")
def test_without_the_module_it_says_what_to_do(tmp_path):
    compile_client(SOURCE / "memview2.c", tmp_path / "memview2")
    result = subprocess.run([tmp_path / "memview2"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "cannot open /dev/3000physicalview: No such file" in result.stderr
    assert "sudo make insert" in result.stderr


@pytest.mark.needs("cc", "kmod", "pfn")
def test_it_reports_the_addresses_that_pagemap_has(tmp_path):
    (tmp_path / "stay.c").write_text(STAY)
    program = tmp_path / "memview2"
    compile_client(SOURCE / "memview2.c", program, tmp_path / "stay.c")
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "Memory map report (virtual -> physical)\n"
        lines = [LINE.fullmatch(process.stdout.readline()).groups() for _ in range(40)]
        vaddrs = [int(vaddr, 16) for _, vaddr, _ in lines]
        with api.Process(process.pid) as own:
            by_pagemap = [one.paddr for one in own.translate_many(vaddrs)]
        process.stdin.close()
    assert [int(paddr, 16) for _, _, paddr in lines] == by_pagemap
    assert [label for label, _, _ in lines] == visit_probes(
        lambda probes: [p.label for p in probes]
    )
    steps = {b - a for a, b in pairwise(vaddrs[10:])}
    assert steps == {0x1010}


@pytest.mark.needs("make", "kmod", "root")
def test_a_module_that_is_loaded_is_not_loaded_again(folder):
    """The other targets are in docs/labs.md, whose commands are run."""
    result = make(folder.parent / "kmod", "insert", "-o", "all")
    assert result.returncode != 0
    assert "3000physicalview is loaded already: make remove unloads it" in result.stderr
    assert module.status().loaded


@pytest.mark.needs("make", "no-modules")
def test_what_is_built_is_not_built_again(folder):
    kmod = folder.parent / "kmod"
    (kmod / "3000physicalview.ko").write_text(f"vermagic={os.uname().release} SMP")
    assert "no headers" not in make(kmod, "insert", "-n").stderr
    assert "insmod" in make(kmod, "insert", "-n").stdout
    assert "modules" not in make(kmod, "insert", "-n").stdout
    os.utime(kmod / "3000physicalview.ko", (0, 0))  # older than the source
    assert "no headers" in make(kmod, "insert").stderr
    (kmod / "3000physicalview.ko").write_text("vermagic=1.2.3 SMP")
    assert "no headers" in make(kmod, "insert").stderr


@pytest.mark.needs("mountns", "make")
@pytest.mark.parametrize("target", ["insert", "remove"])
def test_without_the_package_kmod_make_names_it(folder, target):
    (kmod,) = {
        os.path.realpath(shutil.which(name, path="/usr/sbin:/sbin")) for name in ("insmod", "rmmod")
    }
    result = make(
        folder.parent / "kmod", target, "-o", "3000physicalview.ko", prefix=[*NO_KMOD, kmod]
    )
    assert result.returncode != 0
    assert re.search(r"^(insmod|rmmod) is missing: .*kmod", result.stderr, re.MULTILINE), (
        result.stderr
    )
    assert "as root: physview module " in result.stderr


@pytest.mark.needs("mountns")
def test_without_the_package_kmod_doctor_names_it(physview):
    kmod = os.path.realpath(shutil.which("lsmod", path="/usr/sbin:/sbin"))
    lines = physview("doctor", prefix=[*NO_KMOD, kmod]).stdout
    if module.status().loaded:  # in a VM, where nothing is missing then
        assert "lsmod and insmod" not in lines
        return
    assert "lsmod and insmod are missing" in lines
    assert re.search(r"→ .*\bkmod$", lines, re.MULTILINE), lines


@pytest.mark.needs("mountns")
def test_without_the_package_kmod_setup_says_that_the_vm_lacks_it():
    kmod = os.path.realpath(shutil.which("lsmod", path="/usr/sbin:/sbin"))
    shell = f". {ROOT}/scripts/setup.sh; may_use_apt() {{ return 1; }}; root=/; install_vm_tools"
    command = [*NO_KMOD, kmod, "sh", "-c", shell]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "physview: lsmod, insmod and rmmod are missing here" in result.stderr
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        ("vm --arch arm64 -- true", True),
        ("vm --arch=arm64-64k", True),
        ("vm start course --arch arm64-16k", True),
        ("vm -- true --arch arm64", False),
        ("vm --arch x86-64 -- true", False),
        ("vm", False),
    ],
)
def test_set_up_for_an_arm64_vm_installs_what_emulates_it(words, asks):
    """Shown by what it would install; a stand-in for uname makes it an x86-64 machine."""
    shell = f"""set -eu; . {ROOT}/scripts/setup.sh
        uname() {{ echo x86_64; }}; may_use_apt() {{ true; }}; have_kmod() {{ true; }}
        missing_packages() {{ for each; do printf '%s ' "${{each#*:}}"; done; }}
        apt_install() {{ echo "$@"; }}
        root=/; install_vm_tools {words}"""
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    installed = result.stdout.split()
    assert "qemu-system-x86" in installed
    for package in ("qemu-system-arm", "gcc-aarch64-linux-gnu"):
        assert (package in installed) == asks


@pytest.mark.needs("cc")
def test_the_program_on_the_page_of_the_ioctl_compiles_as_printed(tmp_path):
    text = (ROOT / "docs/ioctl.md").read_text()
    (program,) = re.findall(r"^```c\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"^\$? ?(cc .*)$", text, re.MULTILINE)
    name = re.search(r"(\w+\.c)$", command)[1]
    assert f"`{name}`" in text
    (tmp_path / name).write_text(program)
    (tmp_path / "csrc").symlink_to(ROOT / "csrc")
    result = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
