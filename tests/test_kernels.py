# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels in the cache, and modules that are built for them.

Most tests use their own repository, with packages of a few bytes and real signatures.
"""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from failures import one_line
from kernel_series import by_kernel
from paths import ROOT
from repository import Repository, configure_apt
from users import AS_NOBODY

from physview import kernels
from physview.errors import PhysviewError, Unsupported, UsageError
from physview.kernels import cache, headers, mirrors

RELEASE = "6.1.0-56-amd64"

HELLO = {
    "Kbuild": "obj-m := hello.o\nhello-y := main.o twice.o\n",
    "twice.h": "int twice(int number);\n",
    "twice.c": '#include "twice.h"\n\nint twice(int number)\n{\n\treturn 2 * number;\n}\n',
    "main.c": """\
#include <linux/module.h>
#include "twice.h"

static int __init hello_init(void)
{
	return twice(0);
}
module_init(hello_init);

static void __exit hello_exit(void)
{
}
module_exit(hello_exit);

MODULE_DESCRIPTION("A module for physview's tests");
MODULE_LICENSE("GPL");
""",
}

# What the repository has, beside the packages with content. The highest number is not the last in
# the alphabet.
NAMES = """\
linux-image-6.1-amd64
linux-image-6.1.0-9-amd64
linux-image-6.1.0-56-amd64-unsigned
linux-image-6.1.0-57-cloud-amd64
linux-image-6.1.0-57-rt-amd64
linux-image-6.1.0-57-arm64
linux-image-6.12.117+deb12-amd64
gcc-12
linux-compiler-gcc-12-x86
linux-base
"""
HEADERS = f"usr/src/linux-headers-{RELEASE}"
COMMON = "usr/src/linux-headers-6.1.0-56-common"
PACKAGES = {
    f"linux-image-{RELEASE}": (
        {f"boot/vmlinuz-{RELEASE}": "image\n", f"lib/modules/{RELEASE}/modules.order": ""},
        "linux-base",
    ),
    f"linux-headers-{RELEASE}": (
        {f"{HEADERS}/Makefile": f"include /{COMMON}/Makefile\n"},
        "gcc-12, linux-headers-6.1.0-56-common (= 1) | linux-x, linux-kbuild-6.1,"
        " linux-compiler-gcc-12-x86, linux-base (>= 0)",
    ),
    "linux-headers-6.1.0-56-common": ({f"{COMMON}/Makefile": "all:\n"}, ""),
    "linux-kbuild-6.1": ({"usr/lib/linux-kbuild-6.1/scripts/script": "#!/bin/sh\n"}, ""),
}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache for the test."""
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def world(tmp_path, monkeypatch, empty_cache, signer):
    """A Debian repository of the test, which is the only source of this machine's apt."""
    world = tmp_path / "world"
    repository = Repository(world / "debian")
    for name in NAMES.split():
        repository.add(name, {f"usr/share/{name}": ""})
    for name, (files, depends) in PACKAGES.items():
        repository.add(name, files, depends)
    repository.publish(signer)
    Repository(world / "debian", suite="bookworm-security").publish(signer)
    signer.export(world / "debian-archive-keyring.gpg")
    monkeypatch.setattr(mirrors, "_KEYRINGS_DIR", world)
    suites = ("bookworm", "bookworm-security")
    config = configure_apt(world, [f"deb {repository.site} {suite} main" for suite in suites])
    monkeypatch.setenv("APT_CONFIG", str(config))
    return repository


@pytest.fixture
def real_kernel():
    """A real Debian kernel in the shared cache. The first run downloads it."""
    return kernels.find_kernel("6.1")


def write_hello(folder, **changes):
    folder.mkdir(exist_ok=True)
    for name, text in (HELLO | changes).items():
        (folder / name).write_text(text)
    return folder


def unpacked(folder, release):
    """A folder with the files of a kernel, as after unpacking its packages."""
    (folder / release / "boot").mkdir(parents=True)
    (folder / release / "boot" / f"vmlinuz-{release}").touch()
    return folder / release


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_the_environment_chooses_the_folder_of_the_cache(monkeypatch):
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("PHYSVIEW_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert kernels.cache_dir() == Path("/home/ada/.cache/physview")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernels.cache_dir() == Path("/home/ada/.cache/physview")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/ada")
    assert kernels.cache_dir() == Path("/var/ada/physview")
    monkeypatch.setenv("PHYSVIEW_CACHE", "/else")
    assert kernels.cache_dir() == Path("/else")


@pytest.mark.needs("root")
def test_under_sudo_the_cache_is_roots(monkeypatch):
    monkeypatch.delenv("PHYSVIEW_CACHE", raising=False)
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/ada/.cache")
    assert kernels.cache_dir() == Path(os.path.expanduser("~root")) / ".cache/physview"


@pytest.mark.needs("x86_64")  # whose names these are
def test_a_cached_kernel_needs_no_network(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for release in ("6.1.0-9-amd64", RELEASE, "6.1.0-57-arm64", "6.12.117+deb12-amd64"):
        unpacked(empty_cache / "kernels", release)
    said = []
    kernel = kernels.find_kernel("6.1", said.append)
    assert kernel.release == RELEASE
    assert kernel.image.exists()
    assert kernels.find_kernel("6.1.0-9").release == "6.1.0-9-amd64"
    assert kernels.find_kernel("6.1", architecture="arm64").release == "6.1.0-57-arm64"
    assert not said


def test_a_kernel_of_arm64_with_larger_pages_has_a_name_of_its_own(empty_cache):
    larger = "6.12.118+deb13-arm64-16k"
    for release in ("6.12.118+deb13-amd64", "6.12.118+deb13-arm64", larger):
        unpacked(empty_cache / "kernels", release)

    def found(wanted, architecture):
        return kernels.find_kernel(wanted, architecture=architecture).release

    assert found("6.12", "amd64") == "6.12.118+deb13-amd64"
    assert found("6.12", "arm64") == "6.12.118+deb13-arm64"
    assert {found("6.12", "arm64-16k"), found("6.12-16k", "arm64"), found(larger, "arm64")} == {
        larger
    }


def test_a_kernel_that_debian_does_not_have_is_built_here(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # nothing is fetched
    for wanted, architecture in (("6.12", "arm64-64k"), ("6.12-64k", "arm64")):
        with pytest.raises(Unsupported, match=r"no kernel 6\.12 for arm64-64k: .* 64 KiB") as error:
            kernels.find_kernel(wanted, architecture=architecture)
        assert str(error.value).endswith("./scripts/build-kernel arm64-64k")
    assert (ROOT / "scripts/build-kernel").exists()
    unpacked(empty_cache / "kernels", "6.12.117-arm64-64k")
    unpacked(empty_cache / "kernels", "6.12.118+deb13-arm64")
    for wanted, architecture in (("6.12", "arm64-64k"), ("6.12-64k", "arm64")):
        found = kernels.find_kernel(wanted, architecture=architecture)
        assert found.release == "6.12.117-arm64-64k"


def test_an_image_beside_the_modules_is_found(tmp_path):
    modules = tmp_path / "7.2.13+deb14-amd64/lib/modules/7.2.13+deb14-amd64"
    modules.mkdir(parents=True)
    (modules / "vmlinuz").touch()
    kernel = cache.unpacked_kernel(tmp_path / "7.2.13+deb14-amd64")
    assert (kernel.image, kernel.modules) == (modules / "vmlinuz", modules)


@pytest.mark.parametrize("wanted", ["4.19", "6.11", "6", "", "../6.1"])
def test_an_unknown_version(tmp_path, empty_cache, monkeypatch, wanted):
    monkeypatch.setenv("APT_CONFIG", str(configure_apt(tmp_path, [])))
    with pytest.raises(UsageError, match=r"choose one of 5\.10, 6\.1, 6\.12, 7\.2, 7\.3"):
        kernels.find_kernel(wanted)


@pytest.mark.needs("apt")
class TestFetching:
    def test_the_newest_kernel_is_fetched_once_with_its_parts(self, world, empty_cache):
        said = []
        kernel = kernels.find_kernel("6.1", said.append)
        assert kernel.release == RELEASE
        assert said == [f"fetching Debian's kernel {RELEASE} into {empty_cache}/kernels"]
        assert kernel.image.read_text() == "image\n"
        assert kernel.headers.joinpath("Makefile").read_text().startswith("physview_src := ")
        assert (kernel.modules / "build").resolve() == kernel.headers.resolve()
        assert left_in(empty_cache / "kernels") == [RELEASE]
        root = empty_cache / "kernels" / RELEASE
        for path in (COMMON, "usr/lib/linux-kbuild-6.1"):
            assert (root / path).is_dir()
        # No compiler, and nothing that is for installing.
        assert not (root / "usr/share").exists()
        shutil.rmtree(world.folder)
        assert kernels.find_kernel("6.1") == kernel

    def test_two_processes_at_the_same_time_fetch_once(self, world, empty_cache):
        code = (
            "import sys; from pathlib import Path; from physview import kernels;"
            "from physview.kernels import mirrors; mirrors._KEYRINGS_DIR = Path(sys.argv[1]);"
            "print(kernels.find_kernel('6.1', print).release)"
        )
        command = [sys.executable, "-c", code, world.folder.parent]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate()[0].splitlines() for process in both]
        assert [lines[-1] for lines in said] == [RELEASE] * 2
        assert sorted(map(len, said)) == [1, 2]

    @pytest.mark.parametrize("broken", [f"linux-image-{RELEASE}_1", "linux-kbuild-6.1_1"])
    def test_a_failed_fetch_leaves_nothing_behind(self, world, empty_cache, signer, broken):
        leftover = empty_cache / "kernels/.6.1-amd64.new/apt/debs"
        leftover.mkdir(parents=True)
        deb = world.folder / f"pool/{broken}_amd64.deb"
        whole = deb.read_bytes()
        # Not what the index says, and then what the index says but no package.
        for text, why in (("not signed", "cannot fetch"), ("no package", "cannot unpack")):
            deb.write_text(text)
            if why == "cannot unpack":
                world.publish(signer)
            with pytest.raises(PhysviewError, match=why) as caught:
                kernels.find_kernel("6.1")
            assert "\n" not in str(caught.value)
            assert left_in(empty_cache / "kernels") == []
        deb.write_bytes(whole)
        world.publish(signer)
        assert kernels.find_kernel("6.1").image.exists()

    def test_without_debians_keys_nothing_is_fetched(self, world):
        (world.folder.parent / "debian-archive-keyring.gpg").unlink()
        with pytest.raises(Unsupported, match="apt-get install debian-archive-keyring"):
            kernels.find_kernel("6.1")

    def test_a_mirror_without_the_version_says_so(self, world):
        with pytest.raises(Unsupported, match=r"mirror has no kernel 6\.1\.0-99"):
            kernels.find_kernel("6.1.0-99")

    @pytest.mark.parametrize("line", [[], ["deb http://mirror.invalid/ubuntu jammy main"]])
    def test_an_apt_without_debian_says_what_to_do(self, world, monkeypatch, line):
        configure_apt(world.folder.parent, line)
        monkeypatch.setattr("physview.runtime.packages._read_os_release", str)
        with pytest.raises(Unsupported, match="no Debian mirror; add one"):
            kernels.find_kernel("6.1")


def test_a_machine_without_apt_says_what_to_do(empty_cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unsupported, match="has no apt-get; use Debian") as caught:
        kernels.find_kernel("6.1")
    assert not empty_cache.exists()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.needs("nobody")
def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    code = (
        "from physview import kernels, errors\n"
        "try: kernels.find_kernel('6.1')\n"
        "except errors.AccessDenied as error: print(error)"
    )
    command = [*AS_NOBODY, sys.executable, "-c", code]
    environment = os.environ | {"PHYSVIEW_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "set PHYSVIEW_CACHE to a folder of your own" in result.stdout, result.stderr


@pytest.mark.parametrize("lib", ["lib", "usr/lib"])
def test_unpacked_headers_work_in_any_folder(tmp_path, lib):
    root = tmp_path / "before"
    modules = root / lib / "modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "build").symlink_to(f"/usr/src/linux-headers-{RELEASE}")
    own = root / f"usr/src/linux-headers-{RELEASE}"
    common = root / "usr/src/linux-headers-6.1.0-56-common"
    own.mkdir(parents=True)
    common.mkdir()
    (own / "Makefile").write_text(
        f"KBUILD_OUTPUT=/usr/src/{own.name}\ninclude /usr/src/{common.name}/Makefile\n"
    )
    (common / "Makefile").write_text("all:\n\t@echo $(realpath $(KBUILD_OUTPUT))\n")
    headers.relocate(root, RELEASE)
    after = root.rename(tmp_path / "after")
    build = after / "lib/modules" / RELEASE / "build"
    assert build.resolve() == after / own.relative_to(root)
    assert (build.parent / "source").resolve() == after / common.relative_to(root)
    if shutil.which("make"):
        made = subprocess.check_output(["make", "-sC", build, "--no-print-directory"], text=True)
        assert made == f"{build.resolve()}\n"


@pytest.mark.needs("cc")
def test_tools_without_their_libraries_are_found_and_run_with_fetched_ones(tmp_path):
    tools = tmp_path / "usr/lib/linux-kbuild-1/scripts"
    libraries = tmp_path / "host/lib"
    tools.mkdir(parents=True)
    libraries.mkdir(parents=True)
    (tmp_path / "answer.c").write_text("int answer(void) { return 42; }\n")
    (tmp_path / "main.c").write_text(
        "int answer(void);\n"
        "int main(int argc, char **argv) { return argc == 3 ? answer() + argv[2][0] : 1; }\n"
    )
    (tmp_path / "fine.c").write_text("int main(void) { return 0; }\n")
    library = libraries / "libanswer.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libanswer.so.1", "-o", library,
                    tmp_path / "answer.c"], check=True)  # fmt: skip
    subprocess.run(["cc", "-o", tools / "tool", tmp_path / "main.c", library], check=True)
    subprocess.run(["cc", "-o", tools / "fine", tmp_path / "fine.c"], check=True)
    shutil.copy(tools / "tool", tools / "sign-file")
    (tools / "script").write_text("#!/bin/sh\n")
    (tools / "script").chmod(0o755)
    assert headers.tools_that_fail(tmp_path) == [tools / "tool"]

    listed = subprocess.check_output(["ldd", tools / "fine"], text=True).split()
    for path in filter(os.path.isabs, listed):
        shutil.copy(path, libraries)
    headers.wrap_tools([tools / "tool"], tmp_path / "host")
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name} moved"))
    tool = moved / tools.relative_to(tmp_path) / "tool"
    assert subprocess.run([tool, "a b", "\x01"], check=False).returncode == 43


def test_the_running_kernel_needs_its_files(tmp_path):
    release = os.uname().release
    assert kernels.running_kernel(tmp_path) is None
    image = tmp_path / f"boot/vmlinuz-{release}"
    image.parent.mkdir()
    image.touch()
    assert kernels.running_kernel(tmp_path) is None
    modules = tmp_path / f"lib/modules/{release}"
    modules.mkdir(parents=True)
    image.unlink()
    assert kernels.running_kernel(tmp_path) is None
    assert kernels.running_kernel(tmp_path, to_boot=False) == (release, image, modules, None)
    image.touch()
    assert kernels.running_kernel(tmp_path) == (release, image, modules, None)
    (modules / "build").mkdir()
    assert kernels.running_kernel(tmp_path).headers == modules / "build"


def test_a_kernel_without_headers_has_a_remedy(tmp_path, empty_cache):
    kernel = kernels.Kernel("bzImage", tmp_path, tmp_path, None)
    with pytest.raises(Unsupported, match=r"no headers; .* or --module none$"):
        kernels.build_module(kernel, write_hello(tmp_path / "hello"))


@pytest.mark.parametrize(
    ("folder", "path", "why"),
    [
        ("headers", "/nowhere", "no make; .*install make gcc"),
        pytest.param("my headers", None, "without spaces", marks=pytest.mark.needs("make")),
    ],
)
@pytest.mark.needs("cc")
def test_a_machine_that_cannot_build_has_a_remedy(
    tmp_path, empty_cache, monkeypatch, folder, path, why
):
    (tmp_path / folder).mkdir()
    if path:
        monkeypatch.setenv("PATH", path)
    kernel = kernels.Kernel("6.1.0", tmp_path, tmp_path, tmp_path / folder)
    with pytest.raises(Unsupported, match=why):
        kernels.build_module(kernel, write_hello(tmp_path / "hello"))


def test_a_foreign_architecture_needs_a_cross_compiler(tmp_path, empty_cache, monkeypatch):
    other = {"x86_64": "arm64", "aarch64": "x86"}[os.uname().machine]
    kernel = kernels.Kernel("6.1.0", tmp_path, tmp_path, tmp_path / "headers")
    kernel.headers.mkdir()
    (kernel.headers / ".config").write_text(f"#\n# Linux/{other} 6.1.192 Kernel Configuration\n#\n")
    make = tmp_path / "bin/make"
    make.parent.mkdir()
    make.touch(0o755)
    monkeypatch.setenv("PATH", str(make.parent))
    with pytest.raises(Unsupported, match=r"no (\w+-linux-gnu)-gcc; .* make gcc-\1$"):
        kernels.build_module(kernel, write_hello(tmp_path / "hello"))


@pytest.mark.needs("kernels", "cc")
def test_a_module_is_built_once_beside_its_source(real_kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("KCFLAGS", "-DNOT -Wfor -Wus")
    source = write_hello(tmp_path / "hello")
    (source / "stale.o").write_text("what a build of one's own left there")
    before = left_in(source)
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    module = kernels.build_module(real_kernel, source)
    assert module.name == "hello.ko"
    assert f"vermagic={real_kernel.release} ".encode() in module.read_bytes()
    assert left_in(module.parent) == ["build.log", "hello.ko"]
    assert "warning" not in (module.parent / "build.log").read_text()
    assert left_in(source) == before
    assert left_in(module.parent.parent) == [module.parent.name]

    stamp = module.stat().st_mtime_ns
    assert kernels.build_module(real_kernel, source) == module
    assert module.stat().st_mtime_ns == stamp
    write_hello(source, **{"twice.h": "int twice(int n);\n"})
    assert kernels.build_module(real_kernel, source) != module


@pytest.mark.needs("kernels", "cc")
def test_a_failed_build_names_its_log(real_kernel, tmp_path, monkeypatch):
    source = write_hello(tmp_path / "hello", **{"twice.c": "int twice(void) { return x; }\n"})
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    with pytest.raises(kernels.BuildFailed, match=r"twice.c:1:.* error: .*x.*; the whole log") as e:
        kernels.build_module(real_kernel, source)
    assert "undeclared" in Path(e.value.path).read_text()
    assert "\n" not in str(e.value)
    assert pickle.loads(pickle.dumps(e.value)).path == e.value.path


@pytest.mark.needs("cc")
@pytest.mark.parametrize("version", by_kernel(os.environ.get("PHYSVIEW_KERNELS", "6.1").split(",")))
def test_physviews_module_builds_without_a_warning(version):
    module = kernels.build_module(kernels.find_kernel(version), ROOT / "csrc/kmod")
    assert module.name == "3000physicalview.ko"
    assert "warning" not in (module.parent / "build.log").read_text().lower()


@pytest.mark.needs("qemu")
def test_a_cache_in_which_no_module_can_be_built_is_refused_before_a_kernel_is_fetched(
    physview, tmp_path
):
    cache = tmp_path / "with blanks"
    environment = os.environ | {"PHYSVIEW_CACHE": str(cache)}
    line = one_line(physview("vm", "--kernel", "6.1", "--", "true", env=environment), 1)
    assert line == (
        f"physview: cannot build a module for Linux 6.1: make cannot work in {cache}/kernels;"
        " set PHYSVIEW_CACHE to a folder without spaces or colons\n"
    )
    assert not cache.exists()
