# SPDX-License-Identifier: GPL-2.0-or-later
"""The layout is the architecture: imports go one way, and what is said twice agrees."""

import ast
import re

import pytest
from paths import ROOT

import physview

PACKAGE = ROOT / "physview"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms of the package from the lowest to the highest, each with the rooms that its modules may
# import. A room imports lower ones only, so no two import each other. BASE are modules on top.
BASE = ["text", "errors", "entry_rules", "model", "units"]
CORE = [*BASE, "files", "runtime", "_ffi", "sources"]
ROOMS = {
    "text": [],
    "errors": ["text"],
    "entry_rules": [],
    "model": ["text", "entry_rules"],
    "units": ["text", "model"],
    "files": BASE,
    "runtime": BASE,
    "_ffi": [*BASE, "_native", "runtime"],
    "sources": CORE,
    "memory": CORE,
    "parquet": [*CORE, "memory"],
    "process": [*CORE, "memory"],
    "frames": [*CORE, "memory"],
    "tracing": CORE,
    "analysis": [*CORE, "memory", "parquet", "process", "frames", "tracing"],
    "recording": [*CORE, "memory", "frames", "analysis"],
    "kernels": CORE,
    "vm": [*CORE, "kernels"],
    "system": [*CORE, "memory", "process", "tracing", "vm"],
    "labs": [*CORE, "memory", "process", "frames", "tracing", "analysis", "system", "kernels",
             "vm"],
    "pictures": [*CORE, "memory", "parquet", "frames", "analysis"],
    "api": [*CORE, "memory", "parquet", "process", "frames", "tracing", "analysis",
            "recording"],
    "exporter": [*CORE, "recording"],
    "fleet": [*CORE, "recording"],
    "reporters": [*CORE, "memory", "parquet", "frames", "tracing", "analysis", "recording", "fleet",
                  "system", "labs", "pictures"],
}  # fmt: skip
ROOMS["commands"] = list(ROOMS)
# The package itself: the public API, of which no module here makes use.
ROOMS[""] = [*CORE, "frames", "memory", "parquet", "process", "tracing", "analysis", "api",
             "pictures"]  # fmt: skip
ROOMS["__main__"] = ["runtime", "commands"]


def room_of(name):
    """The room of a module, or the module itself if it is on top. "" is the package."""
    return name.removeprefix("physview").removeprefix(".").split(".")[0]


def imports_of(path):
    """The modules and rooms of the package that a file imports, by their full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "physview":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                part = ROOT / full.replace(".", "/")
                is_module = part.is_dir() or part.with_suffix(".py").exists()
                yield full if is_module or alias.name == "_native" else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "physview")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")
    for imported in imports_of(path):
        if room_of(imported) != room:
            assert room_of(imported) in ROOMS[room], f"{room} may not import {imported}"


def test_each_room_imports_lower_rooms_only():
    lower = {"_native"}
    for room, imported in ROOMS.items():
        assert lower.issuperset(set(imported) - {room}), room
        lower.add(room)


def test_only_ffi_imports_native():
    who = [path.name for path in FILES if "physview._native" in set(imports_of(path))]
    assert who == ["_ffi.py"]


@pytest.mark.parametrize("path", [*FILES, *(ROOT / "csrc").glob("*.[ch]")], ids=str)
def test_no_file_is_too_long(path):
    assert len(path.read_text().splitlines()) <= 500


def test_setup_py_only_names_the_core():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 30


def test_the_version_is_one():
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{physview.__version__}"' in pyproject
    assert f"## {physview.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    places = {
        "csrc/kmod/dkms.conf": 'PACKAGE_VERSION="{}"',
        "csrc/kmod/main.c": 'MODULE_VERSION("{}")',
        "packaging/physview.spec": "Version:        {}\n",
    }
    for path, line in places.items():
        assert line.format(physview.__version__) in (ROOT / path).read_text()


def test_the_build_requirements_are_one():
    pyproject = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^requires = \[(.*)\]$", pyproject, re.MULTILINE).group(1)
    setup = (ROOT / "scripts/setup.sh").read_text()
    required = " ".join(re.findall('"(.*?)"', listed))
    assert f"build_requires='{required}'" in setup


def test_every_public_thing_has_a_docstring():
    for name in physview.__all__:
        thing = getattr(physview, name)
        if callable(thing):
            assert thing.__doc__, name
            for attribute, member in vars(thing).items():
                if callable(member) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute}"


def test_every_cause_and_member_of_the_documents_is_documented():
    from physview.reporters import documents

    text = (ROOT / "docs/json.md").read_text()
    for cause in physview.Cause:
        assert f"`{cause.value}`" in text
    page = physview.Translation(0x1000, None, physview.Cause.ABSENT, physview.PagemapEntry(0))
    gap = physview.Gap(0, 4096, physview.Cause.UNMAPPED, None)
    for member in {*documents.entry(page), *documents.gap(gap)}:
        assert f"`{member}`" in text, member
