# SPDX-License-Identifier: GPL-2.0-or-later
"""Man page and completions are up to date with the parser, and work in real shells."""

import os
import subprocess
import sys

import pytest
from paths import ROOT
from screens import PtyRun

sys.path.insert(0, str(ROOT / "scripts"))
import generate

from physview import labs

# With our pid, for others may run these tests at the same time.
ONE, TWO, LATER = (f"{name}-{os.getpid()}-x" for name in ("one", "two", "new"))
SOURCE = {
    "bash": f'eval "$({sys.executable} -m physview completion bash)"',
    "fish": f"{sys.executable} -m physview completion fish | source",
}


# What is typed before Tab, in the folder of the checkout, and what it becomes.
PRESSED = [
    ("physview tran", "physview translate"),
    ("physview lab wit", "physview lab witnesses"),
    ("./scripts/run lab hid", "./scripts/run lab hidden"),
    (f"{ROOT}/scripts/run lab hid", f"{ROOT}/scripts/run lab hidden"),
    ("./scripts/run trace kmem:kmall", "./scripts/run trace kmem:kmalloc"),
    ("physview trace sched:", "physview trace sched:sched_switch"),
]


def shell(*command, **env):
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
    )
    assert result.returncode == 0, result
    assert result.stderr == ""
    return result.stdout


def in_bash(*words):
    """bash's completions of the last word, from the function that readline calls."""
    quoted = " ".join(f"'{word}'" for word in words)
    return shell(
        "bash",
        "--norc",
        "-c",
        f"{SOURCE['bash']}; COMP_WORDS=(physview {quoted}); COMP_CWORD={len(words)};"
        " [[ $(complete -p physview) =~ -F\\ ([^ ]+) ]]; ${BASH_REMATCH[1]} physview;"
        " printf '%s\\n' \"${COMPREPLY[@]}\"",
    ).split()


def in_fish(home, line):
    command = f"{SOURCE['fish']}; complete -C '{line}'"
    out = shell("fish", "--no-config", "-c", command, HOME=str(home))
    return [choice.split("\t")[0] for choice in out.splitlines()]


@pytest.mark.parametrize("path", generate.generated(), ids=lambda path: path.name)
def test_what_is_generated_is_not_old(path):
    expected = generate.generated()[path]
    assert path.read_text() == expected, "run .venv/bin/python scripts/generate.py"


def test_the_man_page_has_every_option():
    page = generate.man_page().replace("\\-", "-")
    for name, parser in generate.subparsers(generate.make_parser()).items():
        assert f"physview {name}" in page
        for action in parser._actions:
            for option in action.option_strings:
                assert action.dest == "help" or f"\\fB{option}\\fR" in page, (name, option)


def test_each_command_has_a_man_page_with_its_options():
    pages = generate.command_pages()
    for name, parser in generate.subparsers(generate.make_parser()).items():
        page = pages[f"physview-{name}.1"].replace("\\-", "-")
        for action in parser._actions:
            for option in action.option_strings:
                assert action.dest == "help" or f"\\fB{option}\\fR" in page, (name, option)
        assert f".BR physview-{name} (1)" in generate.man_page().replace("\\-", "-")
    assert {path.name for path in (ROOT / "docs/man").iterdir()} == set(pages)


MAN_PAGES = ["physview.1", "man/physview-maps.1", "man/physview-trace.1", "man/physview-doctor.1"]


@pytest.mark.needs("groff")
@pytest.mark.parametrize("name", MAN_PAGES)
def test_groff_warns_of_nothing(name):
    page = str(ROOT / "docs" / name)
    result = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-cbou", page],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    assert "EXIT STATUS" in result.stdout


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("name", MAN_PAGES)
def test_mandoc_finds_only_that_there_is_no_date(name):
    page = str(ROOT / "docs" / name)
    result = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, check=False
    )
    assert [line for line in result.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.needs("bash")
def test_bash_completes_commands_options_and_choices():
    assert set(in_bash("tra")) == {"trace", "translate"}
    assert set(in_bash("")) >= {"memview", "watch", "doctor", "completion"}
    assert in_bash("maps", "--roll") == ["--rollup"]
    assert in_bash("memview", "--source", "k") == ["kmod"]
    assert in_bash("completion", "z") == ["zsh"]


# Instead of the kernel's list of events, which only root can read, and only where tracefs is.
EVENTS = "cat() { printf '%s\\n' kmem:kmalloc kmem:kfree sched:sched_switch; }"


@pytest.mark.needs("bash")
def test_bash_completes_labs_and_events():
    assert in_bash("lab", "") == list(labs.NAMES)
    assert in_bash("lab", "wit") == ["witnesses"]
    assert set(in_bash("trace", "copy_")) == {"copy_to_user", "copy_from_user"}


@pytest.mark.needs("bash")
def test_bash_completes_when_tab_is_pressed():
    with PtyRun(["bash", "--norc", "-i"], env={"PS1": "$ ", "PYTHONPATH": str(ROOT)}) as run:
        run.press(f"{SOURCE['bash']}; cd {ROOT}; {EVENTS}; echo it is $((20 + 3))\r")
        run.until(lambda _: b"it is 23" in run.raw)
        for typed, shown in PRESSED:
            run.press(f"\x15{typed}\t")
            run.shows(shown)


def named(python, name):
    """A process with this comm."""
    return python(f"import ctypes\nctypes.CDLL(None).prctl(15, {name!r}.encode())")


@pytest.mark.needs("bash")
def test_bash_completes_the_names_of_processes_that_are_unique(python):
    named(python, ONE)
    named(python, TWO)
    named(python, TWO)
    python("import ctypes\nctypes.CDLL(None).prctl(15, b'no \\xff text')")
    assert in_bash("watch", ONE[:-1]) == [ONE]
    assert in_bash("maps", TWO[:-1]) == []
    assert in_bash("owners", "1", "--pid", ONE[:-1]) == [ONE]


@pytest.mark.needs("bash")
def test_bash_runs_no_process_name(python, tmp_path):
    child = named(python, "$(touch ran)")
    named(python, ONE)
    with open(f"/proc/{child.pid}/comm") as file:
        assert file.read() == "$(touch ran)\n"
    command = (
        f"cd {tmp_path}; {SOURCE['bash']}; COMP_WORDS=(physview watch ''); COMP_CWORD=2;"
        " _shtab_physview physview; echo ${COMPREPLY[@]}"
    )
    assert ONE in shell("bash", "--norc", "-c", command).split()
    assert os.listdir(tmp_path) == []


@pytest.mark.needs("bash")
def test_bash_completes_files(tmp_path):
    (tmp_path / "some-file.parquet").touch()
    assert in_bash("diff", f"{tmp_path}/some") == [f"{tmp_path}/some-file.parquet"]


@pytest.mark.needs("fish")
def test_fish_completes(python, tmp_path):
    named(python, ONE)
    assert set(in_fish(tmp_path, "physview tra")) == {"trace", "translate"}
    assert in_fish(tmp_path, "physview maps --roll") == ["--rollup"]
    assert ONE in in_fish(tmp_path, f"physview watch {ONE[:-1]}")
    assert in_fish(tmp_path, "physview lab wit") == ["witnesses"]
    assert set(in_fish(tmp_path, "physview trace copy_")) == {"copy_to_user", "copy_from_user"}
    for path in ("./scripts/run", f"{ROOT}/scripts/run"):
        assert in_fish(tmp_path, f"{path} lab wit") == ["witnesses"]


@pytest.mark.needs("zsh")
def test_zsh_completes_when_tab_is_pressed(python, tmp_path):
    named(python, ONE)
    env = {"PYTHONPATH": str(ROOT), "ZDOTDIR": str(tmp_path), "PS1": "$ "}
    with PtyRun(["zsh", "-f", "-i"], env=env) as run:
        load = f'eval "$({sys.executable} -m physview completion zsh)"'
        run.press("autoload -Uz compinit; compinit -u -D\r")
        run.press(f"{load}; cd {ROOT}; {EVENTS}; echo it is $((20 + 3))\r")
        run.until(lambda _: b"it is 23" in run.raw)
        named(python, LATER)
        words = [f"physview watch {ONE}", f"physview watch {LATER}"]
        for typed, shown in [*PRESSED, *((each[:-1], each) for each in words)]:
            run.press(f"\x15{typed}\t")
            run.shows(shown)


def test_a_shell_without_one_is_refused(physview):
    assert physview("completion", "csh").returncode == 2
