# SPDX-License-Identifier: GPL-2.0-or-later
"""physview's output streams: no control character reaches a terminal, and any encoding works."""

import ast
import io
import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from physview.text import output

ANY_TEXT = st.text(st.characters(), max_size=60)
ENCODINGS = ["utf-8", "latin-1", "ascii", "cp1252", "gb18030", "koi8-r", "utf-16", "iso2022_jp"]


def printed(text, encoding="utf-8", write=None):
    """The bytes that a program's stream with this encoding writes for a text."""
    raw = io.BytesIO()
    stream = output._safe(io.TextIOWrapper(raw, encoding, newline="\n"))
    (write or (lambda out: out.write(text)))(stream)
    stream.flush()
    return raw.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=ANY_TEXT)
def test_whatever_is_written_only_what_is_printable_leaves(encoding, text):
    data = printed(text, encoding)
    leaves = data.decode("ascii" if encoding.startswith(("utf-16", "iso2022")) else encoding)
    assert leaves.replace("\n", "").replace("\t", "").isprintable()


@given(ANY_TEXT)
def test_what_is_printable_leaves_as_it_is(text):
    plain = "".join(each for each in text if each.isprintable() or each in "\n\t")
    assert printed(plain) == plain.encode()


def test_what_an_encoding_lacks_becomes_readable():
    assert printed("… 0x1 → 0x2 └─ ▁█ ü 漢", "ascii") == rb"... 0x1 -> 0x2 `- .@ \u00fc \u6f22"
    assert printed("… ü", "latin-1") == b"... \xfc"
    assert printed("… ü 漢") == "… ü 漢".encode()


def test_many_lines_are_checked_a_buffer_at_a_time():
    lines = "".join(f"line {number} ü\n" for number in range(50_000))
    assert printed(lines) == lines.encode()
    data = printed(f"{lines}\x1b[2J{lines}")
    assert data == f"{lines}\\x1b[2J{lines}".encode()


def test_styles_pass_and_keep_their_place():
    def write(stream):
        stream.write("a\x1b")
        output.write_styled(stream, "\x1b[1mb\x1b[0m")
        stream.write("c")

    assert printed("", write=write) == b"a\\x1b\x1b[1mb\x1b[0mc"


def test_what_a_commands_own_output_is_passes_as_it_is():
    raw = io.BytesIO()
    stream = output._safe(io.TextIOWrapper(raw, "ascii"))
    output.unfiltered(stream).write(b"\x1b[1m\xff")
    assert raw.getvalue() == b"\x1b[1m\xff"


def test_a_stream_without_bytes_is_safe_too(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    with output.safe_streams():
        print("a\x1b", "\udcff", "…")
    assert sys.stdout is text
    assert text.getvalue() == "a\\x1b \\xff …\n"


def test_streams_are_as_before_and_open(capsysbinary):
    before = sys.stdout, sys.stderr
    with output.safe_streams(), output.safe_streams():
        print("a\x1b")
        print("b\udcff", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    print("c")
    assert capsysbinary.readouterr() == (b"a\\x1b\nc\n", b"b\\xff\n")


def test_a_traceback_is_safe_too():
    code = (
        "from physview.text.output import safe_streams\n"
        "with safe_streams(): raise RuntimeError('a\\x1b[2J')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 1
    assert rb"RuntimeError: a\x1b[2J" in result.stderr
    assert b"\x1b" not in result.stderr


def test_an_unbuffered_stream_writes_all():
    code = (
        "from physview.text.output import safe_streams\n"
        "with safe_streams(): print('x' * 1_000_000 + '\\x1b')"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b"x" * 1_000_000 + b"\\x1b\n"


def test_on_a_terminal_a_table_has_colours_and_a_name_has_none():
    code = (
        "from rich.text import Text\n"
        "from physview.text.output import safe_streams\n"
        "from physview.reporters.drawing import draw\n"
        "with safe_streams(): draw(Text('bold \\x1b[31m \\x9b1m \\u202e', style='bold'), 80)"
    )
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"}
    subprocess.run([sys.executable, "-c", code], stdout=follower, check=True, env=environment)
    os.close(follower)
    data = os.read(leader, 4096)
    os.close(leader)
    assert data == b"\x1b[1mbold \\x1b[31m \\u009b1m \\u202e\x1b[0m\r\n"


# In the VM, or in the pipe of a process of our own: no terminal hears them.
ELSEWHERE = (
    *("vm/init.py", "vm/guest.py", "vm/guest_commands.py"),
    *("labs/probe_process.py", "labs/traced_process.py", "labs/memory.py", "labs/nested_guest.py"),
)
# Who may do what gets around the streams, and why that is safe.
BYPASSES = {
    "Console": {},
    "_Console": {"reporters/drawing.py": "its texts are quoted, its styles are rich's"},
    "write_styled": {
        "reporters/drawing.py": "what that console has drawn",
        "commands/_common.py": "a message, whose text was quoted",
    },
    "StyledStream": {"reporters/drawing.py": "what that console draws on"},
    "unfiltered": {
        "vm/runner.py": "the output of the user's own command",
        "commands/vm.py": "the VM's log, with --console",
        "vm/client.py": "the output of the user's own command",
    },
    "stdout.buffer": {},
    "stderr.buffer": {},
    "__stdout__": {},
    "__stderr__": {},
    "os.write": {
        "tracing/tracefs.py": "a file of tracefs",
        "tracing/traced_command.py": "a pipe to the process that is started",
        "labs/evict.py": "/proc/sys/vm/drop_caches",
        "vm/keeper.py": "a pipe to the process that starts the VM",
        "sources/soft_dirty.py": "/proc/PID/clear_refs",
    },
}
# What prints, but to our streams.
PRINTS = ("print", "sys.stdout.write", "sys.stdout.writelines", "sys.stderr.write")


def iter_calls():
    """Every name that is called or read in the package, with its file."""
    for path in sorted((ROOT / "physview").rglob("*.py")):
        name = str(path.relative_to(ROOT / "physview"))
        if name in (*ELSEWHERE, "text/output.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield name, ast.unparse(node.func)
            elif isinstance(node, ast.Attribute):
                yield name, ast.unparse(node)


def test_nothing_is_printed_past_the_streams():
    found = {
        (bypass, name)
        for name, called in iter_calls()
        for bypass in BYPASSES
        if f".{called}".endswith(f".{bypass}")
    }
    assert found == {(bypass, name) for bypass, names in BYPASSES.items() for name in names}
    assert sum(called in PRINTS for _, called in iter_calls()) > 50  # it does look
