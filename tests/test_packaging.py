# SPDX-License-Identifier: GPL-2.0-or-later
"""The sdist is complete, and the wheel built from it works in an empty environment."""

import functools
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import detect
import published_readme
import pytest
from paths import NOT_COPIED, ROOT

import physview
from physview.commands import COMMANDS

pytestmark = pytest.mark.needs("index", "cc")

VERSION = "import sys; print(*sys.version_info[:2])"


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@functools.cache
def pythons():
    """The Python interpreters on this machine that physview supports, by version."""
    found = {}
    names = [f"python3.{minor}" for minor in range(10, 30)]
    paths = [shutil.which(name) for name in names]
    paths += glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3"))
    paths += glob.glob("/opt/hostedtoolcache/Python/*/x64/bin/python3")
    for path in [sys.executable, *filter(None, paths)]:
        result = subprocess.run([path, "-c", VERSION], capture_output=True, text=True, check=False)
        version = tuple(map(int, result.stdout.split()))
        if result.returncode == 0 and version >= (3, 10):
            found.setdefault(version, path)
    return dict(sorted(found.items()))


def install(python, folder, wheel, *options):
    """Make an environment and install the wheel.

    Most of the time would be for an own pip, which only another Python needs here, and for
    compiling NumPy, of which little is used.
    """
    is_own = python == sys.executable
    run(python, "-m", "venv", *(["--without-pip"] if is_own else []), folder)
    pip = [folder / "bin/python", "-m", "pip"]
    if is_own:
        pip = [python, "-m", "pip", "--python", folder / "bin/python"]
    run(*pip, "install", "-q", "--prefer-binary", "--no-compile", *options, wheel, cwd=folder)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    # A copy without what building and testing leave in a checkout: what is in the sdist is in git.
    source = tmp_path_factory.mktemp("source") / "physview"
    ignore = shutil.ignore_patterns(*NOT_COPIED)
    shutil.copytree(ROOT, source, ignore=ignore)
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", out, source)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    work = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(work, **({"filter": "data"} if sys.version_info >= (3, 12) else {}))
    source = next(work.glob("physview-*"))
    log = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", work, source)
    assert "absent from the `packages`" not in log  # setuptools will leave such folders out one day
    return next(work.glob("*.whl"))


def test_the_sdist_is_complete(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {
        *["csrc/cdef.h", "csrc/physview.h", "csrc/pagemap.c", "csrc/probes.c", "csrc/build_ffi.py"],
        *["scripts/run", "scripts/test", "scripts/setup.sh", "scripts/bench", "tests/conftest.py"],
        *[".ci/run", ".github/workflows/ci.yml", "scripts/ci/fresh", "scripts/ci/lib.sh"],
        *["csrc/course/memview2.c", "csrc/course/Makefile", "tests/test_course.py"],
        *["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/json.md"],
        *["csrc/arrow.c", "docs/python.md", "docs/notebook.ipynb"],
        *["physview/py.typed", "physview/_native.pyi", "setup.py", "pyproject.toml"],
    }
    assert expected <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "/memview2"))]


def test_the_wheel_is_one_for_all(wheel):
    assert re.search(r"-cp310-abi3-linux_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "physview/_native.abi3.so" in names
    assert "physview/py.typed" in names
    for source in ("Kbuild", "Makefile", "main.c", "walk.c", "compat.h", "uapi/physicalview.h"):
        assert f"physview/kmod_source/{source}" in names
    for source in ("page.html", "page.css", "data.js", "links.js", "view.js", "page.js"):
        assert f"physview/pictures/{source}" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "physview").rglob("*.py")}
    assert modules <= set(names)
    assert not [name for name in names if name.startswith(("tests", "csrc"))]
    data = f"physview-{physview.__version__}.data/data/share"
    for path in (
        "man/man1/physview.1",
        "man/man1/physview-maps.1",
        "bash-completion/completions/physview",
        "zsh/site-functions/_physview",
        "fish/vendor_completions.d/physview.fish",
    ):
        assert f"{data}/{path}" in names


def test_the_wheel_has_no_file_twice_and_no_link_that_leads_nowhere(wheel):
    """Completions are in the package; what shells find below share only loads them."""
    with zipfile.ZipFile(wheel) as archive:
        sums = [info.CRC for info in archive.infolist() if info.file_size]
        metadata = archive.read(f"physview-{physview.__version__}.dist-info/METADATA").decode()
    assert len(set(sums)) == len(sums)
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    assert all(link.startswith("https://") for link in links), links
    assert "Author: " in metadata


def test_published_links_lead_to_the_repository_where_its_address_is_known():
    text = "<!-- x -->\n[a](docs/a.md) [b](#b) ![c](c.svg) [d](https://d)"
    base = "https://host/owner/name"
    assert published_readme.publish(text, base, "1") == (
        f"[a]({base}/blob/v1/docs/a.md) [b]({base}/blob/v1/README.md#b) ![c]({base}/raw/v1/c.svg)"
        " [d](https://d)"
    )
    assert published_readme.publish(text, "", "1") == "a b  [d](https://d)"


def test_a_build_without_a_compiler_says_so_in_one_line(tmp_path):
    """pip builds the sdist where there is no wheel, and shows what setup.py prints."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", tmp_path]
    for compiler, what in (
        ("/nowhere/cc -pthread", "a C compiler (/nowhere/cc)"),
        ("cc -nostdinc", "the headers of the C library and of Linux"),
    ):
        environment = os.environ | {"CC": compiler}
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        line = result.stderr.splitlines()[-1]
        assert line.startswith("physview: the core of physview is written in C, and cannot be")
        assert f"without {what}; to install what a build needs: apt-get install gcc " in line
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_the_wheel_runs_the_report_in_an_empty_environment(wheel, tmp_path, which):
    versions = pythons()
    python = versions[min(versions) if which == "oldest" else max(versions)]
    if which == "newest" and len(versions) == 1:
        pytest.skip("one Python here: the newest is the oldest, in which it was run")
    install(python, tmp_path / "venv", wheel)
    program = tmp_path / "venv/bin/physview"
    assert (tmp_path / "venv/share/man/man1/physview.1").exists()
    assert "complete -" in run(program, "completion", "bash", cwd="/")
    file = tmp_path / "venv/share/bash-completion/completions/physview"
    path = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    loaded = run("bash", "-c", f". {file}; complete -p physview", env=path, cwd="/")
    assert loaded.startswith("complete -")
    result = subprocess.run(
        [program, "memview"], capture_output=True, text=True, cwd="/", check=False
    )
    assert len(result.stdout.splitlines()) == 41, result.stderr
    assert result.returncode == ("UNKNOWN" in result.stdout)
    if detect.can_walk_by_bpf():  # the wheel has the BPF program, ready to load: no tool is needed
        first = Path("/proc/self/maps").read_text().partition("-")[0]
        walk = [program, "walk", str(os.getpid()), f"0x{first}", "--source", "bpf"]
        assert " pte " in run(*walk, cwd="/", env={"PATH": "/nowhere"})
    code = "import physview; print(physview.__file__)"
    where = run(tmp_path / "venv/bin/python", "-c", code, cwd="/")
    assert where.startswith(str(tmp_path))


@pytest.mark.needs("man")
def test_man_finds_the_pages_of_an_environment_in_path(wheel, tmp_path):
    install(sys.executable, tmp_path / "venv", wheel, "--no-deps")
    names = ["physview", *(f"physview-{name}" for name in COMMANDS)]
    path = f"{tmp_path}/venv/bin:{os.environ['PATH']}"
    found = run("man", "-w", *names, cwd="/", env=os.environ | {"PATH": path})
    assert found.split() == [f"{tmp_path}/venv/share/man/man1/{name}.1" for name in names]
    found = run("man", "-M", f"{tmp_path}/venv/share/man", "-w", "physview", cwd="/")
    assert found == f"{tmp_path}/venv/share/man/man1/physview.1\n"


@pytest.mark.parametrize("tool", ["uv tool install", "pipx install"])
def test_the_line_for_missing_packages_works_where_there_is_no_pip(wheel, tmp_path, tool):
    tools = f"{sys.prefix}/bin"
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{tools}:{os.environ['PATH']}",
        **dict.fromkeys(("UV_TOOL_DIR", "PIPX_HOME"), f"{tmp_path}/tools"),
        **dict.fromkeys(("UV_TOOL_BIN_DIR", "PIPX_BIN_DIR"), f"{tmp_path}/bin"),
        **dict.fromkeys(("PIPX_MAN_DIR", "PIPX_COMPLETION_DIR"), f"{tmp_path}/share"),
    }

    def packages():
        doctor = subprocess.run(
            [tmp_path / "bin/physview", "doctor", "--json"],
            capture_output=True, text=True, env=environment, cwd="/", check=False,
        )  # fmt: skip
        findings = json.loads(doctor.stdout)["findings"]
        return next(finding for finding in findings if finding["name"] == "packages")

    run(*tool.split(), "--python", sys.executable, wheel, env=environment, cwd=tmp_path)
    if tool == "pipx install":
        assert (tmp_path / "share/man1/physview.1").exists()
    before = packages()
    assert before["state"] == "part"
    assert before["remedy"].startswith(tool.replace("pipx install", "pipx inject physview "))
    run("sh", "-c", before["remedy"], env=environment, cwd=tmp_path)
    assert packages()["state"] == "yes"
