# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers questions with Apache Spark, for datasets that one machine would take too long for.

The workers read the files themselves: all of them must see the dataset under the same path.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from physview.errors import PhysviewError, UsageError, first_line
from physview.fleet.answer import Answer, AnswerColumn, plain, unique_names
from physview.fleet.dataset import Dataset
from physview.fleet.duckdb_engine import DuckDbEngine
from physview.fleet.views import SPARK_TYPES
from physview.recording import schema
from physview.runtime.extras import need

DEFAULT_MASTER = "local[*]"
_REFUSED_FUNCTIONS = ("reflect", "java_method", "try_reflect")
"""Functions of Spark that call any function of Java."""
_HOST = (
    r"CASE WHEN host RLIKE '^[\\x00-\\xff]*$'"
    " THEN decode(encode(host, 'ISO-8859-1'), 'UTF-8') ELSE host END"
)
"""The name of a host: Spark makes a letter of each escaped byte of a folder's name."""
_LOCAL_ONLY = re.compile(r"local(\[|$|-cluster)")


class SparkEngine:
    """Spark with the views groups, zones and machine. A context manager.

    Args:
        dataset: What is read.
        master: Where Spark is: local[*], or spark://HOST:PORT.

    Raises:
        Unsupported: A package of the extra is missing.
        PhysviewError: Spark does not start, or a file has a schema of a later version.
    """

    name = "spark"

    def __init__(self, dataset: Dataset, *, master: str | None = None) -> None:
        self._dataset = dataset
        warnings.filterwarnings("ignore", category=FutureWarning, module="pyspark")
        self._sql = need("pyspark.sql", "cannot ask the fleet with Spark")
        with DuckDbEngine(dataset) as checked:  # checks the files, and finds the twins
            checked.open_tables()
            self.twins = checked.twins
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="physview-fleet-"))
        try:
            self._session = self._start(folder, master or DEFAULT_MASTER)
            self._stack.callback(self._session.stop)
            with self._translated("cannot read the dataset"):
                for table in schema.TABLES:
                    self._make_view(table)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> SparkEngine:
        return self

    def __exit__(self, *_about: object) -> None:
        self._stack.close()

    def _start(self, folder: str, master: str) -> Any:
        options = {
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.ansi.enabled": "true",
            "spark.sql.warehouse.dir": f"{folder}/warehouse",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.log.level": "ERROR",
            "spark.sql.shuffle.partitions": "8",
            "spark.driver.extraJavaOptions": f"-Dderby.system.home={folder}",
        }
        if _LOCAL_ONLY.match(master):  # nobody else can connect to the driver
            options |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
            options["spark.local.dir"] = folder
        builder = self._sql.SparkSession.builder.appName("fleet (physview)").master(master)
        for name, value in options.items():
            builder = builder.config(name, value)
        with _quiet(), self._translated(f"cannot start Spark on {master}"):
            return builder.getOrCreate()

    def _make_view(self, table: str) -> None:
        """Make the view of a table. Spark reads missing columns as null, and leaves out others."""
        columns = schema.TABLES[table]
        types = [f"`{column.name}` {SPARK_TYPES[column.kind]}" for column in columns]
        types += ["host string", "date date"]
        files = self._dataset.files(table)
        shape = ", ".join(types)
        if not files:
            self._session.createDataFrame([], shape).createOrReplaceTempView(table)
            return
        root = f"{self._dataset.address}/{table}"
        rows = self._session.read.schema(shape).option("basePath", root)
        frame = rows.parquet(*(self._dataset.pattern_of(file) for file in files))
        selection = self._dataset.selection
        for sign, moment in ((">=", selection.since), ("<", selection.until)):
            if moment is not None:
                frame = frame.where(f"time {sign} timestamp '{moment:%Y-%m-%d %H:%M:%S.%f}+00:00'")
        frame.withColumn("host", self._sql.functions.expr(_HOST)).createOrReplaceTempView(table)

    def run(self, columns: Sequence[AnswerColumn], expression: Any) -> Answer:
        """Answer a question, an Ibis expression over expressions.open_tables()."""
        ibis = need("ibis", "cannot ask the fleet")
        ibis.pyspark  # noqa: B018  # loads Ibis's options of Spark
        sql = str(ibis.to_sql(expression, dialect="pyspark"))
        with self._translated("cannot answer the question"):
            rows = self._session.sql(sql).collect()
        return Answer(columns, [tuple(map(_plain, row)) for row in rows])

    def sql(self, text: str) -> Answer:
        """Answer a SELECT of the user, which reads the views only and calls no Java.

        Raises:
            UsageError: It is something else.
        """
        check_select(text)
        with self._translated("cannot run the SQL"):
            frame = self._session.sql(text)
            columns = [AnswerColumn(name, "text", "") for name in unique_names(frame.columns)]
            return Answer(columns, (tuple(map(_plain, row)) for row in frame.toLocalIterator()))

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except PhysviewError:
            raise
        except Exception as error:
            why = first_line(error)
            is_wrong = type(error).__name__ in ("AnalysisException", "ParseException")
            kind = UsageError if is_wrong and what == "cannot run the SQL" else PhysviewError
            raise kind(what, why) from None


def check_select(text: str) -> None:
    """Check that SQL for Spark is one SELECT of the views.

    Spark cannot be kept from other files as DuckDB can, so the text itself is checked.

    Raises:
        UsageError: It is not.
    """
    need("ibis", "cannot ask the fleet")
    import sqlglot
    from sqlglot import expressions

    what, remedy = "cannot run the SQL", "give one SELECT from groups, zones and machine"
    try:
        parsed = sqlglot.parse(text, dialect="spark")
    except sqlglot.errors.SqlglotError as error:
        raise UsageError(what, first_line(error), remedy) from None
    if len(parsed) != 1 or not isinstance(parsed[0], expressions.Query):
        raise UsageError(what, "it is not one SELECT", remedy)
    own = {each.alias for each in parsed[0].find_all(expressions.CTE)} | set(schema.TABLES)
    for table in parsed[0].find_all(expressions.Table):
        if table.name not in own or table.db or table.catalog:
            raise UsageError(what, f"there is no table {table.sql('spark')}", remedy)
    for function in parsed[0].find_all(expressions.Func):
        if function.name.lower() in _REFUSED_FUNCTIONS:
            raise UsageError(what, f"{function.name} may call any Java function", remedy)


def _plain(value: Any) -> Any:
    """Make a value of Spark plain. Its moments have no zone: they are in this process's."""
    if hasattr(value, "asDict"):
        return plain(value.asDict(recursive=True))
    return plain(value.astimezone()) if hasattr(value, "astimezone") else plain(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the start of Java from writing to stderr: it names the files of its log settings."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
