# SPDX-License-Identifier: GPL-2.0-or-later
"""Any name from outside is quoted within one line. Escaped names can be restored exactly."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physview.errors import PhysviewError
from physview.model import Vma
from physview.text import quoting

ANY_BYTES = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
# All letters, also lone surrogates that no file name can have.
ANY_TEXT = st.text(st.characters(), max_size=40)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("/usr/lib/ä b", "/usr/lib/ä b"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x7f\x9b", r"\x7f\u009b"),
        ("\udcff\udcfe", r"\xff\xfe"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        (r"dev-disk\x2d1", r"dev-disk\x2d1"),
    ],
)
def test_a_name_is_quoted_as_a_shell_reads_it(name, form):
    assert quoting.printable(name) == form


@given(ANY_BYTES | ANY_TEXT)
def test_what_is_quoted_can_be_printed_and_no_more_is(name):
    quoted = quoting.printable(name)
    assert quoted.isprintable()
    assert quoting.printable(quoted) == quoted
    quoted.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@given(name=ANY_BYTES | ANY_TEXT | st.text("\\nrtxuU0123456789abcdef\n\udcff"))
def test_an_escaped_name_is_got_back(encoding, name):
    escaped = quoting.escaped(name, encoding)
    assert escaped.isprintable()
    escaped.encode(encoding)
    assert quoting.unescaped(escaped) == name


def test_what_nobody_escaped_stays():
    assert quoting.unescaped(r"\q\U00110000\x1") == r"\q\U00110000\x1"


def test_an_error_is_one_line_whatever_it_names():
    error = PhysviewError("cannot read \x1b[2J", "a\nb", "see \udcff", ("  \x07", "  x"))
    assert str(error) == "cannot read \\x1b[2J: a\\nb; see \\xff\n  \\x07\n  x"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_mapping_prints_its_path_quoted():
    vma = Vma(0, 4096, "r--p", 0, "00:00", 0, "/a\n\x1b]0;x\x07")
    assert str(vma) == r"r--p /a\n\x1b]0;x\x07"
