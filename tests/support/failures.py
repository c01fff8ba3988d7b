# SPDX-License-Identifier: GPL-2.0-or-later
"""What physview says when it fails."""

from __future__ import annotations

import subprocess
import sys


def one_line(result, code):
    """The one line that a failed run says."""
    assert result.returncode == code, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("physview")
    return result.stderr


def ends_while_written(child: subprocess.Popen[str], nr_lines: int, *args: str) -> None:
    """Run physview on a process that ends when so many lines are written, and hear what it says.

    The process needs more to tell of than a pipe takes, for a plain user too, whose lines about
    hidden frames are folded: memory of which every other page was touched.
    """
    command = [sys.executable, "-m", "physview", *args]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout
    for _ in range(nr_lines):
        reader.stdout.readline()
    child.kill()  # the reader is held up by its full pipe
    child.wait()
    _, stderr = reader.communicate()
    assert reader.returncode == 1
    assert stderr == (
        f"physview: process {child.pid} is gone: it ended while it was read; start again with a"
        " living process\n"
    )
