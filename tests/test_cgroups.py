# SPDX-License-Identifier: GPL-2.0-or-later
"""cgroups are found and read, whatever names they and mount points have."""

import json
import os
import subprocess
import sys

import cgroups
import pytest

from physview.sources.cgroups import cgroup_pids, memory_cgroup_mount
from physview.text import proctext


def test_the_memory_hierarchy_is_the_one_with_the_memory_controller():
    text = (
        b"1 0 0:1 / /a\\040\v rw - cgroup2 c rw\n2 0 0:2 /../.. /b rw - cgroup c rw,memory\n"
        b"3 0 0:3 / /memory rw - tmpfs memory rw,memory\n"
    )
    unified = memory_cgroup_mount(proctext.parse_mountinfo(text))
    assert unified.path == "/a \v"
    more = text + b"4 0 0:4 / /c\r rw - cgroup c rw,memory\n"
    assert memory_cgroup_mount(proctext.parse_mountinfo(more)).path == "/c\r"


@pytest.mark.needs("mountns")
def test_a_mount_point_with_a_carriage_return_breaks_nothing(tmp_path, tests_on_path):
    """A carriage return once split its line in two, and the second lacked the fields of a line."""
    program = (
        "import os, sys; from memory import libc;"
        "from physview.sources.cgroups import cgroup_paths;"
        "path = sys.argv[1] + '/a\\rb\\v\\x85'; os.mkdir(path);"
        "assert libc.mount(b't', os.fsencode(path), b'tmpfs', 0, None) == 0; cgroup_paths()"
    )
    # Where the hierarchy is found before it, it was not read.
    unmount = ["unshare", "-m", "sh", "-c", 'umount -a -l -t cgroup,cgroup2; exec "$@"', "sh"]
    run = [*unmount, sys.executable, "-c", program, tmp_path]
    subprocess.run(run, check=True, env=tests_on_path)


@pytest.mark.needs("cgroups")
@pytest.mark.parametrize("name", ["plain", "a:b \v\r\x85 (deleted)", "\\040", "\udcff"])
def test_the_processes_of_a_cgroup_and_below_whatever_it_is_called(python, name):
    """A cgroup below it has a path longer than PATH_MAX."""
    children = [python().pid for _ in range(2)]
    names = [f"physview-test-{os.getpid()}-{name}", *(["x" * 255] * 20)]
    with cgroups.branch(names, children) as path:
        assert cgroup_pids(path) == sorted(children)
        with pytest.raises(FileNotFoundError):
            cgroup_pids(f"{path}/nowhere")


@pytest.mark.needs("cgroups")
def test_a_threaded_cgroup_has_the_processes_of_its_threads(python, physview):
    """The kernel refuses to list the processes of such a cgroup (EOPNOTSUPP), not the threads."""
    child = python(
        "import threading, time; threading.Thread(target=time.sleep, args=[600]).start()"
    )
    names = [f"physview-test-{os.getpid()}", "threads"]
    if not os.path.exists(f"{cgroups.writable()}/cgroup.procs") or not os.path.exists(
        f"{cgroups.writable()}/cgroup.threads"
    ):
        pytest.skip("no cgroup 2: only it has threaded cgroups")
    with cgroups.branch(names, []) as path:
        threaded = f"{path}/threads"
        with open(f"{threaded}/cgroup.type", "w") as file:
            file.write("threaded")
        with cgroups.joined(path, child.pid):
            (tid,) = {int(tid) for tid in os.listdir(f"/proc/{child.pid}/task")} - {child.pid}
            with open(f"{threaded}/cgroup.threads", "w") as file:
                file.write(str(tid))
            with (
                pytest.raises(OSError, match="not supported"),
                open(f"{threaded}/cgroup.procs") as f,
            ):
                f.read()
            assert cgroup_pids(threaded) == cgroup_pids(path) == [child.pid]
            result = physview("maps", "--rollup", "--json", "--cgroup", threaded)
    assert [each["pid"] for each in json.loads(result.stdout)["processes"]] == [child.pid]
    assert f"{threaded} is a threaded cgroup: processes with a thread in it" in result.stderr


def test_a_folder_that_is_no_cgroup_has_no_processes_and_does_not_block(tmp_path):
    (tmp_path / "cgroup.procs").write_text("3\n1\n")
    with pytest.raises(NotADirectoryError, match="another file system"):
        cgroup_pids(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotADirectoryError):
        cgroup_pids(str(tmp_path / "fifo"))
