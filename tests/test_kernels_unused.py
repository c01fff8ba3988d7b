# SPDX-License-Identifier: GPL-2.0-or-later
"""What has not been used in the cache for long is removed, and nothing else."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from failures import one_line
from users import AS_NOBODY

from physview.kernels import cache, unused

DAY = 86400
RELEASE = "6.1.0-1-amd64"
KEPT = ["kvm-fails", "peers/program", "vms/x.lock", "debug-6.12/vmlinux"]
CLEANED = [
    f"kernels/{RELEASE}",
    "images/vmlinuz-6.8.0-1-generic",
    f"modules/{RELEASE}/0123",
    f"modules/{RELEASE}/4567.log",
    "modules/debug/0123",
    "packages/0123",
    "roots/trixie-arm64-0123",
]
LEFT = ["kernels/.6.1-amd64.new", "packages/.new-abc", "roots/.old-trixie-7"]
GONE = "modules/5.9.9-9-amd64/0123"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache with all that physview puts there."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PHYSVIEW_CACHE", str(folder))
    for name in (*CLEANED, *LEFT, GONE):
        made = folder / name
        if made.suffix == ".log" or made.parent.name == "images":
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_bytes(bytes(5000))
        else:
            made.mkdir(parents=True)
            (made / "file").write_bytes(bytes(5000))
        if name not in LEFT:
            (made.parent / f".{made.name}.lock").touch()
    for name in KEPT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    image = folder / f"kernels/{RELEASE}/boot/vmlinuz-{RELEASE}"
    image.parent.mkdir()
    image.touch()
    return folder


def later(days):
    return {each.path: each for each in unused.find_unused(30, time.time() + days * DAY)}


def test_what_was_used_in_the_last_days_stays(folder):
    assert [*later(0)] == [GONE]
    assert later(0)[GONE].why == "its kernel is gone"
    assert {*later(29)} == {GONE, *LEFT}
    assert later(29)[LEFT[0]].why == "left by a process that was killed"
    assert {*later(31)} == {GONE, *LEFT, *CLEANED}
    assert later(31)[CLEANED[0]].why == "not used for 31 days"
    assert later(31)["packages/0123"].size_bytes >= 5000


def test_a_file_from_an_archive_is_not_older_than_its_copy(folder):
    """Debian's packages have files of any age."""
    os.utime(folder / CLEANED[0], (0, 0))
    assert CLEANED[0] not in later(29)


@pytest.mark.parametrize("name", [f"kernels/{RELEASE}", f"kernels/{RELEASE}/boot/x"])
def test_a_use_is_noted(folder, name):
    before = later(31)[CLEANED[0]].last_used
    time.sleep(0.01)
    if name.endswith("x"):
        with cache.held([folder / name]):
            pass
    else:
        assert cache.cached_kernel("6.1", "amd64").release == RELEASE
    assert later(31)[CLEANED[0]].last_used > before


def test_what_a_process_uses_stays(folder):
    """A VM's QEMU has the descriptors."""
    paths = [folder / "packages/0123/physview", folder / f"modules/{RELEASE}/0123/x.ko"]
    found = later(31)
    (folder.parent / "other").mkdir()
    with cache.held([*paths, folder.parent, folder / "../other"]) as locks:
        assert len(locks) == 2
        user = subprocess.Popen(["sleep", "60"], pass_fds=locks)
    try:
        in_use = {"packages/0123", f"modules/{RELEASE}/0123"}
        assert {*later(31)} == {GONE, *LEFT, *CLEANED} - in_use
        assert not unused.remove(found["packages/0123"])
    finally:
        user.kill()
        user.wait()
    assert unused.remove(later(31)["packages/0123"])


def test_what_was_used_or_is_made_meanwhile_stays(folder):
    found = later(31)["roots/trixie-arm64-0123"]
    with cache.locked("trixie-arm64-0123", "roots"):
        assert not unused.remove(found)
    left = later(31)["kernels/.6.1-amd64.new"]
    with cache.locked("6.1-amd64", "kernels"):
        assert not unused.remove(left)
    time.sleep(0.01)
    cache.mark_used(folder / found.path)
    assert not unused.remove(found)
    assert (folder / found.path / "file").exists()


def test_of_a_link_only_the_link_is_removed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (folder / "roots/link").symlink_to(tmp_path / "elsewhere")
    (folder / "roots/dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        assert unused.remove(later(31)[f"roots/{name}"])
        assert not os.path.lexists(folder / "roots" / name)
    assert (tmp_path / "elsewhere/file").exists()


def test_who_waits_for_a_lock_that_is_removed_gets_another(folder):
    inside = []

    def wait():
        with cache.locked("name", "roots") as there:
            inside.append((there / ".name.lock").stat().st_ino)

    with cache.locked("name", "roots") as there:
        waiting = threading.Thread(target=wait)
        waiting.start()
        while not _waits_for_a_lock():
            time.sleep(0.005)
        (there / ".name.lock").unlink()
        assert not inside
    waiting.join()
    assert inside == [(folder / "roots/.name.lock").stat().st_ino]


def _waits_for_a_lock():
    with open("/proc/locks") as locks:
        return any(f" {os.getpid()} " in line and "->" in line for line in locks)


def clean(*words, **options):
    command = [*options.pop("prefix", ()), sys.executable, "-m", "physview", "vm", "clean", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_command(folder):
    listed = clean("--dry-run").stdout.splitlines()
    assert listed[0].endswith(f"{GONE}: its kernel is gone")
    assert listed[1].endswith(f" stay in {folder}")
    assert (folder / GONE).exists()
    told = json.loads(clean("--older-than", "0", "--json").stdout)
    assert {each["path"] for each in told["removed"]} == {GONE, *CLEANED}
    assert told["is_dry_run"] is False
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {*KEPT, *(f"{name}/file" for name in LEFT)}
    assert not (folder / "modules/5.9.9-9-amd64").exists()
    assert clean().stdout.startswith("nothing was removed; ")


def test_a_wrong_use_and_a_cache_of_others(folder, tmp_path):
    assert "vm clean takes no name" in one_line(clean("x"), 2)
    assert "vm clean takes no --idle" in one_line(clean("--idle", "3"), 2)
    folder.chmod(0o777)
    assert "users other than root and you may write" in one_line(clean("--older-than", "0"), 1)
    assert (folder / GONE).exists()


@pytest.mark.needs("nobody")
def test_nobody_removes_nothing_of_root(folder, tmp_path):
    tmp_path.chmod(0o755)
    refused = one_line(clean(prefix=AS_NOBODY, cwd="/"), 1)
    assert "cannot" in refused
    assert (folder / GONE).exists()
