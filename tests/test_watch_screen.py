# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of physview watch: keys, sizes of the terminal, the map of RAM, all kinds of ends."""

import re
import signal
import sys
import termios

import numpy as np
import pytest
from memory import PAGE
from screens import LEFT, PtyRun, watch

from physview.analysis.page_counts import RamMap
from physview.reporters import screen, watch_screen
from physview.reporters import watch as watch_reporter
from physview.runtime.terminal import split_keys

# What the screen shows as the size of 30,000 pages.
REGION_SIZES = {4096: "117M", 16384: "469M", 65536: "1.8G"}


def test_keys_are_split_whatever_their_bytes():
    assert split_keys(b"\x1b[5~\x1bOAx\x01\xff\x1b[1;5A\x1b[24~j") == (
        ["pageup", "up", "x", "j"],
        b"",
    )
    keys, rest = split_keys(b"\x1b")
    assert (keys, rest) == ([], b"\x1b")
    assert split_keys(rest + b"[6~")[0] == ["pagedown"]


def test_the_screen_shows_it_and_keys_work(obedient):
    obedient.tell("regions.append(Region(30000))")
    with watch(obedient.pid, "--interval", "0.2") as run:
        run.shows("new,")
        obedient.tell("regions[-1].touch(*range(500))")
        run.until(lambda lines: re.search(r"pages +[5-9]\d\d new", lines[1]))
        obedient.tell("regions[-1].madvise(Region.MADV_DONTNEED)")
        run.until(lambda lines: re.search(r"[5-9]\d\d gone", lines[1]))
        assert run.screen.nr_wraps == 0
        assert all(run.lines), "every line is used"
        assert re.search(r"^1-\d+ of \d+ by address  q quit  space pause", run.lines[-1])
        first_row = next(i for i, line in enumerate(run.lines) if line.endswith("mapping")) + 1
        top = run.lines[first_row]
        run.press("j")
        run.until(lambda lines: lines[-1].startswith("2-") and lines[first_row] != top)
        run.press("\x1b[A")
        run.until(lambda lines: lines[-1].startswith("1-") and lines[first_row] == top)
        run.press("\x1b[F")
        run.until(lambda lines: re.match(r"\d+-(\d+) of \1 ", lines[-1]))
        run.press("s")
        run.shows("by size")
        assert run.lines[first_row].split()[2] == REGION_SIZES[PAGE]
        run.press(" ")
        run.until(lambda lines: lines[0].endswith("paused"))
        frozen = run.lines
        obedient.tell("regions[-1].touch()")
        run.read(0.5)
        run.read(0.5)
        assert run.lines == frozen
        run.press(" ")
        run.until(lambda lines: "30000 new" in lines[1] or re.search(r"3\d{4} new", lines[1]))
        run.press("+")
        run.shows("every 0.5 s")
        run.press("--")
        run.shows("every 0.1 s")
        run.press("q")
        assert run.wait() == 0
        assert run.is_as_before()


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (160, 50), (20, 4), (1, 1), (300, 30)])
def test_no_size_wraps_or_fails(sleeper, size):
    columns, lines = size
    with watch(sleeper.pid, "--interval", "0.2", columns=columns, lines=lines) as run:
        run.until(lambda _: b"\x1b[?25l" in run.raw and run.lines[-1])
        run.read(0.5)
        run.read(0.5)
        assert run.screen.nr_wraps == 0
        if size == (40, 10):
            assert sum("mapping" in line for line in run.lines) >= 1
            assert sum(bool(line) for line in run.lines) == 10
        run.press("q")
        assert run.wait() == 0
        assert run.is_as_before()


def test_a_new_size_is_used_at_once(sleeper):
    with watch(sleeper.pid, "--interval", "60") as run:
        run.shows("q quit")
        run.resize(120, 30)
        run.until(lambda lines: lines[29].startswith("1-") and "excl" in "".join(lines))
        run.resize(50, 12)
        run.until(lambda lines: lines[11].startswith("1-") and len(lines) == 12)
        assert run.screen.nr_wraps == 0
        run.press("q")
        assert run.wait() == 0


def test_only_what_changes_is_written(sleeper):
    with watch(sleeper.pid, "--interval", "0.1") as run:
        run.until(lambda lines: "new," in lines[1])
        seconds = []
        while len(seconds) < 5 and not any(nr < 2000 for nr in seconds):  # it may still settle
            seconds.append(run.nr_written_in(1))
        assert seconds[-1] < 2000, f"a screen is as much at 80x24: {seconds}"
        assert run.raw.count(b"\x1b[2J") == 0
        assert run.raw.count(b"\x1b[?1049h") == 1


@pytest.mark.parametrize(
    ("signum", "ended"),
    [(s, -s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)],
)
def test_the_terminal_is_put_back_whatever_ends_us(sleeper, signum, ended):
    with watch(sleeper.pid) as run:
        run.shows("q quit")
        assert run.settings != termios.tcgetattr(run.slave)
        if signum == signal.SIGINT:
            run.press("\x03")
        else:
            run.process.send_signal(signum)
        assert run.wait() == ended
        assert run.is_as_before()
        assert b"Traceback" not in run.raw


def test_the_end_of_the_process_is_said_when_the_screen_is_back(obedient):
    with watch(obedient.pid, "--interval", "60") as run:
        run.shows("q quit")
        obedient.kill()
        assert run.wait() == 1  # not only at the next reading, in a minute
        assert run.is_as_before()
        after = run.raw.decode().rpartition(LEFT)[2]
        assert re.search(rf"^\S*physview:\S* .*{obedient.pid}.*(ended|gone)", after, re.MULTILINE)
        assert after.count("\n") == 1


def test_exec_is_said(obedient):
    with watch(obedient.pid, "--interval", "0.2") as run:
        run.shows("new,")
        obedient.stdin.write("os.execvp('sleep', ['sleep', '100'])\n")
        obedient.stdin.flush()
        assert run.wait() == 1
        assert run.is_as_before()
        assert b"it ran another program (exec)" in run.raw.rpartition(LEFT.encode())[2]


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(sleeper):
    # A shell with job control, for a process group that is nobody's job is not stopped.
    command = f"{sys.executable} -m physview watch {sleeper.pid}"
    with PtyRun(["bash", "--norc", "-i"], env={"PS1": "$ ", "HISTFILE": ""}) as run:
        run.press(f"{command}\r")
        run.shows("q quit")
        run.press("\x1a")
        run.until(lambda _: b"Stopped" in run.raw)
        assert run.raw.count(b"\x1b[?1049l") == 1
        assert run.raw.rfind(b"\x1b[?25h") > run.raw.rfind(b"\x1b[?25l")
        run.press("fg\r")
        run.until(lambda _: run.raw.count(b"\x1b[?1049h") == 2)
        run.shows("q quit")
        run.press("q")
        run.until(lambda _: run.raw.count(b"\x1b[?1049l") == 2)
        run.press("echo it is $((20 + 3))\r")
        run.until(lambda _: b"it is 23" in run.raw)


def test_without_colour_there_is_none(sleeper):
    with watch(sleeper.pid, env={"NO_COLOR": "1"}) as run:
        run.shows("q quit")
        assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7])m", run.raw)


def test_without_utf8_all_is_ascii(sleeper):
    with watch(sleeper.pid, "--interval", "0.2", env={"PYTHONIOENCODING": "ascii"}) as run:
        run.shows("q quit")
        run.read(0.5)
        assert run.raw.isascii()
        run.press("q")
        assert run.wait() == 0


def test_a_process_with_many_mappings_stays_usable(python):
    with open("/proc/sys/vm/max_map_count") as file:
        nr = min(60_000, int(file.read()) - 3000)
    child = python(
        "from memory import Region, PAGE, libc\n"
        f"region = Region({nr})\n"
        f"for i in range(0, {nr}, 2): libc.mprotect(region.start + i * PAGE, PAGE, 1)\n"
        "region.touch(*range(1, 4000, 2))"
    )
    with watch(child.pid) as run:
        run.until(lambda lines: "new," in lines[1], 120)
        run.press("\x1b[F")
        run.until(lambda lines: re.match(r"\d+-(\d+) of \1 ", lines[-1]), 60)
        assert int(re.match(r"\d+-(\d+)", run.lines[-1])[1]) >= nr
        run.press("c")
        run.shows("by change")
        run.press("q")
        assert run.wait() == 0


def ram_of(frames, *, nr_frames):
    """A map of RAM in which the cells have these frames of the process."""
    cell = -(-nr_frames // len(frames))
    return RamMap(np.array(frames, dtype=np.int64), cell, nr_frames, 0)


@pytest.mark.needs("x86_64")  # where pages have 4 KiB
def test_the_map_tells_a_page_from_a_megabyte_on_a_machine_of_24_gib():
    """On a linear scale, all of these but the last were the lowest step."""
    nr_frames = (24 << 30) // PAGE
    frames = [0, 1, 8, 64, 512, 4096, 32768, *[0] * 62, nr_frames // 70]
    ram = ram_of(frames, nr_frames=nr_frames)
    assert watch_reporter.density(ram, 70) == f" ▁▂▃▄▅▆{' ' * 62}█"
    legend = watch_reporter.ram_legend(ram, 70)
    assert legend == (
        "a character is 351M; the process has ▁ 4K ▂ 32K ▃ 256K ▄ 2M ▅ 16M ▆ 128M █ all"
    )


@pytest.mark.parametrize("size_bytes", [1 << shift for shift in range(24, 48)])
@pytest.mark.parametrize("width", [30, 70, 110, 210])
def test_the_legend_of_the_map_fits_and_agrees_with_it(size_bytes, width):
    nr_frames = size_bytes // PAGE
    ram = ram_of([0] * min(4096, nr_frames), nr_frames=nr_frames)
    legend = watch_reporter.ram_legend(ram, width)
    assert len(legend) <= 80
    frames_each = -(-nr_frames // width)
    least = watch_reporter.steps(frames_each)
    assert sum(map(legend.count, "KMGT")) >= len(least)
    for at, nr in enumerate(least, 1):
        drawn = watch_reporter.density(ram_of([nr], nr_frames=frames_each), 1)
        assert drawn == watch_reporter.BLOCKS[at]
        if nr > 1:
            below = watch_reporter.density(ram_of([nr - 1], nr_frames=frames_each), 1)
            assert below == watch_reporter.BLOCKS[at - 1]


def test_the_keys_are_named():
    state = screen.State(1.0, watch_screen.ORDERS)
    state.page = 10
    sort, general = state.feet(40, 80, 24)
    assert sort == "sort by: a address  s size  m mem  w swap  c change"
    assert general == "1-10 of 40 by address  q quit  space pause  +- interval  ↑↓ scroll"
    (line,) = state.feet(40, 80, 12)
    assert line.endswith("  asmwc sort  ↑↓ scroll")
