# SPDX-License-Identifier: GPL-2.0-or-later
"""physview neither reads nor writes a cache that another user could change."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import access_lists
import pytest
from paths import ROOT
from users import AS_NOBODY

from physview import kernels
from physview.errors import AccessDenied
from physview.files import trusted
from physview.vm import qemu

NOBODY = 65534
HELLO = {"Kbuild": "obj-m := hello.o\n", "hello.c": "int x;\n"}

pytestmark = pytest.mark.needs("root")


RELEASE = f"6.1.0-56-{'amd64' if os.uname().machine == 'x86_64' else 'arm64'}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of root's with a kernel."""
    folder = tmp_path / "on/the/way/cache"
    monkeypatch.setenv("PHYSVIEW_CACHE", str(folder))
    kernel = folder / "kernels" / RELEASE
    for below in ("boot", f"lib/modules/{RELEASE}", f"usr/src/linux-headers-{RELEASE}"):
        (kernel / below).mkdir(parents=True)
    (kernel / f"boot/vmlinuz-{RELEASE}").touch()
    assert kernels.find_kernel("6.1").image.exists()
    return folder


def contents(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def make_nobodys(path):
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def make_writable(path):
    path.chmod(0o777)


def make_writable_for_its_group(path):
    os.chown(path, 0, NOBODY)
    path.chmod(0o775)


def replace_by_nobodys_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    make_nobodys(path)


@pytest.mark.parametrize(
    "spoil", [make_nobodys, make_writable, make_writable_for_its_group, replace_by_nobodys_link]
)
@pytest.mark.parametrize("place", ["..", ".", "kernels", f"kernels/{RELEASE}"])
def test_a_kernel_that_others_could_change_is_refused_in_one_line(cache, spoil, place):
    spoil(Path(os.path.normpath(cache / place)))
    before = contents(cache.parents[1])
    with pytest.raises(AccessDenied, match="PHYSVIEW_CACHE") as caught:
        kernels.find_kernel("6.1")
    assert "\n" not in str(caught.value)
    assert contents(cache.parents[1]) == before


@pytest.mark.parametrize("place", ["cache", "modules", "modules/6.1.0", "its folder", "itself"])
def test_a_module_that_another_user_planted_is_not_used(cache, tmp_path, monkeypatch, place):
    monkeypatch.setattr("physview.kernels.build._usable_headers", lambda kernel: tmp_path)
    monkeypatch.setattr("physview.kernels.build._digest", lambda *args: "digest")
    source = tmp_path / "hello"
    source.mkdir()
    for name, text in HELLO.items():
        (source / name).write_text(text)
    kernel = kernels.Kernel("6.1.0", tmp_path, tmp_path, tmp_path)
    planted = cache / "modules/6.1.0/digest/hello.ko"
    planted.parent.mkdir(parents=True)
    planted.write_text("planted")
    assert kernels.build_module(kernel, source) == planted
    whole = {"cache": cache, "its folder": planted.parent, "itself": planted}
    make_nobodys(whole.get(place, cache / place))
    before = contents(cache)
    with pytest.raises(AccessDenied, match="belongs to nobody"):
        kernels.build_module(kernel, source)
    # A lock that is root's may come to lie in a folder that is root's.
    assert [path for path in contents(cache) if not path.endswith(".lock")] == [
        path for path in before if not path.endswith(".lock")
    ]


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("variable", ["PHYSVIEW_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_root_refuses_another_users_cache_by_any_variable(tmp_path, variable):
    home = tmp_path / "home"
    home.mkdir()
    make_nobodys(home)
    environment = os.environ | {variable: str(home)}
    for other in {"PHYSVIEW_CACHE", "XDG_CACHE_HOME", "SUDO_UID"} - {variable}:
        environment.pop(other, None)
    command = [sys.executable, "-m", "physview", "vm", "--kernel", "6.1", "--", "true"]
    result = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result
    assert result.stderr.startswith("physview: cannot use the cache ")
    assert result.stderr.count("\n") == 1
    assert "belongs to nobody, who could change what you run; set PHYSVIEW_CACHE" in result.stderr
    assert contents(home) == []


def test_every_folder_of_a_relative_home_is_checked(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    make_nobodys(home)
    for name in ("PHYSVIEW_CACHE", "XDG_CACHE_HOME", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "home")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AccessDenied, match=f"{home} belongs to nobody"):
        kernels.make_cache_dir("kernels")
    assert contents(home) == []


def test_the_note_that_kvm_fails_is_not_written_into_another_users_cache(cache):
    qemu.remember_that_kvm_fails()
    assert (cache / "kvm-fails").read_text() == qemu._boot_id() == qemu._kvm_note()
    victim = cache.parent / "victim"
    (cache / "kvm-fails").unlink()
    (cache / "kvm-fails").symlink_to(victim)
    make_nobodys(cache)
    qemu.remember_that_kvm_fails()
    assert not victim.exists()
    assert qemu._kvm_note() == ""


def test_peers_in_another_users_cache_are_not_run(cache):
    peers = cache / "peers"
    peers.mkdir()
    (peers / "page-types").write_text("#!/bin/sh\ntouch /hacked\n")
    (peers / "page-types").chmod(0o755)
    code = "import os, conftest; print(os.environ['PATH'])"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/support"}
    for expected in (True, False):
        shown = subprocess.check_output(command, env=environment, cwd="/", text=True)
        assert (str(peers) in shown) is expected
        make_nobodys(peers)


@pytest.mark.needs("apt")
def test_peers_are_not_fetched_into_another_users_cache(cache):
    (cache / "peers").mkdir()
    make_nobodys(cache / "peers")
    fetched = subprocess.run(
        [ROOT / "scripts/fetch-peers"], capture_output=True, text=True, check=False
    )
    assert fetched.returncode == 1, fetched
    assert "belongs to nobody" in fetched.stderr
    assert fetched.stdout == ""


def test_a_path_may_go_through_a_sticky_folder_but_not_end_there(tmp_path, monkeypatch):
    sticky = tmp_path / "tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    trusted.make_folder(sticky / "mine")
    assert (sticky / "mine").stat().st_mode & 0o7777 == 0o755
    assert trusted.check(sticky / "mine")
    assert not trusted.check(sticky / "not there")
    for path in (sticky, sticky / "mine" / ".."):
        with pytest.raises(AccessDenied, match=r"may write to .*; set") as caught:
            trusted.check(path)
        assert "chmod" not in str(caught.value)
    monkeypatch.setenv("PHYSVIEW_CACHE", str(sticky))
    with pytest.raises(AccessDenied, match="may write to"):
        kernels.cache_dir("kernels")
    # What another was quicker to make there is that one's.
    (sticky / "theirs").mkdir()
    make_nobodys(sticky / "theirs")
    with pytest.raises(AccessDenied, match="belongs to nobody"):
        trusted.make_folder(sticky / "theirs" / "cache")


def test_a_mount_point_in_a_sticky_folder_is_refused(tmp_path):
    """A user's FUSE says what its owner is: here it is a tmpfs that stands for it."""
    sticky = tmp_path / "tmp"
    (sticky / "mounted").mkdir(parents=True)
    (tmp_path / "mounted").mkdir()
    sticky.chmod(0o1777)
    code = (
        "import subprocess, sys; from pathlib import Path; from physview.files import trusted\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'mode=755', 't', path], check=True)\n"
        "    try: print(trusted.check(path))\n"
        "    except OSError as error: print(error)\n"
    )
    command = ["unshare", "-m", sys.executable, "-c", code]
    places = [tmp_path / "mounted", sticky / "mounted"]
    output = subprocess.check_output([*command, *places], cwd=ROOT, text=True)
    fine, refused = output.splitlines()
    assert fine == "True"
    assert "is a mount point in a folder that others may write to; set PHYSVIEW_CACHE" in refused


def test_links_are_followed_as_the_kernel_follows_them(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "a")
    (tmp_path / "a/relative").symlink_to("./b/../b")
    (tmp_path / "loop").symlink_to("loop")
    assert trusted.check(tmp_path / "absolute/relative")
    assert not trusted.check(tmp_path / "absolute/relative/c")
    trusted.make_folder(tmp_path / "absolute/relative/c/d")
    assert (tmp_path / "a/b/c/d").is_dir()
    with pytest.raises(AccessDenied, match="too many symbolic links"):
        trusted.check(tmp_path / "loop/x")
    make_writable(tmp_path / "a/b")
    with pytest.raises(AccessDenied, match=rf"may write to {tmp_path}/a/b; chmod go-w"):
        trusted.check(tmp_path / "absolute/relative/c")


@pytest.mark.needs("acls")
def test_write_permission_of_a_private_group_is_accepted(open_folder):
    """Debian and Ubuntu give each user a group; with a umask of 002 it may write."""
    folder = open_folder / "cache"
    folder.mkdir(mode=0o755)
    os.chown(folder, 0, 0)
    folder.chmod(0o775)
    is_alone = all(user.pw_gid != 0 or user.pw_uid == 0 for user in pwd.getpwall())
    if not is_alone or set(grp.getgrgid(0).gr_mem) - {"root"}:
        pytest.skip("root's group has other members here")
    open_folder.chmod(0o755)
    assert trusted.check(folder)
    access_lists.give(folder, NOBODY)
    assert folder.stat().st_mode & 0o777 == 0o775
    with pytest.raises(AccessDenied, match="may write to"):
        trusted.check(folder)


def test_with_any_umask_others_cannot_write_to_new_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PHYSVIEW_CACHE", str(tmp_path / "a/cache"))
    before = os.umask(0)
    try:
        made = kernels.make_cache_dir("b", "c")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (made, *made.parents[:3])] == [0o755] * 4


@pytest.mark.needs("nobody")
def test_a_user_trusts_roots_folders_and_their_own(open_folder):
    open_folder.chmod(0o755)
    for name, owner in (("theirs", NOBODY), ("roots", 0), ("anothers", 1)):
        (open_folder / name).mkdir()
        os.chown(open_folder / name, owner, owner)
    code = (
        "import sys; from physview import kernels\n"
        "try: print(kernels.cache_dir())\n"
        "except OSError as error: print(error)\n"
    )
    said = {}
    for name in ("theirs", "roots", "anothers"):
        environment = os.environ | {"PHYSVIEW_CACHE": str(open_folder / name / "cache")}
        command = [*AS_NOBODY, sys.executable, "-c", code]
        said[name] = subprocess.check_output(command, env=environment, cwd=ROOT, text=True)
    assert said["theirs"] == f"{open_folder}/theirs/cache\n"
    assert said["roots"] == f"{open_folder}/roots/cache\n"
    assert f"{open_folder}/anothers belongs to " in said["anothers"]
