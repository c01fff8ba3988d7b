# SPDX-License-Identifier: GPL-2.0-or-later
"""With low limits, unusual users or an unusual /proc, a command fails with one line."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from failures import one_line
from users import AS_NOBODY

from physview.runtime import resource_limits
from physview.text import digits

MANY_DIGITS = "9" * 5000
# A user without an entry in /etc/passwd, of whom there are no other processes.
NAMELESS = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
WITHOUT_PROC = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"]


def last_line(result, code):
    """The last line on stderr. A note that frame numbers are hidden may stand before it."""
    assert result.returncode == code, result
    lines = result.stderr.splitlines()
    assert all(line.startswith("physview: ") for line in lines), result.stderr
    return lines[-1]


def with_proc(options):
    """A command prefix with a private /proc: `mount -o remount` would change the system's."""
    mount = f'mount -t proc -o {options} proc /proc && exec "$@"'
    return ["unshare", "-m", "sh", "-c", mount, "sh"]


@pytest.fixture(scope="module")
def snapshot(physview, tmp_path_factory):
    pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("snapshot") / "a.parquet"
    assert physview("snapshot", "self", "-o", str(path)).returncode == 0
    return str(path)


class TestNumbers:
    @pytest.mark.parametrize(
        "args",
        [
            ["translate", "self", MANY_DIGITS],
            ["translate", "self", f"0-{MANY_DIGITS}"],
            ["pages", "self", f"{MANY_DIGITS}-{MANY_DIGITS}"],
            ["owners", MANY_DIGITS],
            ["memview", "--repeat", MANY_DIGITS],
            ["memview", "--sleep", MANY_DIGITS],
            ["watch", "self", "--ticks", MANY_DIGITS],
            ["vm", "--memory", MANY_DIGITS, "--", "true"],
        ],
        ids=lambda args: args[0],
    )
    def test_thousands_of_digits_are_wrong_use(self, physview, args):
        one_line(physview(*args), 2)

    @pytest.mark.parametrize("command", ["maps", "translate"])
    def test_a_pid_of_thousands_of_digits_is_no_process(self, physview, command):
        more = ["0"] if command == "translate" else []
        assert "no process " in one_line(physview(command, MANY_DIGITS, *more), 1)

    @pytest.mark.parametrize(
        ("text", "most", "base", "number"),
        [("0" * 9000, 9, 10, 0), ("10", 9, 10, 10), ("ff", 255, 16, 255), ("100", 255, 16, 256)],
    )
    def test_a_bounded_number_is_read_as_it_is_or_as_too_large(self, text, most, base, number):
        assert digits.bounded_int(text, most, base) == number


@pytest.fixture(scope="module")
def least():
    """The MiB of address space that this Python needs to start."""
    return next(mib for mib in range(12, 4096, 4) if _starts(mib))


def _starts(mib):
    """Whether Python starts. Python 3.13.5 hangs if memory is short early in its start."""
    command = ["prlimit", f"--as={mib << 20}", sys.executable, "-m", "physview", "--version"]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class TestMemory:
    """RLIMIT_AS between the needs of Python alone and those of NumPy and Arrow."""

    @pytest.mark.parametrize("more", [8, 12, 20, 32])
    @pytest.mark.parametrize("command", ["watch self --ticks 1"])
    def test_too_little_for_numpy_is_one_line(self, physview, least, more, command):
        prefix = ["prlimit", f"--as={least + more << 20}"]
        result = physview(*command.split(), prefix=prefix)
        line = last_line(result, 1)
        assert "not enough memory: this process may have" in line
        assert "raise the limit (ulimit -v)" in line

    @pytest.mark.parametrize("more", [12, 32, 48])
    def test_a_snapshot_is_not_called_damaged_nor_arrow_missing(
        self, physview, snapshot, least, more
    ):
        prefix = ["prlimit", f"--as={least + more << 20}"]
        result = physview("diff", snapshot, snapshot, prefix=prefix)
        assert "not enough memory" in last_line(result, 1)

    def test_a_childs_shortage_is_told_in_a_line(self, physview, least):
        prefix = ["prlimit", f"--as={least + 4 << 20}"]
        result = physview("memview", "--repeat", "2", "--virtual", prefix=prefix)
        assert "Traceback" not in result.stderr

    def test_every_exception_for_missing_memory_is_recognised(self):
        for error in (
            MemoryError(),
            OSError(12, "Cannot allocate memory", "/proc/self/maps"),
            ImportError("libarrow.so: failed to map segment from shared object"),
        ):
            assert resource_limits.reached(error).why.startswith("not enough memory")

    def test_a_file_may_be_called_anything(self):
        error = FileNotFoundError(2, "No such file or directory", "/Too many open files")
        assert resource_limits.reached(error) is None


def test_a_full_pipe_is_no_want_of_processes():
    assert "no new process" in resource_limits.reached(BlockingIOError(11, "fork")).why
    read, write = os.pipe()
    os.set_blocking(write, False)
    # With a buffer that is smaller than a pipe; Python 3.14's own is larger.
    with open(read, "rb"), open(write, "wb", buffering=4096) as file:
        with pytest.raises(BlockingIOError) as raised:
            file.write(bytes(1 << 21))
        assert resource_limits.reached(raised.value) is None
        os.read(read, 1 << 20)


class TestOpenFiles:
    @pytest.mark.parametrize("most", [5, 6])
    @pytest.mark.parametrize(
        "command", ["pages self", "maps self", "lab cow", "memview --repeat 2"]
    )
    def test_too_few_are_one_line(self, physview, most, command):
        result = physview(*command.split(), prefix=["prlimit", f"--nofile={most}"])
        if result.returncode == 0 and os.geteuid() != 0:
            pytest.skip("without frame numbers it opens fewer")
        line = last_line(result, 1)
        if "hides frame numbers" in line or "only root may read" in line:
            pytest.skip("a user is refused before")
        assert f"too many open files: this process may open {most}" in line

    def test_a_snapshot_is_not_called_damaged(self, physview, snapshot):
        result = physview("diff", snapshot, snapshot, prefix=["prlimit", "--nofile=5"])
        assert "too many open files" in last_line(result, 1)

    @pytest.mark.needs("root", "pfn", "kpage")
    def test_processes_that_could_not_be_opened_have_not_ended(self, physview):
        result = physview("owners", "0x1000000", prefix=["prlimit", "--nofile=8"])
        assert "ended meanwhile" not in result.stderr
        assert "too many open files" in result.stderr

    @pytest.mark.needs("walk")
    def test_the_kernel_takes_no_program(self, physview):
        command = ["compare", "self", "--source", "bpf"]
        line = last_line(physview(*command, prefix=["prlimit", "--nofile=8"]), 1)
        assert "by BPF: too many open files: this process may open 8; raise the limit" in line


@pytest.mark.needs("nobody")
class TestProcesses:
    @pytest.mark.parametrize("command", ["memview --repeat 2 --virtual", "lab runs"])
    def test_a_child_that_cannot_be_started_is_one_line(self, physview, command):
        prefix = [*NAMELESS, "prlimit", "--nproc=1"]
        line = one_line(physview(*command.split(), prefix=prefix), 1)
        assert "no new process or thread could be started: uid 54321 may have 1" in line

    def test_numpy_does_not_end_us_where_it_gets_no_threads(self, physview):
        result = physview("pages", "self", "--summary", prefix=[*NAMELESS, "prlimit", "--nproc=1"])
        assert "OpenBLAS" not in result.stderr
        result = physview(
            "watch", "self", "--ticks", "1", prefix=[*NAMELESS, "prlimit", "--nproc=1"]
        )
        assert (result.returncode, "OpenBLAS" in result.stderr) == (0, False), result

    def test_a_snapshot_is_not_called_damaged(self, physview, snapshot, open_folder):
        path = open_folder / "a.parquet"
        path.write_bytes(Path(snapshot).read_bytes())
        path.chmod(0o644)
        result = physview("diff", str(path), str(path), prefix=[*NAMELESS, "prlimit", "--nproc=1"])
        assert result.returncode in (0, 1)
        assert "damaged" not in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_persons_program_keeps_its_environment(self, monkeypatch):
        from physview import commands

        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
        commands._keep_numpy_small(["trace"])
        assert "OPENBLAS_NUM_THREADS" not in os.environ


class TestUsers:
    @pytest.mark.needs("nobody", "qemu")
    def test_without_home_and_name_the_cache_has_no_place(self, physview):
        prefix = [*NAMELESS, "env", "-i", f"PATH={os.environ['PATH']}"]
        line = one_line(physview("vm", "--kernel", "6.1", "--", "true", prefix=prefix), 1)
        assert "uid 54321 has neither HOME nor an entry in /etc/passwd" in line
        assert "set PHYSVIEW_CACHE to a folder" in line

    @pytest.mark.needs("root")
    @pytest.mark.parametrize("uid", ["somebody", "-1", "²", "9" * 20, MANY_DIGITS, "4294967295"])
    def test_a_sudo_uid_that_is_no_user_is_told(self, physview, tmp_path, uid):
        pytest.importorskip("pyarrow")
        environment = os.environ | {"SUDO_UID": uid, "SUDO_GID": uid}
        result = physview("snapshot", "self", "-o", f"{tmp_path}/a", env=environment)
        assert "cannot tell who called sudo" in one_line(result, 2)
        assert os.listdir(tmp_path) == []


@pytest.mark.needs("mountns")
class TestProc:
    @pytest.mark.parametrize(
        "command",
        [
            *["memview", "maps self", "maps --all", "frames", "owners pfn:0x1", "lab cow"],
            *["lab swap", "trace copy_to_user", "translate bash 0", "pages self", "watch self"],
            "module build",
        ],
    )
    def test_without_proc_that_is_what_is_said(self, physview, command):
        args = [*command.split(), *(["--ticks", "1"] if "watch" in command else [])]
        line = one_line(physview(*args, prefix=WITHOUT_PROC), 1)
        assert "/proc is not mounted; " in line
        assert "mount -t proc proc /proc" in line

    def test_without_proc_doctor_says_nothing_of_the_kernel_and_of_capabilities(self, physview):
        result = physview("doctor", prefix=WITHOUT_PROC)
        assert (result.returncode, result.stderr) == (1, "")
        assert result.stdout.count("/proc is not mounted") >= 4
        for wrong in ("CONFIG_PROC_PAGE_MONITOR", "without CAP_", "la57", "CONFIG_FTRACE"):
            assert wrong not in result.stdout

    def test_with_subset_pid_the_kernel_is_not_blamed(self, physview):
        for command in ("frames", "owners pfn:0x1", "maps self"):
            result = physview(*command.split(), prefix=with_proc("subset=pid"))
            assert "mounted with subset=pid" in one_line(result, 1)

    @pytest.mark.needs("nobody")
    @pytest.mark.parametrize("how", ["1", "2", "4"])
    @pytest.mark.parametrize(
        "command",
        [
            *["translate {} 0", "maps {}", "pages {}", "walk {} 0x0", "compare {}", "tables {}"],
            *["watch {} --ticks 1", "snapshot {} -o /no/x", "picture {} -o /tmp/x.svg"],
        ],
    )
    def test_a_hidden_process_has_not_ended(self, physview, sleeper, how, command):
        prefix = [*with_proc(f"hidepid={how}"), *AS_NOBODY]
        line = one_line(physview(*command.format(sleeper.pid).split(), prefix=prefix), 1)
        assert f"cannot examine process {sleeper.pid}: it is another user's" in line
        assert "hidepid" in line
        none = one_line(physview(*command.format(4194303).split(), prefix=prefix), 1)
        assert "no process 4194303: there is no /proc/4194303" in none

    @pytest.mark.needs("nobody")
    def test_a_name_that_is_hidden_is_one_line(self, physview):
        prefix = [*with_proc("hidepid=1"), *AS_NOBODY]
        line = one_line(physview("maps", "no-such-name", prefix=prefix), 1)
        assert "none that you may see" in line


def test_metadata_nested_beyond_all_depth_are_one_line(physview, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "deep.parquet"
    table = pa.table({"a": [1]}).replace_schema_metadata({"physview": "[" * 200_000})
    pq.write_table(table, path)
    one_line(physview("diff", str(path), str(path)), 1)


def test_a_bug_keeps_its_traceback():
    code = textwrap.dedent(
        """
        import sys
        from physview.commands import main, completion
        completion.run = lambda args: {}["a bug"]
        sys.exit(main(["completion", "bash"]))
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "KeyError: 'a bug'" in result.stderr


@pytest.mark.needs("mountns")
def test_a_system_without_kmod_is_seen():
    code = "from physview.system import checks; print(checks._has_kmod())"
    mount = 'mount -t tmpfs t /usr/sbin; mount -t tmpfs t /sbin; PATH=/nowhere exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert asked.stdout == "False\n"
