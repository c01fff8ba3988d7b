# SPDX-License-Identifier: GPL-2.0-or-later
"""The documented commands that start a VM run and exit as shown."""

import re

import documented
import pytest
from failures import without_vm_note
from paths import ROOT
from shown_commands import run_as_shown

pytestmark = pytest.mark.needs("vm", "index", "cc", "kernels")

BLOCKS = [
    block
    for page in documented.PAGES
    for block in documented.blocks(page.read_text())
    if "vm" in block.needs
]
START = re.compile(r"^## Start here\n.*?^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_first_lines_of_the_readme_run():
    text = START.search((ROOT / "README.md").read_text())[1]
    lines = tuple(line.partition("  #")[0].rstrip() for line in text.splitlines())
    results = documented.run(documented.Block("here", lines, (0,) * len(lines)))
    report, by_bpf, compare, lab, picture, walk = results
    assert (report.code, compare.code, picture.code) == (0, 0, 0), results
    for each in (by_bpf, walk):
        assert each.code == 0 or "cannot walk page tables by BPF" in each.output, each.output
    assert len(without_vm_note(report.output).splitlines()) == 41
    assert re.search(r"^0 unexplained$", compare.output, re.MULTILINE), compare.output
    assert lab.code in (0, 1), lab.output  # 1: not as on most machines
    assert "physview.html: " in picture.output
    assert walk.code or "walks for 39 other addresses" in walk.output


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.commands[-1])
def test_documented_vms_run_and_end_as_shown(block):
    for line, result in zip(block.commands, run_as_shown(block), strict=True):
        assert result.output.strip() or "> /dev/null" in line
