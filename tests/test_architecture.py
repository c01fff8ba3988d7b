# SPDX-License-Identifier: GPL-2.0-or-later
"""The layout is the architecture: imports go one way, and what is said twice agrees."""

import ast
import re

import pytest
from conftest import ROOT

import physview

PACKAGE = ROOT / "physview"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a module may import of the package; a name ending in "." stands for all below it.
LAYERS = {
    "quoting": [],
    "output": ["quoting"],
    "errors": ["quoting"],
    "model": ["quoting"],
    "invocation": [],
    "digits": [],
    "resource_limits": [],
    "proc_mount": ["invocation"],
    "proctext": [],
    "filesystems": [],
    "caller": ["digits", "errors"],
    "child_python": ["errors", "invocation"],
    "_ffi": ["_native", "errors", "invocation", "resource_limits"],
    "procfs": ["errors", "model", "proc_mount", "proctext", "resource_limits"],
    "pagemap": ["_ffi", "model", "procfs"],
    "reference": ["errors", "model", "procfs"],
    "probes": ["_ffi", "errors", "model"],
    "columns": ["model"],
    "extents": ["_ffi", "model", "pagemap", "procfs"],
    "kpage": ["_ffi", "errors", "model", "proc_mount"],
    "flags": ["errors", "kpage"],
    "topology": ["filesystems", "machine", "model", "proctext"],
    "rows": ["extents", "model"],
    "snapshot": ["errors", "extents", "flags", "kpage", "model", "procfs", "rows", "topology"],
    "install_advice": ["invocation"],
    "extras": ["errors", "install_advice", "resource_limits"],
    "private_groups": [],
    "targets": ["caller", "errors", "private_groups"],
    "wholefile": ["caller", "errors", "targets"],
    "thrift": [],
    "parquet_input": ["extras", "thrift"],
    "snapshot_check": ["machine", "model", "rows", "thrift"],
    "snapshot_file": ["", "errors", "extras", "invocation", "kpage", "machine", "model",
                      "parquet_input", "resource_limits", "rows", "snapshot", "snapshot_check",
                      "snapshot_tables", "thrift", "wholefile"],
    "snapshot_tables": ["kpage", "model", "quoting", "rows", "topology"],
    "machine": ["errors", "model", "proctext"],
    "frames": ["_ffi", "kpage", "machine", "model"],
    "owners": ["_ffi", "errors", "extents", "frames", "kpage", "machine", "model", "procfs"],
    "filecache": ["_ffi", "errors", "invocation", "kpage", "model"],
    "lookup": ["digits", "errors", "proc_mount"],
    "terminal": [],
    "kmod": ["errors", "invocation", "model", "procfs"],
    "module": ["errors", "invocation", "kmod", "proc_mount", "proctext"],
    "kernels.": ["analysis.", "errors", "invocation", "kernels.", "private_groups"],
    "vm.": ["analysis.", "child_python", "errors", "invocation", "kernels.", "output",
            "proc_mount", "vm."],
    "tracing.": ["errors", "filesystems", "invocation", "procfs", "proctext", "tracing."],
    "process": ["_ffi", "columns", "errors", "kmod", "model", "pagemap", "procfs", "reference"],
    "analysis.": ["_ffi", "analysis.", "errors", "extents", "extras", "flags", "invocation",
                  "kmod", "kpage", "machine", "model", "owners", "pagemap", "proc_mount",
                  "process", "procfs", "proctext", "rows", "snapshot", "snapshot_file",
                  "topology", "tracing."],
    "reporters.": ["analysis.", "filecache", "flags", "frames", "invocation", "kpage", "labs.",
                   "machine", "model", "output", "owners", "pictures.", "quoting", "reporters.",
                   "snapshot_file", "tracing."],
    "commands.": ["", "_ffi", "analysis.", "child_python", "commands.", "digits", "errors",
                  "filecache", "flags", "frames", "invocation", "kernels.", "kmod", "labs.",
                  "lookup", "machine", "model", "module", "output", "owners", "pictures.",
                  "probes", "proc_mount", "process", "procfs", "quoting", "reference",
                  "reporters.", "resource_limits", "rows", "snapshot", "snapshot_file",
                  "terminal", "topology", "tracing.", "vm.", "wholefile"],
    "labs.": ["_ffi", "analysis.", "child_python", "errors", "filecache", "frames", "invocation",
              "kmod", "kpage", "labs.", "machine", "model", "probes", "proc_mount", "process",
              "procfs", "proctext", "topology"],
    "pictures.": ["_ffi", "analysis.", "errors", "extents", "extras", "flags", "frames",
                  "invocation", "kpage", "machine", "model", "pictures.", "procfs", "reporters.",
                  "rows", "snapshot", "snapshot_file", "wholefile"],
    "__main__": ["commands.", "invocation", "resource_limits"],
    "": ["analysis.", "columns", "errors", "filecache", "flags", "frames", "model", "owners",
         "probes", "process", "snapshot", "snapshot_file", "tracing."],
}  # fmt: skip


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__")


def imports_of(path):
    """The modules of the package that a file imports, without the leading "physview."."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "physview":
            base = node.module.removeprefix("physview").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                as_file = PACKAGE / f"{full.replace('.', '/')}.py"
                is_module = as_file.exists() or full == "_native"
                yield (
                    full
                    if is_module
                    else base + ("." if (PACKAGE / base).is_dir() and base else "")
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "physview":
                    yield alias.name.removeprefix("physview").removeprefix(".")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    name = module_name(path)
    layer = next(
        key for key in LAYERS if name == key or (key.endswith(".") and name.startswith(key))
    )
    for imported in imports_of(path):
        allowed = any(
            imported == rule or (rule.endswith(".") and imported.startswith(rule))
            for rule in LAYERS[layer]
        )
        assert allowed, f"{name or 'physview'} may not import {imported or 'physview'}"


def test_only_the_door_imports_the_core():
    who = [path.name for path in FILES if "_native" in set(imports_of(path))]
    assert who == ["_ffi.py"]


@pytest.mark.parametrize("path", [*FILES, *(ROOT / "csrc").glob("*.[ch]")], ids=str)
def test_no_file_outgrows_its_idea(path):
    assert len(path.read_text().splitlines()) <= 500


def test_setup_py_only_names_the_core():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 30


def test_the_version_is_one():
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{physview.__version__}"' in pyproject
    assert f"## {physview.__version__}" in (ROOT / "CHANGELOG.md").read_text()


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
