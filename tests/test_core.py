# SPDX-License-Identifier: GPL-2.0-or-later
"""The C core compiles without warnings and uses little stack."""

import subprocess
import sys

import pytest
from failures import notes
from paths import ROOT

SOURCES = sorted((ROOT / "csrc").glob("*.c"))

# A thread gets as much stack as ulimit -s says, and musl's threads get 128 KiB.
MAX_FRAME = "-Wframe-larger-than=4096"

# Every call of the core that reads whole processes, in a thread with a stack of 64 KiB. The
# interpreter's own first thread needs more: python3 -c pass dies with ulimit -s 64.
IN_A_SMALL_STACK = """
import os
import threading
from contextlib import closing
from physview.analysis.usage_reader import UsageReader
from physview.sources.kpage import KpageFile
from physview.memory.snapshot import Snapshot

def read():
    with Snapshot() as snapshot, UsageReader(every_flag=True) as reader:
        usages = list(reader.iter_usage(snapshot, nr_threads=1))
        assert sum(usage.resident_bytes for usage in usages)
    with closing(KpageFile("kpageflags")) as file:
        assert file.count(runs)
        assert list(file.iter_pieces(runs))
    print("read")

import numpy as np
from physview.sources.kpage import FRAMES_DTYPE
runs = np.array([(1, 20000)], dtype=FRAMES_DTYPE)
threading.stack_size(max(64 << 10, os.sysconf("SC_THREAD_STACK_MIN")))
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize(
    ("compiler", "optimization"),
    [
        # gcc finds uninitialized variables by optimizing. clang warns before it optimizes, but of
        # large frames: there, the level matters at which the core is compiled (build_ffi.py).
        *(
            pytest.param("gcc", level, marks=pytest.mark.needs("gcc"))
            for level in ("-O1", "-O2", "-O3")
        ),
        pytest.param("clang", "-O3", marks=pytest.mark.needs("clang")),
    ],
)
def test_the_core_compiles_without_a_warning(tmp_path, compiler, optimization):
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wuninitialized", MAX_FRAME]
    if compiler == "gcc":
        warnings += ["-Wmaybe-uninitialized", "-Wvla"]
    subprocess.run(
        [compiler, "-std=gnu11", optimization, *warnings, f"-I{ROOT}/csrc", "-c", *SOURCES],
        cwd=tmp_path,
        check=True,
    )


@pytest.mark.needs("kpage", "pfn")
def test_two_threads_with_64_kib_of_stack_read_a_process():
    command = [sys.executable, "-c", IN_A_SMALL_STACK]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "read\nread\n", "")


@pytest.mark.needs("kpage", "pfn")
@pytest.mark.parametrize("command", [["maps"], ["pages", "--summary"], ["pages"]], ids=" ".join)
def test_commands_with_a_small_stack(physview, sleeper, command):
    name, *options = command
    small = ["prlimit", f"--stack={128 << 10}"]
    result = physview(name, str(sleeper.pid), *options, prefix=small)
    assert (result.returncode, notes(result)) == (0, "")
    assert len(result.stdout.splitlines()) > 5
