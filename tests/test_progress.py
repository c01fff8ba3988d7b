# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress bars on a terminal: every command that can take seconds shows one, and wipes it out."""

import os
import sys

import pytest
from plain_reads import plain_entries
from screens import PtyRun

from physview.model import PM_PFRAME_MASK, PM_PRESENT

# Bars are shown also for work that takes less than half a second.
AT_ONCE = (
    "import sys; from physview.commands import _progress, main; _progress.SECONDS_BEFORE = 0;"
    "sys.exit(main(sys.argv[1:]))"
)
# Every Python has it, with thousands of files.
LIBRARY = os.path.dirname(os.__file__)
WALK, FRAMES = pytest.mark.needs("walk"), pytest.mark.needs("kpage", "pfn")
COMMANDS = [
    pytest.param("comparing pages", "compare PID", marks=WALK),
    pytest.param("comparing processes", "compare --all", marks=WALK),
    ("comparing", "diff FOLDER/one FOLDER/other"),
    ("comparing", "diff FOLDER/one FOLDER/other --picture FOLDER/changes.svg"),
    ("files examined", f"file --top 3 {LIBRARY}"),
    pytest.param("counting frames", "frames", marks=FRAMES),
    pytest.param("counting frames", "frames --flags anon", marks=FRAMES),
    pytest.param("saving flags", "frames --save FOLDER/flags", marks=FRAMES),
    ("reading processes", "maps --all --rollup --sort rss"),
    pytest.param("examining processes", "owners FRAME --pid PID", marks=FRAMES),
    pytest.param("counting pages", "pages PID --summary", marks=FRAMES),
    pytest.param("counting pages", "pages PID --summary --raw", marks=FRAMES),
    ("reading memory", "picture PID -o FOLDER/picture.svg"),
    ("reading pages", "snapshot PID -o FOLDER/new"),
    pytest.param("reading page tables", "tables PID", marks=pytest.mark.needs("bpf")),
    pytest.param(
        "tracing",
        f"trace kmalloc -n 3 -- find {LIBRARY} -name none",
        marks=pytest.mark.needs("tracefs"),
    ),
]


def frame_of(pid):
    """A frame of a process, as `owners` takes it."""
    entries, _ = plain_entries(pid)
    frames = (entry & PM_PFRAME_MASK for entry in entries.values() if entry & PM_PRESENT)
    return f"pfn:{next(frames):#x}"


@pytest.mark.parametrize(("what", "words"), COMMANDS)
def test_a_command_shows_how_far_it_is(request, physview, sleeper, tmp_path, what, words):
    if what == "tracing":
        request.getfixturevalue("tracefs")
    if words.startswith("diff"):
        for name in ("one", "other"):
            physview("snapshot", str(sleeper.pid), "-o", str(tmp_path / name))
    words = words.replace("PID", str(sleeper.pid)).replace("FOLDER", str(tmp_path)).split()
    if "FRAME" in words:
        words[words.index("FRAME")] = frame_of(sleeper.pid)
    with PtyRun([sys.executable, "-c", AT_ONCE, *words], columns=120, lines=60) as run:
        # Snapshots may differ: the kernel moves pages, also of a process at rest.
        assert run.wait() in ((0, 1) if words[0] == "diff" else (0,)), run.lines
        assert what.encode() in run.raw
        assert not [line for line in run.lines if what in line and "━" in line]
