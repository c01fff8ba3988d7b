# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `touched`: what it prints and writes, and what it says if it cannot."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from children import wait_for
from failures import one_line
from limits import DEFAULT_SIGNALS
from memory import PAGE
from users import AS_NOBODY

from physview.analysis.page_uses import STATES

SVG = "{http://www.w3.org/2000/svg}"
REGION = "from memory import *\nregion = Region(300).touch()\nprint(region.start)"


def document(physview, *words):
    result = physview("touched", *words, "--json")
    assert result.returncode == 0, result
    return json.loads(result.stdout)


def referenced_bytes(pid):
    """Referenced of smaps in memory of no file: other processes use the pages of files, too."""
    sizes, is_file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            is_file = rest[3] != "0"
        elif first == "Referenced:" and not is_file:
            sizes += int(rest[0]) * 1024
    return sizes


@pytest.mark.needs("bpf")
def test_a_process_at_rest_touches_nothing(physview, sleeper):
    text = physview("touched", str(sleeper.pid), "--for", "0", "--clear")
    assert (text.returncode, text.stderr) == (0, "")
    lines = text.stdout.splitlines()
    assert lines[0].startswith(f"process {sleeper.pid} (python")
    assert "by accessed" in lines[0]
    assert lines[1].startswith("changed: the accessed bits of the process were cleared")
    assert any(line.startswith("limit: ") for line in lines)
    most = f"0|{PAGE >> 10}K|{2 * PAGE >> 10}K"
    assert re.match(f"touched: ({most}) of ", lines[-1])  # [vvar] may be touched
    found = document(physview, str(sleeper.pid), "--for", "0", "--clear")
    total = found["total"]
    assert total["touched_bytes"] <= 2 * PAGE
    assert total["unknown_bytes"] == 0
    assert total["resident_bytes"] == total["touched_bytes"] + total["untouched_bytes"]
    for name in ("resident_bytes", "touched_bytes", "untouched_bytes"):
        assert sum(each[name] for each in found["mappings"]) == total[name]


@pytest.mark.needs("bpf")
def test_nothing_is_changed_without_clear(physview, sleeper):
    before = referenced_bytes(sleeper.pid)
    found = document(physview, str(sleeper.pid), "--for", "0")
    assert found["influence"] == "nothing of the process is changed"
    assert found["total"]["unknown_bytes"] > 1 << 20
    after = referenced_bytes(sleeper.pid)
    assert after > before * 0.9  # DAMON may clear some
    assert found["clears"] is False


@pytest.mark.needs("bpf")
def test_intervals_records_and_pictures(physview, python, tmp_path):
    import pyarrow.parquet as pq

    child = python(
        REGION + "\nimport threading, time", wait="while 1: region.touch(); time.sleep(.001)"
    )
    pid, path = str(child.pid), str(tmp_path / "pages.parquet")
    options = ("--for", "0.05", "--clear")
    result = physview(
        "touched", pid, *options, "--times", "3", "--pages", "--format", "parquet", "--output", path
    )
    assert (result.returncode, result.stderr) == (0, "")
    rows = pq.read_table(path).to_pylist()
    assert {row["pid"] for row in rows} == {child.pid}
    assert {row["state"] for row in rows} <= set(STATES)
    assert {row["times"] for row in rows if row["state"] == "untouched"} == {0}
    hot = [row for row in rows if row["times"] == 3]
    assert sum(int(row["end"], 16) - int(row["start"], 16) for row in hot) >= 290 * PAGE
    ends = [int(row["end"], 16) for row in rows]
    assert all(end <= int(row["start"], 16) for end, row in zip(ends, rows[1:], strict=False))

    csv = physview("touched", pid, *options, "--format", "csv", "--top", "2").stdout.splitlines()
    assert csv[0].split(",")[:4] == ["pid", "command", "start", "end"]
    assert len(csv) == 3
    for suffix in ("svg", "html", "png"):
        picture = str(tmp_path / f"heat.{suffix}")
        found = document(physview, pid, *options, "--times", "2", "--picture", picture)
        assert found["picture"] == picture
        assert [each["seconds"] >= 0.05 for each in found["intervals"]] == [True, True]
    root = ET.parse(tmp_path / "heat.svg").getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert f"What process {pid}" in texts[0]
    assert "once" in texts
    assert "heat_5" in (tmp_path / "heat.html").read_text()
    again = physview("touched", pid, "--for", "0", "--picture", str(tmp_path / "heat.svg"))
    assert "it is there already" in one_line(again, 1)


@pytest.mark.needs("nobody", "root")
def test_an_unprivileged_user_sees_sums_of_own_processes(physview, python):
    child = python(REGION, prefix=AS_NOBODY)
    result = physview("touched", str(child.pid), "--for", "0", "--clear", prefix=AS_NOBODY)
    assert result.returncode == 0, result
    assert "by referenced (smaps)" in result.stdout
    assert "only sums of mappings are known" in result.stderr
    foreign = physview("touched", "1", "--for", "0", prefix=AS_NOBODY)
    assert "you may not examine process 1" in one_line(foreign, 1)
    for words in (["--times", "2"], ["--pages", "--format", "csv"], ["--picture", "/tmp/x.svg"]):
        pages = physview("touched", str(child.pid), "--for", "9", *words, prefix=AS_NOBODY)
        assert "single pages: this needs CAP_SYS_ADMIN" in one_line(pages, 2)


@pytest.mark.needs("bpf", "machine")
def test_ctrl_c_ends_the_interval_and_prints_the_report(sleeper):
    before = referenced_bytes(sleeper.pid)
    command = [sys.executable, "-m", "physview", "touched", str(sleeper.pid), "--for", "1000"]
    run = subprocess.Popen(
        [*DEFAULT_SIGNALS, *command, "--clear"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    wait_for(lambda: referenced_bytes(sleeper.pid) < before / 2)
    time.sleep(2)  # the interval begins after the bits were cleared
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGINT
    assert "touched: " in stdout.splitlines()[-1]
    assert "it was interrupted after" in stderr


@pytest.mark.needs("bpf", "machine")
def test_a_process_that_ends_ends_the_interval(python):
    child = python()
    before = referenced_bytes(child.pid)
    command = [sys.executable, "-m", "physview", "touched", str(child.pid), "--for", "1000"]
    run = subprocess.Popen(
        [*command, "--clear"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    )
    wait_for(lambda: referenced_bytes(child.pid) < before / 2)
    child.kill()
    child.wait()
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stdout) == (1, "")
    assert stderr.startswith(f"physview: process {child.pid} is gone: it ended while it was read")


def test_a_narrow_terminal_shows_the_names_of_files_and_not_the_beginning_of_their_paths(
    physview, sleeper
):
    result = physview(
        "touched", str(sleeper.pid), "--for", "0", env={**os.environ, "COLUMNS": "80"}
    )
    assert f"process {sleeper.pid} (" in result.stdout
    assert "): 0 s, by" in result.stdout
    names = {line[70:].strip() for line in result.stdout.splitlines() if line.startswith("0x")}
    with open(f"/proc/{sleeper.pid}/maps") as maps:
        known = {line[73:].strip().rpartition("/")[2] or "[anonymous]" for line in maps}
    whole = {name for name in names if not name.endswith("…")}
    assert whole <= known
    assert "[anonymous]" in whole
    assert all(any(name.startswith(cut[:-1]) for name in known) for cut in names - whole)


@pytest.mark.needs("kthread")
def test_a_kernel_thread_has_no_pages(physview):
    for options in ([], ["--clear"], ["--by", "referenced"]):
        line = one_line(physview("touched", "2", "--for", "0", *options), 1)
        assert line == one_line(physview("maps", "2"), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "idle"], "--by idle needs --clear"),
        (["--by", "soft-dirty"], "--by soft-dirty needs --clear"),
        (["--by", "wp-async", "--clear"], "exclude each other"),
        (["--by", "referenced", "--source", "bpf"], "exclude each other"),
        (["--track-writes"], "--track-writes needs --clear"),
        (["--pages"], "--pages needs --format"),
        (["--json", "--format", "csv"], "exclude each other"),
        (["--format", "parquet"], "Parquet is written to a file"),
        (["--format", "csv", "--output", "x"], "--output needs --format parquet"),
        (["--theme", "dark"], "--theme and --force need a picture"),
        (["--picture", "x.gif"], "is no kind of picture"),
        (["--for", "-1"], "is not a time such as 10s, 5m"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(physview, words, message):
    assert message in one_line(physview("touched", "self", *words), 2)


@pytest.mark.needs("no-soft-dirty")
def test_a_kernel_without_a_way_says_so(physview, sleeper):
    for words in (["--by", "soft-dirty"], ["--track-writes"]):
        result = physview("touched", str(sleeper.pid), "--clear", *words)
        assert "this kernel has no soft-dirty bits" in one_line(result, 1)
    if not os.path.exists("/sys/kernel/mm/page_idle/bitmap"):
        result = physview("touched", str(sleeper.pid), "--clear", "--by", "idle")
        assert "without idle page tracking" in one_line(result, 1)
