# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching the running kernel's image from a repository, if only root may read the one in /boot."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT
from repository import Repository, configure_apt
from users import AS_NOBODY

from physview import kernels

RELEASE = os.uname().release

ASK = """\
import sys
from functools import partial
from pathlib import Path
from physview import kernels, vm
from physview.commands import vm as command
from physview.errors import PhysviewError
from physview.kernels import mirrors
mirrors._KEYRINGS_DIR = Path(sys.argv[1]).parent
kernels.running_kernel = partial(kernels.running_kernel, Path(sys.argv[1]))
kernels.fetch_own_image = partial(kernels.fetch_own_image, root=Path(sys.argv[1]))
vm.why_unbootable = lambda kernel: ""
try:
    kernel = command._find_kernel(None)
    print(kernel.release, kernel.image, kernel.image.read_text().strip())
except PhysviewError as error:
    print(error)
"""


@pytest.fixture
def machine(signer):
    """A fake machine whose kernel image only root can read; it runs physview there as nobody."""
    # Not in pytest's own folder, which is private.
    world = Path(tempfile.mkdtemp(prefix="physview-test-"))
    world.chmod(0o1777)
    image = world / f"root/boot/vmlinuz-{RELEASE}"
    image.parent.mkdir(parents=True)
    image.write_text("root's\n")
    image.chmod(0o600)
    modules = world / "root/lib/modules" / RELEASE
    (modules / "build").mkdir(parents=True)
    repository = Repository(world / "debian")
    repository.add("linux-libc-dev")
    repository.publish(signer)
    signer.export(world / "debian-archive-keyring.gpg")
    config = configure_apt(world, [f"deb {repository.site} bookworm main"])

    def publish(image=f"boot/vmlinuz-{RELEASE}"):
        repository.add(f"linux-image-{RELEASE}", {image: "the package's\n"})
        repository.publish(signer)

    def ask(**environment):
        environment = {
            "PATH": "/usr/bin:/bin",
            "APT_CONFIG": str(config),
            "PHYSVIEW_CACHE": str(world / "cache"),
            "PYTHONPATH": str(ROOT),
        } | environment
        setpriv = str(shutil.which(AS_NOBODY[0]))
        command = [setpriv, *AS_NOBODY[1:], sys.executable, "-c", ASK, str(world / "root")]
        return subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, check=False
        )

    yield SimpleNamespace(
        ask=ask, publish=publish, image=image, modules=modules, cache=world / "cache/images"
    )
    shutil.rmtree(world)


@pytest.mark.needs("nobody", "apt")
class TestOwnImage:
    def test_the_image_is_fetched_once_with_a_message(self, machine):
        machine.publish()
        own = machine.cache / machine.image.name
        for said in (f"only root may read {machine.image}: fetching linux-image-{RELEASE}", ""):
            result = machine.ask()
            assert result.stdout == f"{RELEASE} {own} the package's\n", result
            assert said in result.stderr
            assert result.stderr.count("\n") == bool(said)
        assert [path.name for path in machine.cache.iterdir() if path.suffix != ".lock"] == [
            machine.image.name
        ]

    def test_a_readable_image_is_used(self, machine):
        machine.image.chmod(0o644)
        result = machine.ask()
        assert result.stdout == f"{RELEASE} {machine.image} root's\n", result
        assert not result.stderr

    @pytest.mark.parametrize(
        ("published", "path", "why"),
        [
            ("", "", "this machine's Debian mirror has no such package"),
            ("boot/vmlinuz-1.0", "", f"linux-image-{RELEASE} has no vmlinuz-{RELEASE}"),
            ("", "/nowhere", "this machine has no apt-get"),
        ],
    )
    def test_an_image_that_cannot_be_fetched_has_a_reason_and_two_remedies(
        self, machine, published, path, why
    ):
        if published:
            machine.publish(published)
        result = machine.ask(**({"PATH": path} if path else {}))
        remedy = f"chmod a+r {machine.image}; trying Debian's 6.1"
        line = f"physview: not the running kernel {RELEASE}: cannot fetch linux-image-{RELEASE}: "
        assert line in result.stderr, result
        assert f"{why}; " in result.stderr
        assert f"{remedy}\n" in result.stderr
        assert result.stdout.startswith("cannot fetch Debian's kernels: "), result
        assert result.stdout.count("\n") == 1
        assert [path.suffix for path in machine.cache.iterdir()] == [".lock"]

    def test_without_modules_no_image_is_fetched(self, machine):
        shutil.rmtree(machine.modules)
        result = machine.ask()
        assert "its image and modules cannot be read; trying Debian's 6.1" in result.stderr
        assert not machine.cache.exists()


def test_without_an_installed_image_none_is_fetched(tmp_path):
    (tmp_path / "lib/modules" / RELEASE).mkdir(parents=True)
    assert kernels.fetch_own_image(root=tmp_path) is None
