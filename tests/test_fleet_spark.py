# SPDX-License-Identifier: GPL-2.0-or-later
"""Spark gives the answers of DuckDB: a cluster with two workers, over loopback.

scripts/test --spark installs PySpark, and runs these tests.
"""

import math

import fleets
import pytest

from physview.errors import UsageError
from physview.fleet import questions
from physview.fleet.dataset import Dataset, Selection
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.spark_engine import SparkEngine

pytestmark = [pytest.mark.needs("spark"), pytest.mark.timeout(900)]

# Two workers, each with one core and 1 GiB, in processes of their own.
CLUSTER = "local-cluster[2,1,1024]"
OPTIONS = [
    *({"name": name} for name in questions.QUESTIONS if name != "worst"),
    {"name": "thp", "step": "day", "by_host": True},
    {"name": "fragmentation", "by_host": True},
    {"name": "no-2m", "step": "minute"},
    {"name": "swap-hours", "step": "5min"},
    {"name": "worst", "column": "resident", "limit": 10},
    {"name": "worst", "column": "minor_faults"},
    {"name": "worst", "column": "zones.usable_2m", "lowest": True},
    {"name": "worst", "column": "machine.available", "lowest": True},
]


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Both engines over one fleet, in a folder with a strange name."""
    folder = tmp_path_factory.mktemp("spark") / "a [fleet], {of} it's own"
    fleets.make(folder, hostile=fleets.HOSTILE)
    dataset = Dataset(str(folder), Selection())
    with DuckDbEngine(dataset) as ours, SparkEngine(dataset, master=CLUSTER) as spark:
        yield ours, spark


def is_same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


def test_all_answers_are_equal(engines):
    for options in OPTIONS:
        ours, others = (fleets.ask(engine, **options) for engine in engines)
        assert ours, options
        assert len(ours) == len(others), options
        for one, other in zip(ours, others, strict=True):
            assert list(one) == list(other)
            wrong = [name for name in one if not is_same(one[name], other[name])]
            assert not wrong, (options, one, other)


def test_sql_is_that_of_spark(engines):
    sql = "SELECT host, count(*), max(time) FROM groups GROUP BY host ORDER BY host"
    ours, others = (list(engine.sql(sql).rows) for engine in engines)
    assert ours == others
    assert len(ours) == 9


def test_both_workers_compute(engines):
    about = engines[1]._session.sparkContext._jsc.sc().getExecutorMemoryStatus()
    assert about.size() == 3  # the driver is one of them


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM parquet.`/tmp`",
        "SELECT * FROM csv.`/etc/passwd`",
        "SELECT reflect('java.lang.System', 'exit', 1)",
        "SELECT java_method('java.lang.Runtime', 'getRuntime')",
        "SELECT `reflect`('java.lang.Runtime', 'getRuntime')",
        "INSERT OVERWRITE DIRECTORY '/tmp/x' SELECT 1",
        "CREATE TABLE t AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SET spark.sql.ansi.enabled = false",
        "SELECT nope FROM groups",
        "SELECT FROM WHERE",
        "",
    ],
)
def test_sql_reads_the_views_only(engines, sql):
    with pytest.raises(UsageError) as caught:
        engines[1].sql(sql).collect()
    assert "\n" not in str(caught.value)
