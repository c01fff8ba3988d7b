# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that processes map: sources/mapped_files.py, and file --pid, --cgroup and --all."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from failures import one_line
from memory import PAGE
from users import AS_NOBODY

from physview import PhysviewError
from physview.sources.mapped_files import MappedFile, open_mapped
from physview.sources.procfs import ProcDir

# Maps a file, and says so. Then it may do something to the file's name; it ends with its stdin.
MAPPER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
exec(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mapper():
    """A function that starts a process that maps a file."""
    children = []

    def start(path, then="", prefix=()):
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        child = subprocess.Popen(
            [*prefix, python, "-I", "-c", MAPPER, str(path), then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        children.append(child)
        assert child.stdout.readline() == b"ready\n"
        return child

    yield start
    for child in children:
        child.communicate()


def files_of(result):
    return {file["path"]: file for file in json.loads(result.stdout)["files"]}


def test_the_files_of_a_process(physview, mapper, tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(7 * PAGE))
    child = mapper(path)
    result = physview("file", "--pid", str(child.pid), "--json")
    found = files_of(result)
    if os.geteuid() == 0:
        assert result.returncode == 0, result.stderr
    assert found[str(path)]["nr_cached"] == 7
    assert found[str(path)]["pids"] == [child.pid]
    assert any("python" in name for name in found)
    text = physview("file", "--pid", str(child.pid)).stdout.splitlines()
    assert f"{child.pid} python3" in text[1]
    assert len(text) == 2


@pytest.mark.needs("root")
def test_a_file_that_was_deleted_or_replaced_is_the_one_that_is_mapped(physview, mapper, tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(5 * PAGE))
    child = mapper(path, "import os; os.unlink(sys.argv[1]); open(sys.argv[1], 'w').write('x')")
    found = files_of(physview("file", "--pid", str(child.pid), "--json"))
    assert found[f"{path} (deleted)"]["nr_cached"] == 5
    assert str(path) not in found


@pytest.mark.needs("mountns")
def test_a_file_is_found_below_the_root_of_its_process(physview, mapper, tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE))  # a decoy, in our own mount namespace
    make = (
        f'mount -t tmpfs t {tmp_path} && head -c {9 * PAGE} /dev/zero >{tmp_path}/file; exec "$@"'
    )
    child = mapper(tmp_path / "file", prefix=["unshare", "-m", "sh", "-c", make, "sh"])
    found = files_of(physview("file", "--pid", str(child.pid), "--json"))
    assert found[f"{tmp_path}/file"]["nr_cached"] == 9


@pytest.mark.needs("nobody")
@pytest.mark.parametrize("instead", ["os.symlink('/etc/passwd', path)", "os.mkfifo(path)", "0"])
def test_nobody_finds_files_by_name_and_is_not_led_astray(physview, mapper, open_folder, instead):
    path = open_folder / "mapped"
    path.write_bytes(bytes(3 * PAGE))
    os.chown(path, 65534, 65534)
    open_folder.chmod(0o777)
    pid = mapper(path, prefix=AS_NOBODY).pid
    result = physview("file", "--pid", str(pid), "--json", prefix=AS_NOBODY)
    assert files_of(result)[str(path)]["nr_cached"] == 3
    replace = f"import os; path = sys.argv[1]; os.unlink(path); {instead}"
    pid = mapper(path, replace, prefix=AS_NOBODY).pid
    result = physview("file", "--pid", str(pid), "--json", prefix=AS_NOBODY)
    assert "it has no name, and only root may open it by the mapping" in result.stderr
    assert not {"/etc/passwd", str(path)} & set(files_of(result))


def test_another_file_of_the_same_name_is_noticed(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/self/exe")
    info = os.stat(tmp_path / "file")
    with ProcDir() as proc:
        mine = MappedFile(f"{tmp_path}/file", (info.st_dev, info.st_ino), 4096, 8192)
        os.close(open_mapped(proc, mine))
        with pytest.raises(PhysviewError, match="another file has taken its name"):
            open_mapped(proc, mine._replace(identity=(info.st_dev, info.st_ino + 1)))
        with pytest.raises(PhysviewError, match="symbolic links"):  # a magic link
            open_mapped(proc, mine._replace(path=f"{tmp_path}/link"))


@pytest.mark.needs("root")
def test_devices_are_not_opened(physview, mapper):
    then = (
        "device = open('/dev/zero', 'rb')\n"
        "zero = mmap.mmap(device.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)"
    )
    child = mapper("/etc/passwd", then)
    assert "/dev/zero" in open(f"/proc/{child.pid}/maps").read()  # noqa: SIM115
    result = physview("file", "--pid", str(child.pid), "--json")
    assert result.returncode == 0
    assert "/dev/zero" not in files_of(result)


@pytest.mark.needs("root")
def test_shared_files_count_once_and_say_who_maps_them(physview, mapper, tmp_path):
    path = tmp_path / "shared"
    path.write_bytes(bytes(4 * PAGE))
    pids = [mapper(path).pid for _ in range(2)]
    result = physview("file", "--pid", str(pids[0]), "--pid", str(pids[1]), "--json")
    document = json.loads(result.stdout)
    assert files_of(result)[str(path)]["pids"] == pids
    assert document["total"]["nr_files"] == len(document["files"])
    lines = physview("file", "--pid", str(pids[0]), "--pid", str(pids[1])).stdout.splitlines()
    assert [line.split()[7] for line in lines[1:3]] == [str(pid) for pid in pids]
    assert lines[3].endswith(f"({document['total']['nr_files']} files)")
    result = physview("file", "--all", "--top", "3", "--json")
    assert len(json.loads(result.stdout)["files"]) == 3
    result = physview("file", "--all", "--include", "shared", "--json")
    assert set(pids) <= set(files_of(result)[str(path)]["pids"])


def test_processes_that_cannot_be_examined(physview, mapper, tmp_path):
    gone = subprocess.run(
        ["sh", "-c", "echo $$"], capture_output=True, text=True, check=True
    ).stdout
    line = one_line(physview("file", "--pid", gone.strip()), 1)
    assert "no process" in line
    (tmp_path / "file").write_bytes(b"x")
    child = mapper(tmp_path / "file")
    result = physview("file", "--pid", gone.strip(), "--pid", str(child.pid), "--json")
    assert result.returncode == 1
    assert f"{tmp_path}/file" in files_of(result)
    line = one_line(physview("file", "--cgroup", "/not/there"), 2)
    assert "is no cgroup" in line


def test_a_hostile_name_is_quoted(physview, mapper):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(os.fsencode(folder), b"a\x1b[31m b \xff")
        with open(path, "wb") as file:
            file.write(bytes(PAGE))
        child = mapper(os.fsdecode(path))
        result = physview("file", "--each", "--pid", str(child.pid))
        assert r"a\x1b[31m b \xff" in result.stdout
        assert "\x1b" not in result.stdout
