# SPDX-License-Identifier: GPL-2.0-or-later
"""Output files are written completely or not at all, and no user can redirect what root writes."""

import ast
import os
import re
import signal
import stat
import subprocess
import sys
import time

import access_lists
import pytest
from failures import notes, one_line
from limits import DEFAULT_SIGNALS
from paths import ROOT
from users import AS_NOBODY

from physview.errors import PhysviewError
from physview.files.atomic_file import note_on_folder, whole_file

NOBODY = 65534
THROUGH_SUDO = {"SUDO_UID": str(NOBODY), "SUDO_GID": str(NOBODY)}
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def write(path, data=b"mine", **options):
    with whole_file(str(path), **options) as file:
        file.write(data)


def refusal(path, **options):
    with pytest.raises(PhysviewError) as raised:
        write(path, **options)
    return str(raised.value)


def hand_over(path, uid=NOBODY, mode=None):
    """Make another user the owner of a file or folder."""
    os.chown(path, uid, uid, follow_symlinks=False)
    if mode is not None:
        os.chmod(path, mode)
    return path


@pytest.fixture
def theirs(open_folder):
    """A folder of another user, which all users can reach."""
    (open_folder / "theirs").mkdir()
    return hand_over(open_folder / "theirs", mode=0o755)


@pytest.fixture
def roots(tmp_path):
    """A folder that only root can write to, with a file in it."""
    folder = tmp_path / "roots"
    folder.mkdir(mode=0o755)
    (folder / "there").write_text("root's")
    return folder


def files_of(folder):
    return {name: (folder / name).read_text() for name in os.listdir(folder)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, physview):
    """A snapshot that pictures are made from."""
    path = str(tmp_path_factory.mktemp("kept") / "a.parquet")
    assert physview("snapshot", "self", "-o", path).returncode == 0
    return path


COMMANDS = {
    "snapshot": ("snapshot", "self", "-o", "{path}.parquet"),
    "pages": ("pages", "self", "--format", "parquet", "-o", "{path}.parquet"),
    "picture": ("picture", "self", "-o", "{path}.svg"),
    "diff": ("diff", "{kept}", "{kept}", "--picture", "{path}.html"),
    "frames": ("frames", "--picture", "{path}.svg"),
    "walk": ("walk", "self", "--picture", "{path}.svg"),
}


@pytest.mark.needs("root", "kpage")
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.needs("walk")) if c == "walk" else c for c in COMMANDS],
)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_root_is_not_led_by_another_users_link(physview, theirs, roots, kept, command, force):
    """A dangling link, and a link to a file of root's."""
    words = [word.format(path=theirs / "out", kept=kept) for word in COMMANDS[command]]
    (out,) = (word for word in words if word.startswith(str(theirs)))
    for target in ("new", "there"):
        os.symlink(roots / target, out)
        hand_over(out)
        result = physview(*words, *force)
        assert f"symbolic link of another user (uid {NOBODY})" in one_line(result, 1)
        assert files_of(roots) == {"there": "root's"}
        assert os.listdir(theirs) == [os.path.basename(out)]
        os.unlink(out)


@pytest.mark.needs("root")
def test_a_link_of_the_callers_own_is_followed_in_a_folder_of_their_own(theirs, roots, monkeypatch):
    for name, value in THROUGH_SUDO.items():
        monkeypatch.setenv(name, value)
    os.symlink("file", theirs / "link")
    hand_over(theirs / "link")
    write(theirs / "link")
    assert os.readlink(theirs / "link") == "file"
    info = (theirs / "file").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (NOBODY, NOBODY, 0o600)
    # Others may write to it: then what is a link of one's own now may be none of one's making.
    os.chmod(theirs, 0o1777)
    assert "symbolic link in a folder that others may write to" in refusal(
        theirs / "link", overwrite=True
    )
    os.symlink(roots / "there", theirs / "roots_link")
    assert "symbolic link in a folder" in refusal(theirs / "roots_link", overwrite=True)
    assert files_of(roots) == {"there": "root's"}


@pytest.mark.needs("root")
def test_links_in_the_folders_path_are_followed_only_if_root_or_the_caller_made_them(
    theirs, roots, tmp_path
):
    os.symlink(roots, theirs / "folder")
    hand_over(theirs / "folder")
    assert "folder is a symbolic link of another user" in refusal(theirs / "folder" / "new")
    os.symlink(roots, theirs / "roots_folder")  # made by root, but it lies where others choose
    assert "in a folder that others may write to" in refusal(theirs / "roots_folder" / "new")
    assert files_of(roots) == {"there": "root's"}
    os.symlink(roots, tmp_path / "own")
    os.symlink("own/../roots", tmp_path / "twice")
    write(tmp_path / "twice" / "new")
    assert files_of(roots) == {"there": "root's", "new": "mine"}
    os.symlink("loop", tmp_path / "loop")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop" / "new")


@pytest.mark.needs("root")
def test_what_is_replaced_keeps_its_owner(theirs, roots, tmp_path, monkeypatch):
    for name, value in THROUGH_SUDO.items():
        monkeypatch.setenv(name, value)
    write(roots / "there", overwrite=True)
    info = (roots / "there").stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    write(roots / "new")
    assert (roots / "new").stat().st_uid == NOBODY
    write(roots / "new", overwrite=True)
    assert (roots / "new").stat().st_uid == NOBODY
    (theirs / "file").write_text("root's, in the caller's own folder")
    write(theirs / "file", overwrite=True)
    assert (theirs / "file").stat().st_uid == NOBODY
    hand_over(roots / "new", uid=NOBODY - 1)
    why = refusal(roots / "new", overwrite=True)
    owned = f"the file exists and belongs to another user (uid {NOBODY - 1})"
    assert f"{owned}; choose another name" in why
    assert files_of(roots)["new"] == "mine"


@pytest.mark.needs("root")
def test_in_tmp_new_files_are_written_and_own_ones_replaced(open_folder):
    write(open_folder / "a")
    write(open_folder / "a", b"again", overwrite=True)
    assert (open_folder / "a").read_bytes() == b"again"
    assert note_on_folder(str(open_folder / "a")) == ""
    hand_over(open_folder / "a")
    assert "another user" in refusal(open_folder / "a", overwrite=True)
    assert (open_folder / "a").read_bytes() == b"again"


@pytest.mark.needs("root")
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o755])
def test_where_others_can_exchange_files_nothing_is_replaced_and_that_is_said(
    physview, open_folder, mode
):
    folder = open_folder / "shared"
    folder.mkdir()
    os.chmod(folder, mode)
    if mode == 0o755:
        hand_over(folder)
    elif mode == 0o775:
        os.chown(folder, 0, NOBODY)
    path = folder / "a.svg"
    note = f"others may write to the folder {folder}, and so replace {path}"
    result = physview("picture", "self", "-o", str(path))
    assert (result.returncode, notes(result)) == (0, f"physview: {note}\n")
    before = path.read_bytes()
    line = one_line(physview("picture", "self", "-o", str(path), "--force"), 1)
    assert f"others may replace files in the folder {folder}; remove it first" in line
    assert (path.read_bytes(), os.listdir(folder)) == (before, ["a.svg"])


@pytest.mark.needs("root", "acls")
def test_a_folder_of_ones_own_group_is_ones_own(tmp_path):
    os.chmod(tmp_path, 0o775)  # root's group, as other users have one of their own name
    write(tmp_path / "a")
    write(tmp_path / "a", b"again", overwrite=True)
    assert note_on_folder(str(tmp_path / "a")) == ""
    access_lists.give(tmp_path, NOBODY)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o775
    assert "others may write to the folder" in note_on_folder(str(tmp_path / "a"))
    assert "others may replace" in refusal(tmp_path / "a", overwrite=True)


ATTACKER = """
import os, sys
os.chdir(sys.argv[1])
goal = sys.argv[2]
def quietly(call, *args):
    try:
        call(*args)
    except OSError:
        pass
print("ready", flush=True)
while os.getppid() != 1:
    for leads_to in (goal + "/there", goal + "/new"):
        quietly(os.symlink, leads_to, "next")
        quietly(os.rename, "next", "out")
    quietly(os.unlink, "out")
    quietly(os.symlink, goal, "next")
    quietly(os.rename, "folder", "real")
    quietly(os.rename, "next", "folder")
    quietly(os.unlink, "folder")
    quietly(os.rename, "real", "folder")
    for name in os.listdir():  # what might be a file on its way
        if name.endswith(".part"):
            quietly(os.symlink, goal + "/there", "next")
            quietly(os.rename, "next", name)
"""


@pytest.mark.needs("root", "nobody")
@pytest.mark.once("a race")
def test_root_writes_while_an_attacker_flips_links(theirs, roots):
    """An attacker exchanges links in their folder; no file outside that folder changes."""
    (theirs / "folder").mkdir()
    hand_over(theirs / "folder", mode=0o777)
    command = [*AS_NOBODY, sys.executable, "-c", ATTACKER, str(theirs), str(roots)]
    os.chmod(roots.parent, 0o755)
    attacker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    nr_written, refused = 0, set()
    try:
        attacker.stdout.readline()
        until = time.monotonic() + 2
        while time.monotonic() < until or nr_written < 20:
            for path in (theirs / "out", theirs / "folder" / "new"):
                for overwrite in (False, True):
                    try:
                        write(path, overwrite=overwrite)
                        nr_written += 1
                    except PhysviewError as error:
                        refused.add(str(error).partition(": ")[2].partition(" (")[0])
        assert attacker.poll() is None
    finally:
        attacker.kill()
        attacker.communicate()
    assert files_of(roots) == {"there": "root's"}
    assert (roots / "there").stat().st_uid == 0
    assert any("symbolic link of another user" in why for why in refused)
    left = [name for name in os.listdir(theirs) if name.endswith(".part")]
    assert [name for name in left if not (theirs / name).is_symlink()] == []


NAMED = """
import os, signal, sys
from physview.files import atomic_file
path, when, signum = sys.argv[1], sys.argv[2], int(sys.argv[3])
def end():
    os.kill(os.getpid(), signum)
    signal.pause()
if when == "renaming":
    rename = os.rename
    os.rename = lambda *args, **kwargs: end()  # stopped between the hidden name and the last
with atomic_file.whole_file(path, overwrite=True) as file:
    file.write(bytes(1 << 20))
    if when == "writing":
        end()
"""


def end_of(folder, when, signum, prefix=()):
    path = folder / "a"
    path.write_text("there")
    command = [
        *DEFAULT_SIGNALS,
        *prefix,
        sys.executable,
        "-c",
        NAMED,
        str(path),
        when,
        str(int(signum)),
    ]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    return result.returncode, sorted(os.listdir(folder)), path.read_text()


@pytest.mark.parametrize("signum", [*ENDING, signal.SIGINT, signal.SIGKILL])
def test_no_signal_leaves_a_part_of_a_file(tmp_path, signum):
    assert end_of(tmp_path, "writing", signum) == (-signum, ["a"], "there")
    if signum != signal.SIGKILL:  # which can hit between two system calls
        assert end_of(tmp_path, "renaming", signum) == (-signum, ["a"], "there")


# A file that has no name is named through /proc: where that is hidden, it needs one at once.
NO_PROC = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs t /proc && exec "$@"', "sh"]


@pytest.mark.needs("mountns")
@pytest.mark.parametrize("signum", [*ENDING, signal.SIGINT])
def test_no_signal_leaves_a_part_of_a_file_with_a_hidden_name(tmp_path, signum):
    for when in ("writing", "renaming"):
        assert end_of(tmp_path, when, signum, NO_PROC) == (-signum, ["a"], "there")


@pytest.mark.needs("mountns")
def test_a_file_is_written_through_a_hidden_name(tmp_path):
    code = f"""
import os
from physview.files.atomic_file import whole_file
for name, overwrite in (("new", False), ("there", True)):
    with whole_file({str(tmp_path)!r} + "/" + name, overwrite=overwrite) as file:
        file.write(b"mine")
        assert any(each.endswith(".part") for each in os.listdir({str(tmp_path)!r}))
"""
    (tmp_path / "there").write_text("theirs")
    subprocess.run([*NO_PROC, sys.executable, "-c", code], check=True)
    assert files_of(tmp_path) == {"new": "mine", "there": "mine"}


def test_signals_are_caught_only_where_nobody_else_does(tmp_path):
    heard = []
    hangup = signal.getsignal(signal.SIGHUP)
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("TERM"))
    try:
        with whole_file(str(tmp_path / "a")) as file:
            os.kill(os.getpid(), signal.SIGTERM)
            file.write(b"mine")
        write(tmp_path / "a", overwrite=True)
        assert heard == ["TERM"]
        assert signal.getsignal(signal.SIGHUP) is hangup
    finally:
        signal.signal(signal.SIGTERM, before)
    assert files_of(tmp_path) == {"a": "mine"}


def test_a_file_that_another_process_creates_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a"

    def write_late():
        with whole_file(str(path)) as file:
            file.write(b"ours")
            path.write_text("theirs")

    with pytest.raises(PhysviewError, match="it is there already"):
        write_late()
    assert files_of(tmp_path) == {"a": "theirs"}


def test_the_folder_may_be_moved_meanwhile(tmp_path):
    (tmp_path / "old").mkdir()
    with whole_file(str(tmp_path / "old" / "a")) as file:
        os.rename(tmp_path / "old", tmp_path / "moved")
        (tmp_path / "old").mkdir()
        file.write(b"mine")
    assert files_of(tmp_path / "moved") == {"a": "mine"}
    assert os.listdir(tmp_path / "old") == []


def test_invalid_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("there")
    cases = {
        "a\0b": "this is not a valid file name",
        "\ud800": "this is not a valid file name",
        "folder/": "it is a folder",
        "..": "it is a folder",
        "file/a": "file is not a folder",
        "nowhere/a": "there is no folder nowhere",
        "x" * 300: "File name too long",
    }
    for path, why in cases.items():
        assert why in refusal(path), path
    write("a" * 255)
    assert sorted(os.listdir()) == ["a" * 255, "file"]


# Who else writes files, and what: none of it where a caller says.
WRITERS = {
    "kernels/": "the cache of modules and kernels",
    "vm/": "the VM's own files, in memory and in the guest",
    "tracing/": "tracefs",
    "labs/": "sysfs and /proc",
    "sources/soft_dirty.py": "/proc/PID/clear_refs",
    "sources/idle_bitmap.py": "the kernel's idle bitmap",
    "recording/": "journals, by the descriptor of the dataset's own folder",
    "files/atomic_file.py": "here",
}


NAMES = {
    *("write_text", "write_bytes", "mkstemp", "NamedTemporaryFile", "symlink", "chown", "fchown"),
    *("os.rename", "os.replace", "os.link", "shutil.copy", "shutil.move", "shutil.copyfile"),
}


def opens_to_write(node):
    """Whether a call opens to write, renames, links or changes the owner of a file by its path."""
    words = ast.unparse(node.func).rsplit(".", 2)
    if words[-1] in NAMES or ".".join(words[-2:]) in NAMES:
        return True
    if words[-1] != "open" or "os.devnull" in ast.unparse(node):
        return False
    flags = [ast.unparse(each) for each in [*node.args, *(each.value for each in node.keywords)]]
    return any(
        re.search(r"O_WRONLY|O_RDWR|O_CREAT|^'[rb]*[wax+][wax+b]*'$", each) for each in flags
    )


def test_the_package_writes_files_only_through_whole_file():
    found = set()
    for path in sorted((ROOT / "physview").rglob("*.py")):
        where = str(path.relative_to(ROOT / "physview"))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or where.startswith(tuple(WRITERS)):
                continue
            if opens_to_write(node):
                found.add(f"{where}:{node.lineno}")
    assert found == set()
