# SPDX-License-Identifier: GPL-2.0-or-later
"""physview lab: its output and questions, wrong use, and messages on unusual machines."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import documented
import psutil
import pytest
from failures import one_line
from limits import DEFAULT_SIGNALS
from memory import HUGE, PAGE
from paths import ROOT
from users import AS_NOBODY, WITHOUT_CAPABILITIES

from physview import labs
from physview.labs import model, probe_process, quiz
from physview.reporters import quiz as quiz_reporter

PR_SET_THP_DISABLE = 41

pytestmark = pytest.mark.alone("labs tell what of physview's own files others map")


def paragraphs(result):
    """The printed paragraphs, without the line breaks within them."""
    return re.sub(r"\n {2,}", " ", result.stdout)


def test_the_list_has_every_lab_and_what_it_lacks(physview):
    # A heading, a line for each lab, and how to run one: long where the path of the checkout is.
    lines = physview("lab").stdout.splitlines()[1 : 1 + len(labs.NAMES)]
    assert [line.split()[0] for line in lines] == list(labs.NAMES)
    document = json.loads(physview("lab", "--json").stdout)
    assert [one["lab"] for one in document["labs"]] == list(labs.NAMES)
    rows = {row for one in document["labs"] for row in one["course_rows"]}
    assert rows == {3, 4, 5, 6, 7, 8, 9, 10}
    for line, one in zip(lines, document["labs"], strict=True):
        assert line.endswith("ready") == (one["why_not"] is None)


@pytest.mark.needs("pfn")
def test_a_lab_says_what_it_does_shows_it_and_explains(physview):
    result = physview("lab", "heap")
    assert result.returncode == 0, result
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("heap: thirty buffers")
    assert len([line for line in lines if line.startswith("buf[")]) == 30
    assert "- All 29 steps are 0x1010 = 4112" in paragraphs(result)
    # A mark where the frame does not follow, and nowhere else.
    assert any(line.endswith(" *") for line in lines if line.startswith("buf["))
    assert max(map(len, lines)) <= 80


@pytest.mark.needs("pfn")
def test_json_has_the_evidence(physview):
    document = json.loads(physview("lab", "cow", "--json").stdout)
    assert document["lab"] == "cow"
    assert document["usual"] is True
    (table,) = document["tables"]
    assert [column["name"] for column in table["columns"]][-1] == "child"
    assert [row["changed"] for row in table["rows"]] == [[], [], ["child"], ["parent"]]
    assert all(row["cells"]["before"].startswith("0x") for row in table["rows"])
    assert [question["answer"] for question in document["questions"]] == [0, 1]
    text = (ROOT / "docs/json.md").read_text()
    for member in document:
        assert f"`{member}`" in text, member


@pytest.mark.needs("pfn")
def test_the_quiz_asks_first_and_judges_by_the_evidence(physview):
    result = physview("lab", "cow", "--quiz", input="7\nx\n1\n3\n")
    assert result.returncode == 0, result
    text = paragraphs(result)
    assert text.index("Question 2") < text.index("four pages from 0x")
    assert "'7' is not one of the answers." in text
    assert "you said 1: right; the evidence says 1) one: they share it" in text
    assert "you said 3: wrong; the evidence says 2) the child" in text


def test_a_quiz_without_answers(physview):
    result = physview("lab", "levels", "--quiz", stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result
    assert "no answer; the evidence says" in paragraphs(result)


@pytest.mark.needs("pfn")
def test_a_quiz_is_saved_as_text_and_as_json(physview, tmp_path):
    path = tmp_path / "cow.txt"
    before = datetime.now().astimezone().replace(microsecond=0)
    result = physview("lab", "cow", "--quiz", "--save", str(path), input="1\n3\n")
    assert result.returncode == 0, result
    assert result.stdout.endswith(f"{path}, {path}.json: 1 of 2 right\n")
    document = json.loads((tmp_path / "cow.txt.json").read_text())
    counts = [document[name] for name in ("nr_right", "nr_decided", "nr_questions")]
    assert counts == [1, 2, 2]
    assert [(each["chosen"], each["answer"]) for each in document["questions"]] == [(0, 0), (2, 1)]
    assert document["machine"]["kernel"] == os.uname().release
    started, ended = (datetime.fromisoformat(document[name]) for name in ("started", "ended"))
    assert before <= started <= ended <= datetime.now().astimezone()
    text = path.read_text()
    assert "Score:   1 of 2 right\n" in text
    assert f"Machine: {os.uname().nodename}, Linux {os.uname().release} " in text
    assert "Answer:  3) both\nVerdict: wrong; measured was 2) the child\n" in text
    assert max(map(len, text.splitlines()[6:])) <= 80
    page = (ROOT / "docs/json.md").read_text()
    for member in document:
        assert f"`{member}`" in page, member


@pytest.mark.parametrize("there", ["f", "f.json"])
def test_a_quiz_that_is_there_is_kept_unless_forced(physview, tmp_path, there):
    path = tmp_path / "f"
    (tmp_path / there).write_text("mine")
    line = one_line(physview("lab", "levels", "--quiz", "--save", str(path), input="3\n"), 1)
    assert "it is there already; choose another name, or add --force" in line
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(there, "mine")]
    result = physview("lab", "levels", "--quiz", "--force", "--save", str(path), input="3\n")
    assert result.returncode == 0, result
    assert json.loads((tmp_path / "f.json").read_text())["questions"][0]["chosen"] == 2
    assert "Quiz of the lab levels" in path.read_text()


def test_a_quiz_that_ends_early_leaves_no_file(tmp_path):
    command = [*DEFAULT_SIGNALS, sys.executable, "-m", "physview", "lab", "levels", "--quiz"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, "--save", str(tmp_path / "f")], text=True, **pipes)
    assert process.stdout.read(7) == "levels:"  # the plan: the quiz has begun
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


def test_a_question_that_is_not_measured_does_not_count():
    lab = labs.find("cow")
    now = datetime.now().astimezone()
    machine = quiz.QuizMachine("host\x1b[7m", "6.1", "x86_64", 4096, 1 << 30, "0.1.0")
    taken = quiz.TakenQuiz(lab, (0, None), (None, 1), True, now, now, machine)
    assert (taken.nr_right, taken.nr_decided) == (0, 1)
    text = quiz_reporter.to_text(taken)
    assert "Score:   0 of 1 right; 1 more was not measured here\n" in text
    assert "Verdict: none: this run did not measure it\n" in text
    assert "Answer:  none\nVerdict: wrong; measured was 2) the child\n" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["hep"], "there is no lab 'hep'; do you mean heap"),
        (["zzzz"], "choose one of report, heap, runs"),
        ([""], "there is no lab ''"),
        (["heap", "--machine"], "the lab heap has no --machine"),
        (["--quiz"], "which lab?"),
        (["heap", "--quiz", "--json"], "--quiz and --json exclude each other"),
        (["heap", "--save", "f"], "--save needs --quiz"),
        (["heap", "--quiz", "--force"], "--force needs --save FILE"),
        (["--save", "f"], "which lab?"),
        (["heap", "--all"], "--all and a lab, heap, exclude each other"),
        (["--all", "--quiz"], "--all and --quiz exclude each other"),
        (["--all", "--machine"], "--all and --machine exclude each other"),
    ],
)
def test_wrong_use(physview, args, words):
    result = physview("lab", *args)
    assert words in one_line(result, 2)
    assert result.stdout == ""


@pytest.mark.needs("no-capabilities")
def test_a_lab_that_cannot_be_done_is_one_line_with_the_remedy(physview):
    result = physview("lab", "cow", prefix=WITHOUT_CAPABILITIES)
    line = one_line(result, 1)
    assert "cannot do the lab cow: the kernel hides frame numbers" in line
    assert " vm -- physview lab cow" in line
    assert result.stdout == ""


@pytest.mark.needs("nobody")
def test_nobody_gets_the_virtual_half(physview):
    result = physview("lab", "heap", prefix=AS_NOBODY)
    assert result.returncode == 0, result
    assert "All 29 steps are 0x1010" in paragraphs(result)
    assert "? frame numbers are hidden from this user" in result.stdout
    assert "frame that follows" not in result.stdout
    document = json.loads(physview("lab", "report", "--json", prefix=AS_NOBODY).stdout)
    assert {row["causes"].get("paddr") for row in document["tables"][0]["rows"]} == {"hidden"}
    assert document["questions"][0]["answer"] is None
    assert document["notes"]


@pytest.mark.needs("nobody", "setarch")
def test_all_does_what_can_be_done_and_names_the_rest(physview):
    as_nobody = [*AS_NOBODY, "setarch", "-R"]  # the addresses stay, so a lab has another result
    result = physview("lab", "--all", prefix=as_nobody)
    assert (result.returncode, result.stderr) == (1, ""), result.stderr
    document = json.loads(physview("lab", "--all", "--json", prefix=as_nobody).stdout)
    done = [one["lab"] for one in document["labs"]]
    missing = {one["lab"]: one for one in document["not_done"]}
    assert sorted([*done, *missing]) == sorted(labs.NAMES)
    assert {"report", "heap", "runs", "levels"} <= set(done)
    assert {"cow", "swap", "copies", "kmalloc", "pages"} <= set(missing)
    text = " ".join(result.stdout.split())
    assert f"{len(done)} labs were done: {', '.join(done)}." in text
    assert "Not as on most machines: runs." in text
    assert f"{len(missing)} labs were not done here:" in text
    for name, one in missing.items():
        assert f"- {name}: {one['why']}" in text
        assert f"\n  {one['remedy']}\n" in result.stdout
        # nested boots a VM itself, so it is for the host only.
        assert (f"-- physview lab {name}" in one["remedy"]) == (name != "nested")
        assert one["remedy"].endswith(f"lab {name}")


@pytest.mark.needs("nobody")
def test_nobody_may_not_drop_the_machines_caches(physview):
    line = one_line(physview("lab", "cache", "--machine", prefix=AS_NOBODY), 1)
    assert "cannot drop the machine's caches: only root may" in line


@pytest.mark.needs("mountns", "pfn")
def test_where_proc_sys_is_read_only_as_in_a_container(physview):
    only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys"
    prefix = ["unshare", "-m", "sh", "-c", f'{only} && exec "$@"', "sh"]
    line = one_line(physview("lab", "cache", "--machine", prefix=prefix), 1)
    assert "Read-only file system, as in a container" in line
    assert " vm -- physview lab cache --machine" in line
    if "node1" not in os.listdir("/sys/devices/system/node"):
        line = one_line(physview("lab", "migrate", prefix=prefix), 1)
        assert " vm --append numa=fake=2 -- physview lab migrate" in line


def unusual(result):
    """The findings of a lab that differ from most machines. It must report them and exit with 1."""
    assert result.returncode == 1, result
    assert "! marks a result that differs from most machines." in result.stdout
    return [text for text in paragraphs(result).splitlines() if text.startswith("! ")][:-1]


@pytest.mark.needs("pfn")
def test_another_malloc_has_other_steps(physview):
    """glibc's malloc with a mapping for each block: whole pages below the last."""
    # Nor may there be much left on top of the heap, which would serve first.
    options = {
        "MALLOC_MMAP_THRESHOLD_": "4096",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    env = os.environ | options
    (first, *_) = unusual(physview("lab", "heap", env=env))
    size = -(-4112 // PAGE) * PAGE  # a block of 4 KiB, and the 16 bytes before it
    assert first.startswith(f"! The steps are -{size:#x} (29 times)")
    assert "in [anonymous], not in the heap" in first


@pytest.mark.needs("setarch")
def test_addresses_that_are_random_no_more(physview):
    (text,) = unusual(physview("lab", "runs", prefix=["setarch", "-R"]))
    assert "personality ADDR_NO_RANDOMIZE" in text


@pytest.mark.needs("pfn", "kpage", "thp")
def test_huge_pages_that_are_not_given(physview):
    become = (
        "import ctypes, os, sys\n"
        f"assert ctypes.CDLL(None).prctl({PR_SET_THP_DISABLE}, 1, 0, 0, 0) == 0\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    found = unusual(physview("lab", "huge", prefix=[sys.executable, "-c", become]))
    assert found[0].startswith(f"! The kernel gave no huge page: 0 of {HUGE // PAGE} frames")


@pytest.mark.needs("pfn", "kpage")
def test_what_another_process_maps_is_not_evicted(physview, python):
    child = python("from physview import _ffi; ffi, lib = _ffi.load(); lib.pv_sizeof_probe()")
    found = unusual(physview("lab", "cache"))
    assert re.search(r"[1-9][0-9]* pages? stayed because another process maps", found[0])
    assert child.poll() is None


def parent_of(process):
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return None


@pytest.mark.needs("pfn")
def test_ctrl_c_leaves_no_process():
    command = [*DEFAULT_SIGNALS, sys.executable, "-m", "physview", "lab", "runs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    children = []
    while not children and time.monotonic() < deadline:
        # Not by Process.children(): it compares start times, which a change of the clock moves.
        children = [each for each in psutil.process_iter() if parent_of(each) == process.pid]
    assert children, process.poll()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert stderr == ""
    assert "3 processes" not in stdout
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert gone
    assert not alive


def test_a_check_says_what_it_found_either_way():
    evidence = model.Evidence("x")
    assert evidence.check("one", True, "so.", "not so.")
    assert not evidence.check("two", False, "so.", "not so.")
    assert [finding.text for finding in evidence.findings] == ["so.", "not so."]
    assert not evidence.is_usual


def test_the_page_for_the_course_has_every_row_and_lab():
    text = (ROOT / "docs/labs.md").read_text()
    for row in range(1, 11):
        assert re.search(rf"^## {row}\b", text, re.MULTILINE), row
    for name in labs.NAMES:
        assert f"run lab {name}\n" in text, name


def test_the_child_ends_with_the_lab_and_with_its_stdin():
    with probe_process.start() as process:
        assert len(process.probes) == 41
        assert os.path.exists(f"/proc/{process.pid}/maps")
    assert not os.path.exists(f"/proc/{process.pid}")


def test_the_page_shows_real_runs_of_every_lab():
    text = (ROOT / "docs/labs.md").read_text()
    shown = {match[2].splitlines()[0]: match[2] for match in documented.TRANSCRIPT.finditer(text)}
    for name in labs.NAMES:
        printed = shown[f"$ sudo ./scripts/run lab {name}"]
        lab = labs.find(name)
        assert f"\n{name}: {lab.title}" in printed
        assert " ".join(lab.plan.split()) in " ".join(printed.split())
        assert "\n- " in printed
        assert "! marks a result that differs from most machines" not in printed
