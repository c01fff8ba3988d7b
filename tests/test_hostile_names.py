# SPDX-License-Identifier: GPL-2.0-or-later
"""No command prints an attacker's names to a terminal or picture without quoting."""

import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import missing
from hostile_names import COMM, FORGED, NASTY, STYLE, Result, Target, hostile_process
from paths import ROOT
from screens import PtyRun
from users import AS_NOBODY

from physview.commands import COMMANDS, make_parser
from physview.text.quoting import unescaped

LOCALES = {
    "UTF-8": {"LC_ALL": "C.UTF-8"},
    "Latin-1": {"LC_ALL": "en_US.ISO-8859-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
UNSET = ("LANG", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONUNBUFFERED")


@pytest.fixture(scope="module")
def latin1(tmp_path_factory):
    """Environment variables for an ISO-8859-1 locale. Without localedef, Python's encoding only."""
    folder = tmp_path_factory.mktemp("locale")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "iso8859-1"}
    return {**LOCALES["Latin-1"], "LOCPATH": str(folder)}


def by_itself():
    """The command prefix for a private mount namespace, if it can be made."""
    command = ["unshare", "-m", "--propagation", "private"]
    works = os.geteuid() == 0 and not subprocess.run([*command, "true"], check=False).returncode
    return command if works else []


@pytest.fixture(scope="module")
def outcomes(latin1):
    """The results of all commands by locale and user. Each is run once."""
    found = {}

    def outcome(locale, user, folder):
        if (locale, user) not in found:
            variables = latin1 if locale == "Latin-1" else LOCALES[locale]
            env = {k: v for k, v in os.environ.items() if k not in UNSET} | variables
            prefix = AS_NOBODY if user == "nobody" else by_itself()
            # What takes long is the same in every locale.
            machine = "machine" if (locale, user) == ("Latin-1", "me") else "no"
            program = str(ROOT / "tests/support/hostile_names.py")
            command = [*prefix, sys.executable, program, str(folder), machine]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, cwd="/")
            target, encodings, results, files = pickle.loads(done.stdout)
            results = {name: [Result(*each) for each in runs] for name, runs in results.items()}
            found[locale, user] = Target(*target), encodings, results, files
        return found[locale, user]

    return outcome


@pytest.fixture(
    params=[
        pytest.param(("UTF-8", "me"), id="UTF-8"),
        pytest.param(("Latin-1", "me"), id="Latin-1"),
        pytest.param(("C", "me"), id="C"),
        pytest.param(("C", "nobody"), id="C-nobody", marks=pytest.mark.needs("nobody")),
    ]
)
def outcome(request, outcomes, open_folder):
    return outcomes(*request.param, open_folder)


def iter_results(outcome):
    for found in outcome[2].values():
        yield from found


def test_every_command_is_run_in_every_form(outcomes, open_folder):
    results = outcomes("Latin-1", "me", open_folder)[2]
    assert set(results) == {*COMMANDS, ""}
    subparsers = next(action.choices for action in make_parser()._actions if action.choices)
    assert isinstance(subparsers, dict)
    for command, parser in subparsers.items():
        words = {word for result in results[command] for word in result.command}
        if "--json" in parser._option_string_actions:
            assert "--json" in words
            assert any(json_of(result) is not None for result in results[command]) or command in (
                "walk", "compare", "tables",  # need the module, or BPF
                "trace",  # and a kernel that traces
                *(("frames", "owners") if missing("kpage") else ()),
            ), command  # fmt: skip
        for action in parser._actions:
            if action.dest in ("format", "shell"):
                assert set(action.choices) <= words
        if "--picture" in parser._option_string_actions or command == "picture":
            suffixes = {os.path.splitext(word)[1] for word in words}
            assert ".svg" in suffixes


def json_of(result):
    try:
        return json.loads(result.stdout)
    except ValueError:
        return None


def test_no_control_character_is_printed(outcome):
    encoding = outcome[1][0]
    for result in iter_results(outcome):
        for data in (result.stdout, result.stderr):
            text = data.decode(encoding)
            bad = {each for each in text if not each.isprintable() and each not in "\n\t"}
            assert not bad, (result.command, text)
            assert not any(line.startswith(FORGED.decode()) for line in text.split("\n")), result


def test_every_command_ends_with_its_report_or_a_line(outcome):
    for result in iter_results(outcome):
        assert result.code in (0, 1, 2, 125), result
        assert b"Traceback" not in result.stderr, result
        if result.code == 2:
            assert result.stderr.count(b"\n") == 1, result


def test_json_is_ascii(outcome):
    nr = 0
    for result in iter_results(outcome):
        if "--json" in result.command and result.code != 2:
            found = json_of(result)
            assert found is None or "errors" in found, result.command
        if "--json" in result.command or "jsonl" in result.command:
            assert result.stdout.isascii(), result
            nr += bool(result.stdout)
    assert nr > 10


def test_nothing_is_in_a_picture_that_xml_forbids(outcome):
    names = [name for name in outcome[3] if name.endswith((".svg", ".html"))]
    assert names
    for name in names:
        text = outcome[3][name].decode()
        assert all(each.isprintable() or each in "\n\t" for each in text), name


def only(outcome, *words):
    """The output of the command that was run with these words."""
    (found,) = [result for result in iter_results(outcome) if set(words) == set(result.command)]
    assert found.code == 0, found
    return found.stdout


def path_of(target, paths):
    """The path of the file that the process maps."""
    (path,) = {path for path in paths if path.endswith("/mapped") and "mount" not in path}
    return path


def test_names_are_exact_where_programs_read_them(outcome):
    """The kernel writes a newline in a path as \\012, and does not escape backslashes."""
    target = outcome[0]
    pid = str(target.pid)
    encoding, file_encoding = outcome[1]
    found = json.loads(only(outcome, "maps", pid, "--json"))["processes"][0]
    assert found["name"].encode(file_encoding, "surrogateescape") == COMM
    path = path_of(target, [each["mapping"]["path"] for each in found["mappings"]])
    assert NASTY in path.encode(file_encoding, "surrogateescape").replace(b"\\012", b"\n")

    words = ["-o", "name,command", "--sort", "name", "--format", "csv"]
    rows = only(outcome, "maps", pid, *words)
    table = list(csv.DictReader(io.StringIO(rows.decode(encoding))))
    assert path_of(target, [unescaped(row["name"]) for row in table]) == path
    assert {unescaped(row["command"]) for row in table} == {found["name"]}

    rows = only(outcome, "pages", pid, "--columns", "flags,mapcount,cgroup,node", "--format", "csv")
    table = list(csv.DictReader(io.StringIO(rows.decode(encoding))))
    assert path_of(target, [unescaped(row["path"]) for row in table]) == path
    kept = pq.read_table(io.BytesIO(outcome[3]["before.parquet"]))
    assert path_of(target, [unescaped(each) for each in kept["path"].to_pylist()]) == path
    about = json.loads(kept.schema.metadata[b"physview"])
    assert about["comm"] == found["name"]
    assert path_of(target, [each[-1] for each in about["mappings"]]) == path
    if target.cgroup and not missing("memory-cgroups"):
        found = {unescaped(row["cgroup"]) for row in table if row["cgroup"]}
        assert any(target.cgroup.endswith(cgroup) for cgroup in found - {"/"})


@pytest.mark.parametrize(
    "words",
    [["maps"], ["pages", "--each"], ["translate", "0x0"], ["watch", "--ticks", "1"], ["watch"]],
    ids=" ".join,
)
def test_a_terminal_gets_no_sequence_but_ours(words, tmp_path):
    with hostile_process(str(tmp_path)) as target:
        command = [sys.executable, "-m", "physview", words[0], str(target.pid)]
        if words[0] == "translate":
            command += map(hex, target.vaddrs)
        env = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        with PtyRun([*command, *words[1:]], env=env, columns=200, lines=60) as run:
            if words == ["watch"]:
                run.press("\x1b[F")
                run.until(lambda _: any("mapped" in line for line in run.lines))
                run.press("q")
            run.wait()
        text = run.raw.decode()  # all UTF-8
    assert STYLE not in run.raw
    assert "\\x1b[7;35m" in text
    without = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text)
    assert all(each.isprintable() or each in "\r\n" for each in without), ascii(without)


def test_a_command_of_ones_own_prints_what_it_wants(outcome):
    """trace passes on the output of the traced command unchanged: the user chose the command."""
    for result in iter_results(outcome):
        if result.command[:1] == ["trace"] and result.code == 0 and "--" in result.command:
            assert b"done\n" in result.stdout
