# SPDX-License-Identifier: GPL-2.0-or-later
"""The one file that scripts/zipapp makes: how it unpacks itself, and who could interfere.

Here its parts are this environment's own packages. `scripts/test --packages` tries a real one.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import zipapp_main
from paths import ROOT
from users import AS_NOBODY

PACK = ROOT / "scripts/zipapp_pack.py"


def zip_files(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in files:
            archive.write(file, name)
    return path


def package_files():
    files = [path for path in (ROOT / "physview").rglob("*") if path.is_file()]
    return [(str(path.relative_to(ROOT)), path) for path in files if path.suffix != ".pyc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that all users can enter, with physview.pyz, and one that is for no Python."""
    work = tmp_path_factory.mktemp("zipapp")
    for parent in (work, work.parent):
        parent.chmod(0o755)
    wheel = zip_files(work / "physview.whl", package_files())
    parts = work / zipapp_main._name()
    parts.mkdir()
    shutil.copy(wheel, parts)
    cffi = Path(find_spec("cffi").origin).parent
    backend = Path(find_spec("_cffi_backend").origin)
    files = [(f"cffi/{path.name}", path) for path in cffi.glob("*.py")]
    zip_files(parts / "cffi.whl", [*files, (backend.name, backend)])
    (work / "cp310-vax").mkdir()
    for name, one in (("physview.pyz", parts), ("other.pyz", work / "cp310-vax")):
        subprocess.run([sys.executable, PACK, work / name, wheel, one], check=True)
    return work


def run(folder, *args, name="physview.pyz", prefix=(), **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [*prefix, sys.executable, "-I", folder / name, *args],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip


def parts_in(home):
    return list((home / ".cache/physview/zipapp").iterdir())


def test_it_unpacks_itself_once_and_runs(folder, tmp_path):
    first = run(folder, "memview", "--virtual", HOME=str(tmp_path))
    assert (first.returncode, len(first.stdout.splitlines())) == (0, 41), first.stderr
    (parts,) = parts_in(tmp_path)
    before = parts.stat().st_ctime_ns
    again = run(folder, "memview", "--virtual", "--repeat", "2", "--json", HOME=str(tmp_path))
    assert again.returncode == 0, again.stderr  # children find what they need, too
    assert parts.stat().st_ctime_ns == before
    assert parts_in(tmp_path) == [parts]


def test_a_vm_finds_the_command(folder, tmp_path):
    assert run(folder, "memview", "--virtual", HOME=str(tmp_path)).returncode == 0
    (parts,) = parts_in(tmp_path)
    result = subprocess.run(
        [parts / "bin/physview", "memview", "--virtual"], cwd="/", capture_output=True, check=True
    )
    assert result.stdout.count(b"\n") == 41


def test_its_packages_are_used_and_not_those_of_the_machine(folder, tmp_path):
    result = run(folder, "maps", "self", "--json", HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    (parts,) = parts_in(tmp_path)
    assert f"{parts}/_cffi_backend" in result.stdout
    assert "-packages/" not in result.stdout


def test_folders_that_a_pth_file_names_are_not_used(folder, tmp_path):
    """As those of a package that is installed as editable."""
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    for name in ("physview", "cffi", "_cffi_backend"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    (packages / "other.pth").write_text(f"{tmp_path}\n")
    python = [tmp_path / "venv/bin/python", "-I"]
    imported = subprocess.run([*python, "-c", "import cffi"], capture_output=True, check=False)
    assert imported.stderr == b"not this one\n"
    result = subprocess.run(
        [*python, folder / "physview.pyz", "maps", "self", "--json"],
        env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    (parts,) = parts_in(tmp_path)
    assert f"{parts}/_cffi_backend" in result.stdout


def test_a_missing_package_is_not_for_pip(folder, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]);"
    code += "from physview.runtime import install_advice;"
    code += "print(install_advice.install_line(['pyarrow'], ['parquet']))"
    assert run(folder, "memview", "--virtual", HOME=str(tmp_path)).returncode == 0
    command = ["/usr/bin/python3", "-I", "-c", code, *parts_in(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "in a checkout: ./scripts/zipapp --extras parquet\n"


@pytest.mark.needs("root", "nobody")
def test_a_user_is_told_to_run_the_file_as_root(folder, open_folder):
    for name in ("physview.pyz", "not-executable/physview.pyz"):
        path = open_folder / name
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / "physview.pyz", path)
        path.chmod(0o755 if path.parent == open_folder else 0o644)
        result = run(open_folder, "memview", name=name, prefix=AS_NOBODY, HOME=str(open_folder))
        line = f"{path} memview"
        if name != "physview.pyz":
            line = f"{sys.executable} -I {line}"
        assert result.stderr.splitlines()[-1].endswith((f": {line}", f"sudo {line}")), result.stderr


def test_parts_are_nobody_else_s_to_change_whatever_the_umask(folder, tmp_path):
    script = 'umask 0; exec "$@"'
    result = run(
        folder, "memview", "--virtual", prefix=["sh", "-c", script, "-"], HOME=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    for path in (tmp_path / ".cache").rglob("*"):
        assert path.stat().st_mode & 0o022 == 0, path


@pytest.mark.needs("root")
def test_root_runs_nothing_from_a_cache_that_a_user_may_change(folder, tmp_path):
    run(folder, "memview", "--virtual", HOME=str(tmp_path))
    (parts,) = parts_in(tmp_path)
    (parts / "physview/errors.py").write_text("import sys; sys.exit('taken over')")
    os.chown(parts, 65534, 65534)
    result = run(folder, "memview", "--virtual", HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith("physview: cannot unpack to ")
    assert "taken over" not in result.stderr
    assert "set PHYSVIEW_CACHE" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.needs("root")
def test_under_sudo_the_parts_are_below_root_s_home(folder, tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]);"
    code += "import zipapp_main; print(zipapp_main._cache())"
    for variables, expected in (
        ({"SUDO_UID": "65534", "HOME": str(tmp_path)}, "/root/.cache/physview"),
        ({"HOME": ""}, "/root/.cache/physview"),
        ({"HOME": str(tmp_path)}, f"{tmp_path}/.cache/physview"),
        ({"HOME": "/", "XDG_CACHE_HOME": "relative"}, "//.cache/physview"),
    ):
        command = [sys.executable, "-c", code, ROOT / "scripts"]
        found = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected


def test_what_was_half_unpacked_is_not_used(folder, tmp_path):
    limit = ["sh", "-c", 'ulimit -f 100; exec "$@"', "-"]  # as on a full disk
    result = run(folder, "memview", "--virtual", prefix=limit, HOME=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert parts_in(tmp_path) == []
    assert run(folder, "memview", "--virtual", HOME=str(tmp_path)).returncode == 0


def test_a_python_without_parts_is_told_which_there_are(folder, tmp_path):
    result = run(folder, "memview", name="other.pyz", HOME=str(tmp_path))
    assert result.returncode == 1
    assert "it has cp310-vax; use such a Python" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_parts_of_another_c_library_are_not_taken(monkeypatch):
    """Parts for glibc do not load in a Python for musl, so their names differ."""
    names = set()
    for system in ("x86_64-pc-linux-gnu", "x86_64-alpine-linux-musl", None):
        values = {"HOST_GNU_TYPE": system, "Py_GIL_DISABLED": 0}
        monkeypatch.setattr(zipapp_main.sysconfig, "get_config_var", values.get)
        names.add(zipapp_main._name())
    assert len(names) == 2
    assert {name.endswith("-musl") for name in names} == {False, True}
