# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on the message with which physview fails."""

from __future__ import annotations

import re
import subprocess
import sys

from physview.sources import kpage


def one_line(result, code):
    """Check that a run failed with this exit code and one line on stderr; return the line."""
    assert result.returncode == code, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("physview")
    return result.stderr


def notes(result):
    """What a run said on stderr, but for the note on flags that Linux 6.12.118 tells wrongly."""
    lines = result.stderr.splitlines(keepends=True)
    wrong_ksm = "physview: this kernel calls every anonymous page ksm in /proc/kpageflags "
    return "".join(line for line in lines if not (kpage.false_flags() and wrong_ksm in line))


def without_vm_note(stderr: str) -> str:
    """Return stderr without the line of memview that says that this machine is a VM, if it is one.

    The tests run on real machines, in VMs of clouds, and in our own.
    """
    first, _, last = stderr.removesuffix("\n").rpartition("\n")
    if not re.fullmatch(r"physview: this machine is a VM( \([^()]+\))?: .* guest-physical.*", last):
        return stderr
    return f"{first}\n" if first else ""


def ends_while_written(child: subprocess.Popen[str], nr_lines: int, *args: str) -> None:
    """Check physview's message about a process that ends while its report is being written.

    Args:
        child: The process. Its report must be longer than a pipe's buffer, for an unprivileged
            user too, for whom physview merges the lines of contiguous pages without visible
            frames. A region of which every other page was touched has such a report.
        nr_lines: Kill the process after this many lines.
        args: The command line of physview.
    """
    command = [sys.executable, "-m", "physview", *args]
    # The kernel counts a pipe's buffer in pages, so it would be larger where pages are.
    reader = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=1 << 16, text=True
    )
    assert reader.stdout
    for _ in range(nr_lines):
        reader.stdout.readline()
    child.kill()  # physview waits: its pipe is full
    child.wait()
    _, stderr = reader.communicate()
    assert reader.returncode == 1
    assert stderr == (
        f"physview: process {child.pid} is gone: it ended while it was read; start again with a"
        " living process\n"
    )
