# SPDX-License-Identifier: GPL-2.0-or-later
"""`make` in csrc/kmod builds the module without physview's command line."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from paths import ROOT

from physview import kernels
from physview.kernels import build

SOURCE = ROOT / "csrc/kmod"


@pytest.fixture
def has_blanks():
    """Whether the folder's name has blanks and a colon, which the kernel's build system refuses."""
    return False


@pytest.fixture
def make(tmp_path, has_blanks):
    """Runs make in a copy of the module's source, with its own PATH and the kernel's headers."""
    copy = tmp_path / "a folder: with blanks" / "kmod" if has_blanks else tmp_path / "kmod"
    shutil.copytree(SOURCE, copy)
    for built in copy.glob("*.ko"):
        built.unlink()

    def run(*args, path=os.environ["PATH"]):
        environment = os.environ | {"PATH": path}
        result = subprocess.run(
            ["make", *args], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        return result, copy

    return run


def without(names, folder):
    """A folder for PATH with all programs of /usr/bin, except those whose names match."""
    folder.mkdir()
    for name in os.listdir("/usr/bin"):
        if not re.search(names, name):
            (folder / name).symlink_to(f"/usr/bin/{name}")
    return str(folder)


def test_make_and_physview_distrust_the_same_of_another_compiler():
    text = (SOURCE / "Makefile").read_text()
    listed = re.search(r"^OWN_COMPILER := \\\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert tuple(re.findall(r"CONFIG_\w+", listed[1])) == build._COMPILER_OPTIONS
    (no_btf,) = re.findall(r"^no_btf := (.*)$", text, re.MULTILINE)
    assert tuple(shlex.split(no_btf.replace("$$", "$"))) == build._NO_BTF


@pytest.mark.needs("kernels", "cc")
class TestCompilers:
    @pytest.mark.parametrize("version", os.environ.get("PHYSVIEW_KERNELS", "6.1").split(","))
    def test_without_the_kernels_compiler_it_is_gcc(self, make, tmp_path, version):
        kernel = kernels.find_kernel(version)
        headers = kernel.headers
        own = re.search(r'CC_VERSION_TEXT="(\S+)', (headers / ".config").read_text())[1]
        path = without(re.escape(own), tmp_path / "bin")
        result, copy = make(f"KDIR={headers}", path=path)
        assert result.returncode == 0, result.stderr
        assert f"{own}, which built this kernel, is not installed: building with gcc" in (
            result.stderr
        )
        assert b"vermagic=" + kernel.release.encode() in (copy / "3000physicalview.ko").read_bytes()
        make("clean", f"KDIR={headers}", path=path)
        assert sorted(os.listdir(copy)) == sorted(
            name
            for name in os.listdir(SOURCE)
            if not re.search(r"\.(ko|o|mod)|^\.|Module|order", name)
        )

    @pytest.mark.parametrize("has_blanks", [True])
    def test_a_folder_may_have_blanks_in_its_name(self, make, has_blanks):
        kernel = kernels.find_kernel("6.1")
        before = set(os.listdir("/tmp"))
        result, copy = make(f"KDIR={kernel.headers}")
        assert result.returncode == 0, result.stderr
        assert b"vermagic=" + kernel.release.encode() in (copy / "3000physicalview.ko").read_bytes()
        left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("physview.")}
        assert not left
        make("clean")
        assert not (copy / "3000physicalview.ko").exists()

    def test_a_compiler_that_was_asked_for_is_taken(self, make):
        headers = kernels.find_kernel("6.1").headers
        result, _ = make(f"KDIR={headers}", "CC=/nowhere/cc")
        assert result.returncode != 0
        assert "/nowhere/cc" in result.stderr


@pytest.mark.needs("no-modules", "cc", "make")
def test_where_no_module_can_be_loaded_no_headers_are_named(make):
    result, _ = make()
    assert result.returncode != 0
    assert "nor can this kernel load modules: physview vm" in result.stderr
    assert "linux-headers" not in result.stderr
