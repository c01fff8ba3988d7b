# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of the running kernel where /boot's is root's, as on Ubuntu; apt is three lines."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import AS_NOBODY, ROOT

from physview import kernels

RELEASE = os.uname().release

APT_GET = """\
#!/bin/sh
[ -z "$APT_FAILS" ] || { echo "E: $APT_FAILS" >&2; exit 100; }
echo "$*" >>"$WORLD/asked"
case "$*" in *download*) echo >"linux-image.deb" ;; esac
"""
DPKG_DEB = f"""\
#!/bin/sh
mkdir -p "$3/boot"
echo "the package's" >"$3/boot/vmlinuz-${{CONTENT:-{RELEASE}}}"
"""
ASK = """\
import sys
from functools import partial
from pathlib import Path
from physview import kernels, vm
from physview.commands import vm as command
from physview.errors import PhysviewError
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
def machine():
    """A machine that nobody can see, but not whose image, and a way to ask physview there."""
    # Not in pytest's own folder, which is private.
    world = Path(tempfile.mkdtemp(prefix="physview-test-"))
    world.chmod(0o777)
    image = world / f"root/boot/vmlinuz-{RELEASE}"
    image.parent.mkdir(parents=True)
    image.write_text("root's\n")
    image.chmod(0o600)
    modules = world / "root/lib/modules" / RELEASE
    (modules / "build").mkdir(parents=True)
    (world / "bin").mkdir()
    for name, text in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (world / "bin" / name).write_text(text)
        (world / "bin" / name).chmod(0o755)

    def ask(**environment):
        environment = {
            "PATH": f"{world}/bin:/usr/bin:/bin",
            "PHYSVIEW_CACHE": str(world / "cache"),
            "PYTHONPATH": str(ROOT),
            "WORLD": str(world),
            "APT_FAILS": "",
        } | environment
        setpriv = str(shutil.which(AS_NOBODY[0]))
        command = [setpriv, *AS_NOBODY[1:], sys.executable, "-c", ASK, str(world / "root")]
        return subprocess.run(
            command, env=environment, cwd="/", capture_output=True, text=True, check=False
        )

    yield SimpleNamespace(
        ask=ask, world=world, image=image, modules=modules, cache=world / "cache/images"
    )
    shutil.rmtree(world)


@pytest.mark.needs("nobody")
class TestOwnImage:
    def test_it_is_fetched_once_and_said(self, machine):
        own = machine.cache / machine.image.name
        for said in (f"{machine.image} is for root alone: fetching linux-image-{RELEASE}", ""):
            result = machine.ask()
            assert result.stdout == f"{RELEASE} {own} the package's\n", result
            assert said in result.stderr
            assert result.stderr.count("\n") == bool(said)
        assert (machine.world / "asked").read_text() == f"-q download linux-image-{RELEASE}\n"
        assert [path.name for path in machine.cache.iterdir() if path.suffix != ".lock"] == [
            machine.image.name
        ]

    def test_one_that_can_be_read_is_taken(self, machine):
        machine.image.chmod(0o644)
        result = machine.ask()
        assert result.stdout == f"{RELEASE} {machine.image} root's\n", result
        assert not result.stderr

    @pytest.mark.parametrize(
        ("environment", "why"),
        [
            ({"APT_FAILS": "Unable to locate package"}, "Unable to locate package"),
            ({"CONTENT": "1.0"}, f"linux-image.deb has no vmlinuz-{RELEASE}"),
            ({"PATH": "/nowhere"}, "this machine has no apt-get"),
        ],
    )
    def test_where_it_cannot_be_had_the_reason_and_two_remedies_are_said(
        self, machine, environment, why
    ):
        result = machine.ask(**environment)
        remedy = f"sudo chmod a+r {machine.image}; trying Debian's 6.1"
        line = f"not the running kernel {RELEASE}: cannot fetch linux-image-{RELEASE}: {why}; "
        assert f"physview: {line}{remedy}\n" in result.stderr, result
        assert result.stdout.startswith("cannot fetch Debian's kernels: "), result
        assert result.stdout.count("\n") == 1
        assert [path.suffix for path in machine.cache.iterdir()] == [".lock"]

    def test_without_modules_it_would_not_help(self, machine):
        shutil.rmtree(machine.modules)
        result = machine.ask(APT_FAILS="no network")
        assert "its image and modules cannot be read; trying Debian's 6.1" in result.stderr
        assert not (machine.world / "asked").exists()


def test_without_an_image_there_is_none_to_fetch(tmp_path):
    (tmp_path / "lib/modules" / RELEASE).mkdir(parents=True)
    assert kernels.fetch_own_image(root=tmp_path) is None
