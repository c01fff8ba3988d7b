# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables: other programs take their columns without copying them, and let them go again."""

import gc
import os
import subprocess
import sys
import weakref

import duckdb
import numpy as np
import pandas
import polars
import pyarrow
import pytest

from physview import UsageError
from physview.errors import PhysviewError
from physview.memory import arrow
from physview.memory.columns import Column, Field, Table, columns_of_rows, numbers, words, words_of
from physview.model import NO_ENTRY

NR = 1000


def address(array):
    return array.__array_interface__["data"][0]


@pytest.fixture
def table():
    pfns = np.arange(NR, dtype=np.uint64)
    pfns[::7] = NO_ENTRY
    columns = [
        numbers("vaddr", np.arange(NR, dtype=np.uint64) << np.uint64(12), "address", "where"),
        numbers("pfn", pfns, "frame", "its frame", none=NO_ENTRY),
        numbers("vma", np.arange(NR, dtype=np.uint32)),
        numbers("node", np.full(NR, -1, dtype=np.int32), none=-1),
        numbers("share", np.linspace(0, 1, NR)),
        words("path", np.arange(NR) % 3, ["/bin/a\nb", None, "ü\udcff"], "the file"),
        Column("gone", np.arange(NR) % 2 == 0),
    ]
    return Table("samples", columns, None, pid=7, source="pagemap")


NUMBERS = ["vaddr", "pfn", "vma", "node", "share"]


def addresses(chunked):
    """Where Arrow has the values of columns, by name; each is one chunk."""
    return {name: chunked.column(name).chunk(0).buffers()[1].address for name in NUMBERS}


def expected(table):
    return {name: address(table[name]) for name in NUMBERS}


def test_pyarrow_takes_the_columns_without_a_copy(table):
    taken = pyarrow.table(table)
    taken.validate(full=True)
    assert addresses(taken) == expected(table)
    assert taken.column("pfn").null_count == len(range(0, NR, 7))
    assert taken.column("node").null_count == NR
    assert taken.to_pylist() == list(table)
    assert taken.schema.metadata == {b"title": b"samples", b"source": b"pagemap", b"pid": b"7"}
    assert taken.schema.field("pfn").metadata == {b"meaning": b"its frame", b"unit": b"frame"}
    assert not taken.schema.field("vaddr").nullable
    assert pyarrow.schema(table) == taken.schema


def test_polars_takes_the_columns_without_a_copy(table):
    taken = polars.DataFrame(table)
    assert addresses(pyarrow.table(taken)) == expected(table)
    assert address(taken["vaddr"].to_numpy(allow_copy=False)) == address(table["vaddr"])
    assert taken["pfn"].to_list() == [row["pfn"] for row in table]
    assert taken["path"].to_list() == [row["path"] for row in table]


def test_pandas_takes_the_columns_without_a_copy(table):
    taken = pyarrow.table(table).to_pandas(types_mapper=pandas.ArrowDtype)
    found = {name: pyarrow.array(taken[name]).buffers()[1].address for name in NUMBERS}
    assert found == expected(table)
    if hasattr(pandas.DataFrame, "from_arrow"):  # it makes NumPy columns of its own
        assert list(pandas.DataFrame.from_arrow(table)["vaddr"]) == list(table["vaddr"])


def test_duckdb_reads_the_columns_where_they_are(table, owners):
    rows = table  # "table" is a word of SQL
    query = "select count(*), count(pfn), sum(vma), max(path) from rows"
    assert rows is table
    assert duckdb.sql(query).fetchall()[0] == (NR, NR - 143, NR * (NR - 1) // 2, "ü\\xff")
    # DuckDB's results have memory of their own. While it computes them, it holds the table's.
    large = Table("large", [numbers("n", np.arange(1 << 22, dtype=np.uint64))], None)
    connection = duckdb.connect(config={"threads": 1})
    reader = connection.from_arrow(large).to_arrow_reader(1 << 11)
    assert reader.read_next_batch().column(0)[7].as_py() == 7
    (held,) = owners(large)
    large["n"][-1] = 77  # seen at the end: what was not read yet is read from there
    assert [batch.column(0)[-1].as_py() for batch in reader][-1] == 77
    del reader
    connection.close()
    gc.collect()
    assert held() is None


MEMORY = """
import resource, numpy, duckdb
from physview.memory.columns import Table, numbers
duckdb.sql("select 1").fetchall()[0]
large = Table("large", [numbers("n", numpy.arange(1 << 24, dtype=numpy.uint64))], None)
small = Table("small", [numbers("n", numpy.arange(1 << 14, dtype=numpy.uint64))], None)
duckdb.sql("select sum(n) from small").fetchall()[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert duckdb.sql("select sum(n) from large").fetchall()[0][0] == (1 << 24) * ((1 << 24) - 1) // 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_duckdb_needs_no_memory_for_the_columns():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 48 << 10, "KiB; the column has 128 MiB"


@pytest.fixture
def owners(monkeypatch):
    """Returns weak references to what keeps a table alive for Arrow, from then on."""
    found = []
    make = arrow._Owner.__init__

    def remember(self, columns, *args, **options):
        make(self, columns, *args, **options)
        found.append((weakref.ref(self), [address(each.values) for each in columns]))

    monkeypatch.setattr(arrow._Owner, "__init__", remember)

    def of(table):
        mine = [address(column.values) for column in table.columns.values()]
        return [held for held, theirs in found if theirs == mine and held() is not None]

    return of


def test_what_was_taken_outlives_the_table(table, owners):
    rows = list(table)
    taken = pyarrow.table(table)
    (held,) = owners(table)
    one = taken.column("path")  # a child, moved away from its parent
    vaddr = taken.column("vaddr")
    del table, taken
    gc.collect()
    assert one.to_pylist() == [row["path"] for row in rows]
    del one
    gc.collect()
    assert held() is not None
    assert vaddr.to_pylist() == [row["vaddr"] for row in rows]
    del vaddr
    gc.collect()
    assert held() is None


def test_what_nobody_takes_is_let_go(table, owners):
    capsules = [table.__arrow_c_stream__(), table.__arrow_c_schema__()]
    assert len(owners(table)) == 2
    del capsules
    gc.collect()
    assert not owners(table)
    for _ in range(3):
        pyarrow.schema(table)
    gc.collect()
    assert not owners(table)


def test_many_threads_take_and_let_go(table, owners):
    from concurrent.futures import ThreadPoolExecutor

    def take(_):
        return pyarrow.table(table).column("vma").to_pylist()[-1]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(take, range(200))) == {NR - 1}
    gc.collect()
    assert not owners(table)


def test_a_table_without_rows_has_its_columns():
    fields = [Field("size", "u8", "bytes", "its size"), Field("name", "text", "", "its name")]
    empty = Table("nothing", columns_of_rows(fields, []), None)
    assert len(empty) == 0
    assert list(empty) == []
    assert pyarrow.table(empty).schema.names == ["size", "name"]
    assert polars.DataFrame(empty).shape == (0, 2)
    assert duckdb.sql("select count(*) from empty").fetchall() == [(0,)]
    assert empty._repr_html_().count("<tr>") == 1


def test_a_value_that_is_not_known_is_null(table):
    fields = [
        Field("size", "u8", "bytes", ""),
        Field("node", "i4", "", ""),
        Field("share", "f8", "", ""),
        Field("name", "text", "", ""),
    ]
    rows = [(1, None, 0.5, None), (None, 3, None, "a")]
    made = Table("rows", columns_of_rows(fields, rows), None)
    names = [field.name for field in fields]
    assert [tuple(row.values()) for row in made] == rows
    assert [tuple(row.values()) for row in pyarrow.table(made).to_pylist()] == rows
    assert made.valid("size").tolist() == [True, False]
    assert made["size"].tolist() == [1, NO_ENTRY]
    assert made["name"].tolist() == [None, "a"]
    assert made.column_names == names
    assert words_of("x", np.array([5, 9, 5]), {5: "five", 9: None}.get).item(0) == "five"


def test_an_unknown_column_is_named(table):
    with pytest.raises(UsageError, match=r"no column 'pfns'.*vaddr, pfn"):
        table["pfns"]
    with pytest.raises(UsageError, match="no column ''"):
        table.valid("")


HOSTILE = "<script>alert(1)</script>\n\x1b[31m'\"&\udcff\u202e"


def test_a_notebook_runs_nothing_that_a_name_says():
    error = PhysviewError(f"cannot read {HOSTILE}", HOSTILE)
    made = Table(
        HOSTILE,
        [
            *columns_of_rows([Field(HOSTILE, "text", "", HOSTILE)], [(HOSTILE,), (None,)]),
            *columns_of_rows([Field("at", "u8", "address", "")], [(4096,), (None,)]),
        ],
        None,
        source=HOSTILE,
        errors=[error],
    )
    for text in (made._repr_html_(), repr(made)):
        assert not set(text) & set("\n\x1b\udcff\u202e")
    html = made._repr_html_()
    assert "<script" not in html
    assert "'\"" not in html
    assert "&lt;script&gt;" in html
    assert "<td>0x1000</td>" in html
    assert pyarrow.table(made).num_rows == 2


def test_a_notebook_shows_the_first_rows_and_says_how_many_more(table):
    html = table._repr_html_()
    assert html.count("<tr>") == 21
    assert "and 980 more rows" in html
    assert "samples of process 7, from pagemap: 1000 rows" in html
    assert repr(table).startswith("<Table of samples of process 7, from pagemap: 1000 rows; vaddr")


def test_a_notebook_shows_the_first_errors():
    errors = [PhysviewError(f"cannot read {number}") for number in range(30)]
    html = Table("files", [], None, errors=errors)._repr_html_()
    assert html.count("cannot read") == 20
    assert "and 10 more errors" in html


AT_THE_END = """
import numpy, polars, pyarrow
from physview.memory.columns import Table, numbers, words
columns = [numbers("n", numpy.arange(1 << 16)), words("w", numpy.zeros(1 << 16, int), ["a"])]
table = Table("rows", columns, None)
kept = [table.__arrow_c_stream__(), table.__arrow_c_schema__(), pyarrow.table(table),
        polars.DataFrame(table), pyarrow.table(table).column(1)]
kept.append(kept)  # a cycle, which is let go last
"""


def test_what_is_held_at_the_end_of_the_process_does_no_harm():
    watchful = os.environ | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    for code in (AT_THE_END, AT_THE_END + "del table, columns"):
        run = [sys.executable, "-X", "dev", "-c", code]
        result = subprocess.run(run, env=watchful, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
