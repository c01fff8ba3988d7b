# SPDX-License-Identifier: GPL-2.0-or-later
"""The private apt: which archives it uses, which packages it accepts, and Ubuntu's kernels."""

import os
import subprocess
import sys

import pytest
from paths import ROOT
from repository import Repository, configure_apt, signing, update_apt

from physview import kernels
from physview.errors import Unsupported, UsageError
from physview.kernels import fetch, mirrors
from physview.kernels.apt import PrivateApt
from physview.kernels.mirrors import DEBIAN, UBUNTU, Suite

# What nobody should have in a machine's configuration, and some have.
CARELESS = """\
Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
Acquire::AllowDowngradeToInsecureRepositories "true";
APT::Get::AllowUnauthenticated "true";
APT::Get::Force-Yes "true";
APT::Get::Assume-Yes "true";
"""
NOBLE = "ID=ubuntu\nUBUNTU_CODENAME=noble\n"
RELEASES = ("6.8.0-9-generic", "6.8.0-31-generic", "6.11.0-17-generic", "7.0.0-44-generic")

pytestmark = pytest.mark.needs("apt")


@pytest.fixture
def ubuntu(tmp_path, monkeypatch, signer):
    """An Ubuntu repository of the test, which is the only source of this machine's apt."""
    repository = Repository(tmp_path / "ubuntu", "Ubuntu", "noble-updates")
    for release in RELEASES:
        short = release.removesuffix("-generic")
        own = f"usr/src/linux-headers-{release}"
        # A kernel that comes later to a release has the headers that are for all by such a name.
        series = ".".join(short.split(".")[:2])
        common = f"linux-{'' if series == '6.8' else f'hwe-{series}-'}headers-{short}"
        image, modules = f"linux-image-{release}", f"linux-modules-{release}"
        repository.add(image, {f"boot/vmlinuz-{release}": "image\n"}, f"kmod, {modules}")
        repository.add(modules, {f"lib/modules/{release}/modules.order": ""})
        needs = f"{common}, libc6, libelf1t64"
        repository.add(f"linux-headers-{release}", {f"{own}/Makefile": "all:\n"}, needs)
        repository.add(common, {f"usr/src/{common}/Kbuild": ""}, "coreutils")
    for name in ("linux-image-generic", "linux-image-unsigned-6.8.0-99-generic",
                 "linux-image-6.8.0-1030-azure", "linux-image-6.8.0-99-lowlatency"):  # fmt: skip
        repository.add(name)
    repository.publish(signer)
    signer.export(tmp_path / "ubuntu-archive-keyring.gpg")
    monkeypatch.setattr(mirrors, "_KEYRINGS_DIR", tmp_path)
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
    line = f"deb [signed-by={tmp_path}/ubuntu-archive-keyring.gpg] {repository.site}"
    monkeypatch.setenv("APT_CONFIG", str(configure_apt(tmp_path, [f"{line} noble-updates main"])))
    update_apt()
    return repository


class TestUbuntu:
    def test_the_newest_kernel_of_a_version_is_fetched_with_its_parts(self, ubuntu, tmp_path):
        said = []
        kernel = kernels.find_kernel("6.8", said.append)
        assert kernel.release == "6.8.0-31-generic"
        assert said == [f"fetching Ubuntu's kernel {kernel.release} into {tmp_path}/cache/kernels"]
        assert kernel.image.read_text() == "image\n"
        assert (kernel.modules / "modules.order").exists()
        assert (kernel.modules / "build").resolve() == kernel.headers.resolve()
        assert (kernel.headers.parent / "linux-headers-6.8.0-31/Kbuild").exists()
        assert kernels.find_kernel("6.8", said.append) == kernel
        assert len(said) == 1
        assert kernels.find_kernel("6.8.0-9").release == "6.8.0-9-generic"
        sources = kernels.find_kernel("7.0").headers.parent
        assert (sources / "linux-hwe-7.0-headers-7.0.0-44/Kbuild").exists()

    def test_a_missing_version_names_the_available_ones(self, ubuntu):
        for wanted in ("6.1", "6.5", "6.8.0-77"):
            with pytest.raises(Unsupported) as caught:
                kernels.find_kernel(wanted)
            assert str(caught.value) == (
                f"no kernel {wanted} for amd64: this machine's Ubuntu mirror has 6.8, 6.11, 7.0;"
                " choose one of these; for Debian's 5.10, 6.1, 6.12, 7.2, 7.3 apt needs a Debian"
                " mirror and the package debian-archive-keyring"
            )
        with pytest.raises(UsageError, match=r"no kernel 6; name a version, such as 6\.8"):
            kernels.find_kernel("6")

    def test_the_fallback_is_the_first_kernel_of_the_release(self, ubuntu):
        assert kernels.fallback_version() == ("Ubuntu", "6.8")

    def test_without_ubuntus_keys_nothing_is_fetched(self, ubuntu, tmp_path):
        (tmp_path / "ubuntu-archive-keyring.gpg").unlink()
        with pytest.raises(Unsupported, match="apt-get install ubuntu-keyring"):
            kernels.find_kernel("6.8")

    def test_without_fetched_lists_the_names_of_suites_decide(self, tmp_path, monkeypatch):
        lines = [f"deb http://mirror.invalid/u {name} main"
                 for name in ("noble", "noble-security", "noble-proposed", "tools")]  # fmt: skip
        monkeypatch.setenv("APT_CONFIG", str(configure_apt(tmp_path, lines)))
        monkeypatch.setattr("physview.runtime.packages._read_os_release", lambda: NOBLE)
        (archive,) = mirrors.archives().values()
        assert archive.distribution is UBUNTU
        assert [suite.name for suite in archive.suites] == ["noble", "noble-security"]


class TestMirrors:
    def test_with_both_mirrors_each_version_comes_from_its_own_archive(
        self, ubuntu, tmp_path, signer
    ):
        debian = Repository(tmp_path / "debian", "Debian", "bookworm")
        debian.publish(signer)
        sites = (f"{ubuntu.site} noble-updates", f"{debian.site} bookworm")
        configure_apt(tmp_path, [f"deb [trusted=yes] {site} main" for site in sites])
        update_apt()
        assert [fetch._archive(wanted).distribution for wanted in ("6.1", "6.8")] == [
            DEBIAN, UBUNTU
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("suite", "whose"),
        [
            (Suite("http://m", "sid", "Debian"), DEBIAN),
            (Suite("http://m", "bookworm-security"), DEBIAN),
            (Suite("http://m", "noble", "Ubuntu"), UBUNTU),
            (Suite("http://m", "noble"), UBUNTU),
            (Suite("http://m", "noble-backports", "Ubuntu"), None),
            (Suite("http://m", "noble-proposed", "Ubuntu"), None),
            (Suite("http://m", "stable", "Google LLC"), None),
            (Suite("cdrom:[x]", "bookworm"), None),
        ],
    )
    def test_which_distribution_a_suite_belongs_to(self, suite, whose):
        of = [it for it in (DEBIAN, UBUNTU) if mirrors.has_suite(it, suite, NOBLE)]
        assert of == ([whose] if whose else [])

    def test_security_updates_come_from_the_machines_own_mirrors(self):
        suites = [Suite("https://a/debian", "trixie"), Suite("https://b/s", "trixie-security")]
        assert mirrors.sites(suites) == (["https://a/debian"], ["https://b/s"])
        assert mirrors.sites(suites[:1]) == (["https://a/debian"], ["https://a/debian-security"])


class TestSignatures:
    """physview checks signatures even where the machine's own apt does not."""

    @pytest.fixture
    def careless(self, ubuntu, tmp_path):
        line = f"deb [trusted=yes allow-insecure=yes] {ubuntu.site} noble-updates main"
        configure_apt(tmp_path, [line], CARELESS)
        return ubuntu

    def fetched_by_the_machines_own(self, folder):
        update_apt()
        command = ["apt-get", "-q", "download", "linux-image-6.8.0-31-generic"]
        return subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 0

    def test_an_unsigned_archive_is_refused(self, careless, tmp_path):
        careless.publish(None)
        assert self.fetched_by_the_machines_own(tmp_path)
        with pytest.raises(Unsupported, match="is not signed"):
            kernels.find_kernel("6.8")

    def test_an_archive_signed_with_another_key_is_refused(self, careless, tmp_path):
        with signing() as another:
            careless.publish(another)
        assert self.fetched_by_the_machines_own(tmp_path)
        with pytest.raises(Unsupported, match=r"is not signed|NO_PUBKEY"):
            kernels.find_kernel("6.8")

    def test_a_package_that_is_not_in_the_index_is_refused(self, careless):
        (careless.folder / "pool/linux-image-6.8.0-31-generic_1_amd64.deb").write_text("planted")
        with pytest.raises(Unsupported, match="cannot fetch Ubuntu's kernels"):
            kernels.find_kernel("6.8")

    def test_a_signed_package_is_still_accepted(self, careless):
        assert kernels.find_kernel("6.8").image.exists()

    def test_the_running_kernels_image_is_checked_in_the_same_way(self, careless, tmp_path):
        release = os.uname().release
        for below in (f"root/lib/modules/{release}", "root/boot"):
            (tmp_path / below).mkdir(parents=True)
        careless.add(f"linux-image-{release}", {f"boot/vmlinuz-{release}": "the package's\n"})
        careless.publish(None)
        update_apt()
        # An image that is there, and that not even root can open.
        (tmp_path / f"root/boot/vmlinuz-{release}").mkdir()
        code = (
            "import os, sys; from pathlib import Path; from physview import kernels, errors\n"
            "from physview.kernels import mirrors, own_image\n"
            "mirrors._KEYRINGS_DIR = Path(sys.argv[1])\n"
            "own_image.running_kernel = lambda root: None\n"
            "root = Path(sys.argv[1], 'root')\n"
            "try: print(kernels.fetch_own_image(root=root).image.read_text())\n"
            "except errors.Unsupported as error: print(error)\n"
        )
        command = [sys.executable, "-c", code, tmp_path]
        assert "is not signed" in subprocess.check_output(command, cwd=ROOT, text=True)


class TestLibraries:
    def test_a_kernels_tools_get_the_libraries_of_the_kernels_suite(
        self, tmp_path, monkeypatch, signer
    ):
        """A Debian 13 kernel on Debian 12: its tools need a library that Debian 12 lacks."""
        kbuild = {"usr/lib/linux-kbuild-6.12/scripts/tool": "\x7fELF no program"}
        release = "6.12.118+deb13-amd64"
        headers = {f"usr/src/linux-headers-{release}/Makefile": "all:\n"}
        security = Repository(tmp_path / "debian", suite="trixie-security")
        security.add(f"linux-image-{release}", {f"boot/vmlinuz-{release}": "",
                                                f"lib/modules/{release}/x": ""})  # fmt: skip
        security.add(f"linux-headers-{release}", headers, "linux-kbuild-6.12")
        security.add("linux-kbuild-6.12", kbuild, "libelf1t64, libc6")
        security.publish(signer)
        for suite, libraries in (("trixie", ("libelf1t64", "libc6")), ("bookworm", ("libelf1",))):
            base = Repository(tmp_path / "debian", suite=suite)
            for name in libraries:
                file = "lib64/ld-linux-x86-64.so.2" if name == "libc6" else "usr/lib/libelf.so.1"
                base.add(name, {file: suite})
            base.publish(signer)
        signer.export(tmp_path / "debian-archive-keyring.gpg")
        monkeypatch.setattr(mirrors, "_KEYRINGS_DIR", tmp_path)
        monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "cache"))
        site = f"deb [trusted=yes] file:{tmp_path}/debian"
        lines = [f"{site} bookworm main", f"{site} bookworm-security main"]
        monkeypatch.setenv("APT_CONFIG", str(configure_apt(tmp_path, lines)))
        root = kernels.find_kernel("6.12").headers.parents[2]
        assert (root / "host/usr/lib/libelf.so.1").read_text() == "trixie"
        wrapper = (root / "usr/lib/linux-kbuild-6.12/scripts/tool").read_text()
        assert "ld-linux-x86-64.so.2" in wrapper

    def test_the_suite_of_a_package_is_the_one_with_its_newest_version(self, ubuntu, tmp_path):
        lines = mirrors.archives()[UBUNTU].source_lines()
        apt = PrivateApt(tmp_path / "apt", lines, "Ubuntu")
        assert apt.suite_of("linux-image-6.8.0-31-generic") == "noble-updates"
        assert apt.suite_of("linux-image-9") == ""
