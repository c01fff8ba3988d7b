# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures for all tests. conftest.py loads this file as a plugin of pytest."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import command_server
import pytest
import repository
from children import processes, start_stopped
from kmod_calls import insert_module, open_kmod
from memory import libc
from paths import ROOT

from physview.sources import kmod as abi
from physview.system import module


@pytest.fixture(scope="session")
def physview() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the physview command in a new process: a fork, or a new interpreter."""

    def run(
        *args: str,
        prefix: tuple[str, ...] | list[str] = (),
        interpreter: bool = False,
        **options: object,
    ) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 300, "cwd": "/"} | options
        server = None if interpreter else command_server.server()
        if server and server.can_run(prefix, options):
            return server.run(args, prefix=prefix, options=options)
        command = [*prefix, sys.executable, "-m", "physview", *args]
        return subprocess.run(command, check=False, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="module")
def alone_with_the_library() -> None:
    """No other process of the tests maps physview's library."""
    command_server.stop()


@pytest.fixture
def kmod() -> Iterator[object]:
    """The kernel module, which walks this process's page tables."""
    with open_kmod() as kmod:
        yield kmod


def _close_leftovers():
    """Close the device's descriptors that failed tests left open: they block the unloading."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{fd}") == abi.DEVICE:
                os.close(int(fd))


@pytest.fixture
def load_instead():
    """A function that replaces the loaded module. The first one is loaded again after the test."""
    before = module.status()

    def load(path, parameters=""):
        _close_leftovers()
        module.unload()
        insert_module(path, parameters)

    yield load
    _close_leftovers()
    module.unload()
    module.load(Path(os.environ["PHYSVIEW_KMOD"]), insecure=before.insecure)
    assert module.status() == before._replace(users=0)


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts Python processes: see processes(). They end with the test."""
    with processes() as start:
        yield start


@pytest.fixture
def obedient_python(python) -> Callable[[str], subprocess.Popen[str]]:
    """A function that starts a Python process which executes lines of code on command: `tell()`."""
    wait = "for line in sys.stdin:\n    exec(line)\n    print('done', flush=True)"

    def start(setup: str) -> subprocess.Popen[str]:
        child = python(f"import sys\n{setup}", wait=wait)

        def tell(line: str) -> None:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"

        child.tell = tell
        tell("pass")  # the first line touches pages that no later one does: it is at rest only then
        return child

    return start


@pytest.fixture
def obedient(obedient_python: Callable[[str], subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process that executes lines of Python on command. It keeps its memory in `regions`."""
    return obedient_python("import mmap, os\nfrom memory import PAGE, Region\nregions = []")


@pytest.fixture(scope="session")
def tracefs() -> str:
    """The path of tracefs. If needed, it is mounted for this process and its children only."""
    where = "/sys/kernel/tracing"
    if not os.path.exists(f"{where}/instances"):
        clone_newns, ms_rec, ms_slave = 0x20000, 0x4000, 0x80000
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(b"none", b"/", None, ms_rec | ms_slave, None) == 0
        assert libc.mount(b"t", where.encode(), b"tracefs", 0, None) == 0
        command_server.stop()  # it has the old mounts
    return where


@pytest.fixture
def sleeper(python: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Another process of the same user, which waits."""
    return python()


@pytest.fixture
def actor(python, tmp_path):
    """A process with memory of every kind that changes it on command: see Actor."""
    from actors import OBEY, Actor
    from memory import KINDS

    return Actor(python(KINDS, wait=OBEY), tmp_path)


@pytest.fixture(scope="module")
def tab():
    """A browser's tab. All tests of a module share it; each opens its own page."""
    from browser import browse

    with browse() as tab:
        yield tab


@pytest.fixture
def stopped(python: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A stopped process with memory of every kind."""
    return start_stopped(python)


@pytest.fixture(scope="session")
def signer() -> Iterator[repository.Signer]:
    """A key that signs package repositories."""
    with repository.signing() as signer:
        yield signer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that is open to all users, like /tmp. pytest's own folders are private."""
    with tempfile.TemporaryDirectory(prefix="physview-test-") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended, and whose parent has not waited for it yet."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that compiles a C program of tests/support and returns its path."""

    @functools.cache
    def compile_program(name: str) -> str:
        program = tmp_path_factory.mktemp("bin") / name
        source = ROOT / "tests/support" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, source], check=True)
        return str(program)

    return compile_program


@pytest.fixture(scope="session")
def tests_on_path() -> dict[str, str]:
    """Environment variables for a child that imports modules of tests/support."""
    return os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
