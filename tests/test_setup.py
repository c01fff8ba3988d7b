# SPDX-License-Identifier: GPL-2.0-or-later
"""The scripts' set-up and messages; they run nothing from the caller's working directory."""

import ast
import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile

import pytest
from paths import NOT_COPIED, ROOT
from users import AS_NOBODY

SCRIPTS = ROOT / "scripts"
SHELL = [*(p for p in SCRIPTS.iterdir() if p.is_file() and not p.suffix), SCRIPTS / "setup.sh"]
SHELL += [*(ROOT / "tests/vm").glob("*.sh"), ROOT / ".ci/run"]
# What set-up and the commands import, besides the standard library.
PACKAGES = (
    *("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "distutils", "build_ffi"),
    *(
        "cffi",
        "_cffi_backend",
        "pycparser",
        "numpy",
        "psutil",
        "rich",
        "pyarrow",
        "PIL",
        "physview",
    ),
    *("sitecustomize", "usercustomize"),
)
# What the scripts start, so that a PATH can be made without the rest.
PROGRAMS = (
    *(
        "cat",
        "cut",
        "dirname",
        "env",
        "find",
        "flock",
        "getent",
        "grep",
        "head",
        "id",
        "ls",
        "make",
    ),
    *("mktemp", "readlink", "rm", "sed", "setpriv", "sh", "sort", "stat", "tail", "tar", "touch"),
    *("test", "uname", "unshare", "mount", "gcc", "dpkg-deb", "apt-cache"),
)


@pytest.fixture
def checkout(open_folder):
    """A copy of the checkout without any set-up, which its owner can write to."""
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(ROOT, open_folder / "physview", ignore=ignore)
    return open_folder / "physview"


def write_program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path):
    """A folder for PATH with few programs, and an apt-get that records its arguments and fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    write_program(folder / "apt-get", f'echo "$@" >>{tmp_path}/apt; echo E: nothing; exit 100')
    return folder


def call(checkout, code, *, prefix=(), **environment):
    """Run shell code after scripts/setup.sh, as the scripts of the checkout do."""
    script = f'set -eu\n. "${{0%/*}}/setup.sh"\n{code}'
    return subprocess.run(
        [*prefix, "sh", "-c", script, str(checkout / "scripts/run")],
        env=os.environ | environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def lay_traps(folder, mark):
    """Fill a folder with modules and programs of many names. Each writes its name if it runs."""
    for name in {*sys.stdlib_module_names, *PACKAGES}:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + '.py\\n')\n")
    write_program(folder / "trap", f'echo "$0" >>{mark}')
    for path in ("/usr/bin", "/bin", "/usr/sbin", "/sbin", sys.prefix + "/bin"):
        for name in os.listdir(path):
            if not (folder / name).exists():
                (folder / name).symlink_to("trap")


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.needs("index", "cc")
def test_nothing_of_a_folder_full_of_traps_runs(checkout, open_folder):
    """The first set-up, and a command that writes a file into the working directory."""
    # What takes most of the time makes no difference here: packages that snapshot does not use, and
    # how fast the core is.
    replace(checkout / "scripts/setup.sh", "[exporter,fleet,parquet,picture]", "[parquet]")
    replace(checkout / "csrc/build_ffi.py", "-O3", "-O0")
    mark, traps, home = (open_folder / name for name in ("mark", "traps", "home"))
    traps.mkdir()
    home.mkdir()
    lay_traps(traps, mark)
    cache = os.environ.get("PIP_CACHE_DIR", os.path.expanduser("~/.cache/pip"))
    environment = os.environ | {
        "PATH": f".:{os.environ['PATH']}::{traps.name}",
        **dict.fromkeys(("PYTHONPATH", "PYTHONUSERBASE", "CDPATH"), str(traps)),
        "PYTHONSTARTUP": str(traps / "os.py"),
        "ENV": str(traps / "trap"),
        "HOME": str(home),
        "PIP_CACHE_DIR": cache,
        "PIP_NO_COMPILE": "1",
        "CFLAGS": "-g0",
    }
    for name in ("first.parquet", "second.parquet"):
        result = subprocess.run(
            [checkout / "scripts/run", "snapshot", "self", "-o", name],
            cwd=traps,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert not mark.exists(), sorted(set(mark.read_text().split()))
        assert result.returncode == 0, result.stderr
        assert (traps / name).read_bytes()[:4] == b"PAR1"
    assert (checkout / ".venv/.physview-run").exists()


def test_no_script_starts_python_where_it_takes_modules_from_the_folder():
    """Shell scripts use `python -I`, or the full path of a Python script, whose folder is first."""
    start = re.compile(r"""^[^#]*(\bpython[\d.]*|\$\{?python\}?)"? +(?!-I\b)--?[a-zA-Z]""")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in SHELL
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if start.search(line)
    ]
    assert found == []
    assert start.search('as_owner "$venv/bin/python" -m pip')
    assert start.search('"$python" --version')
    assert not start.search('"$bin/python" -I -m compileall')


def test_no_script_in_python_starts_another_that_takes_modules_from_the_folder():
    for path in SCRIPTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple):
                words = node.elts
            elif isinstance(node, ast.Call):
                words = node.args
            else:
                continue
            texts = [ast.unparse(word) for word in words]
            for this, after in itertools.pairwise(texts):
                if this in ("sys.executable", "'python3'"):
                    assert after in ("'-I'", "__file__", "'python3'"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (".:/usr/bin:/bin", "/usr/bin:/bin"),
        ("/usr/bin::/bin:", "/usr/bin:/bin"),
        ("here:/usr/bin:../bin", "/usr/bin"),
        ("/a b:/usr/bin", "/a b:/usr/bin"),
        ("", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ],
)
def test_path_has_whole_paths_only(path, kept):
    result = call(ROOT, f"whole_paths '{path}'")
    assert result.stdout == f"{kept}\n"


def test_a_python_that_cannot_be_used_is_named_and_apt_left_alone(checkout, programs, tmp_path):
    result = call(checkout, "setup run", PHYSVIEW_PYTHON="/nonexistent/python3", PATH=str(programs))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("physview: PHYSVIEW_PYTHON=/nonexistent/python3 cannot be used")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "apt").exists()


@pytest.mark.needs("mountns")
def test_a_system_s_python_that_is_too_old_is_said_and_apt_left_alone(checkout, programs, tmp_path):
    """As on Debian 11: apt has no newer Python, so each call would run apt in vain."""
    old = tmp_path / "python3"
    write_program(old, 'case "$*" in *--version) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    there = f'mount --bind {old} /usr/bin/python3 && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", there, "sh"]
    environment = {"PATH": str(programs), "PHYSVIEW_PYTHON": ""}
    result = call(checkout, "setup run", prefix=prefix, **environment)
    assert result.stderr == (
        "physview: Python 3.9.2 (/usr/bin/python3) is too old: physview needs Python 3.10 or later;"
        " install one with its headers, and run PHYSVIEW_PYTHON=/path/to/python3.12 ./scripts/run\n"
    )  # sudo is not in this PATH
    assert result.returncode == 1
    assert not (tmp_path / "apt").exists()


def test_what_apt_prints_is_shown_only_where_it_fails(programs):
    # With a proxy, a machine has a network for set-up, whatever this one has.
    network = {"PATH": str(programs), "http_proxy": "http://127.0.0.1:1"}
    failed = call(ROOT, "apt_install xz-utils || echo went on", **network)
    assert failed.stdout == "went on\n"
    assert failed.stderr == (
        "physview: installing xz-utils\nE: nothing\nphysview: apt-get could not update its lists\n"
        "E: nothing\nphysview: apt-get could not install xz-utils: see above\n"
    )
    write_program(programs / "apt-get", "echo debconf: unable to initialize frontend >&2")
    fine = call(ROOT, "apt_install xz-utils", **network)
    assert (fine.returncode, fine.stderr) == (0, "physview: installing xz-utils\n")


def test_apt_takes_nothing_unsigned(programs, tmp_path):
    call(ROOT, "apt_install xz-utils", PATH=str(programs))
    for line in (tmp_path / "apt").read_text().splitlines():
        assert "APT::Get::AllowUnauthenticated=false" in line
        assert "Acquire::AllowInsecureRepositories=false" in line


@pytest.mark.needs("root", "cc")  # set-up wants a compiler
def test_peers_are_not_fetched_where_xz_is_missing(programs, tmp_path):
    assert not (programs / "xz").exists()
    assert call(ROOT, "setup run").returncode == 0  # it is up to date then, and does nothing
    result = subprocess.run(
        [SCRIPTS / "fetch-peers"],
        env=os.environ | {"PATH": str(programs), "PHYSVIEW_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "physview: page-types and thpmaps cannot be built without xz: install it"
    )
    assert "install -y --no-install-recommends xz-utils\n" in (tmp_path / "apt").read_text()
    assert "download" not in (tmp_path / "apt").read_text()


@pytest.mark.needs("nobody")
def test_what_sudo_pip_left_is_removed_by_root_and_named_to_others(checkout):
    """`sudo pip install .` in a user's checkout leaves folders that only root can write to."""
    for path in [checkout, *checkout.rglob("*")]:
        os.chown(path, 65534, 65534)
    left = [checkout / name for name in ("build", "physview.egg-info")]
    for folder in left:
        folder.mkdir(mode=0o755)
        (folder / "file").touch()
    result = call(checkout, "remove_closed_folders", prefix=AS_NOBODY)
    assert result.returncode == 1
    assert result.stderr == (
        f"physview: cannot build: {left[0]} belongs to another user, as after sudo pip install;"
        f" remove it as root: rm -r {left[0]}\n"
    )
    assert call(checkout, "remove_closed_folders").returncode == 0
    assert not any(folder.exists() for folder in left)
    left[0].mkdir()
    os.chown(left[0], 65534, 65534)
    assert call(checkout, "remove_closed_folders").stderr == ""
    assert left[0].exists()


@pytest.mark.parametrize(
    "name", ["build-kernel", "bundle", "fetch-peers", "test", "wheels", "zipapp"]
)
def test_help_of_a_script_is_its_comment_and_nothing_is_done(tmp_path, name):
    result = subprocess.run(
        [SCRIPTS / name, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    comment = (SCRIPTS / name).read_text().splitlines()[1 : len(lines) + 2]
    assert comment == [*(f"# {line}" for line in lines), "set -eu"]
    assert not os.listdir(tmp_path)


OFFLINE = {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_NO_INDEX": ""}
PIP = f"venv={sys.prefix}; pip_install --target /nonexistent no-such-package-{os.getpid()}"


@pytest.mark.needs("mountns")  # who may make these namespaces may make one for the network
@pytest.mark.parametrize("bundle", [False, True])
def test_without_a_network_there_is_one_line_at_once(checkout, bundle):
    why = "there is no network; on a machine that has one, ./scripts/bundle makes"
    if bundle:
        (checkout / "bundle/wheels").mkdir(parents=True)
        (checkout / "bundle/contents").write_text("Python 3.1 on vax\n")
        why = "there is no network, and the bundle, for Python 3.1 on vax, has not all that this"
    result = call(checkout, PIP, prefix=["unshare", "--net"], **OFFLINE)
    assert result.returncode == 1
    assert result.stderr.startswith(f"physview: cannot install what physview needs: {why}")
    assert result.stderr.count("\n") == 1


@pytest.mark.needs("mountns", "cc")  # set-up wants a compiler
def test_without_a_network_no_environment_is_made_in_vain(checkout):
    """Making one takes seconds, and pip then finds nothing to put into it."""
    result = call(
        checkout, "setup run", prefix=["unshare", "--net"], HOME="/nonexistent", **OFFLINE
    )
    assert result.returncode == 1
    assert result.stderr.startswith("physview: cannot install what physview needs: there is no net")
    assert result.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_an_index_that_cannot_be_reached_is_one_line(checkout):
    index = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "1"}
    result = call(checkout, PIP, **OFFLINE | index)
    assert result.returncode == 1
    assert "pip cannot reach its index" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.needs("mountns")
def test_without_a_network_a_bundle_has_the_wheels(checkout):
    wheels = checkout / "bundle/wheels"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "bundled-1-py3-none-any.whl", "w") as archive:
        archive.writestr("bundled.py", "")
        metadata = "Metadata-Version: 2.1\nName: bundled\nVersion: 1\n"
        archive.writestr("bundled-1.dist-info/METADATA", metadata)
        archive.writestr("bundled-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("bundled-1.dist-info/RECORD", "")
    code = f"venv={sys.prefix}; pip_install --target {checkout}/target bundled"
    result = call(checkout, code, prefix=["unshare", "--net"], **OFFLINE)
    assert result.returncode == 0, result.stderr
    assert (checkout / "target/bundled.py").exists()


def test_the_kernels_of_a_bundle_go_into_the_cache_once(checkout, tmp_path):
    packed = tmp_path / "6.1.0-1-amd64/usr"
    packed.mkdir(parents=True)
    (checkout / "bundle/cache/kernels").mkdir(parents=True)
    archive = checkout / "bundle/cache/kernels/6.1.0-1-amd64.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", archive, "6.1.0-1-amd64"], check=True)
    cache = tmp_path / "cache"
    for said in (f"physview: unpacking 6.1.0-1-amd64 into {cache}/kernels\n", ""):
        code = f"venv={sys.prefix}; take_bundled_cache"
        result = call(checkout, code, PHYSVIEW_CACHE=str(cache))
        assert (result.returncode, result.stderr) == (0, said)
        assert [path.name for path in (cache / "kernels").iterdir()] == ["6.1.0-1-amd64"]
    archive.write_bytes(b"broken")
    shutil.rmtree(cache)
    result = call(checkout, code, PHYSVIEW_CACHE=str(cache))
    assert "going on without 6.1.0-1-amd64" in result.stderr
    assert list((cache / "kernels").iterdir()) == []


def test_the_list_of_scripts_is_complete():
    """The lists above name every script, and each script includes setup.sh."""
    for path in SCRIPTS.iterdir():
        if path.is_file() and os.stat(path).st_mode & stat.S_IXUSR:
            assert path in SHELL
            assert path.read_text().startswith("#!/bin/sh\n")
            assert '. "${self%/*}/setup.sh"\n' in path.read_text()
