# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers questions with DuckDB, in this process.

DuckDB can read files, the network and its own extensions, and write. Here it can read the dataset
and nothing else, because SQL may come from a page or a colleague, and physview may run as root:
only SELECT is taken, other files are out of reach, and no extension is loaded or downloaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from physview.errors import PhysviewError, UsageError, first_line
from physview.fleet.answer import Answer, AnswerColumn, plain, unique_names
from physview.fleet.dataset import Dataset
from physview.fleet.expressions import tables_of
from physview.fleet.views import DUCKDB_TYPES
from physview.recording import schema
from physview.runtime.extras import need

DEFAULT_MEMORY = 600
DEFAULT_THREADS = 2
_ROWS_AT_ONCE = 1000
_VERSION_KEY = "physview.schema"
_REMOTE = "fleet"
_ALIAS = f"{_REMOTE}://dataset"


class DuckDbEngine:
    """DuckDB with the views groups, zones and machine. A context manager.

    Args:
        dataset: What is read.
        memory: The most memory for DuckDB in MiB. What needs more goes to a temporary folder.
        threads: How many threads it uses.

    Raises:
        Unsupported: A package of the extra is missing.
    """

    name = "duckdb"

    def __init__(
        self, dataset: Dataset, *, memory: int = DEFAULT_MEMORY, threads: int = DEFAULT_THREADS
    ) -> None:
        self._dataset = dataset
        self._duckdb = need("duckdb", "cannot ask the fleet")
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="physview-fleet-"))
        # A thread of its own, because DuckDB does not see a signal while its threads work.
        self._worker = self._stack.enter_context(ThreadPoolExecutor(1))
        self.twins: set[str] = set()
        self._has_view: set[str] = set()
        try:
            self._connection = self._stack.enter_context(self._connect(folder, memory, threads))
            with self._translated("cannot read the dataset"):
                self._root = self._open_remote()
                self._lock()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> DuckDbEngine:
        return self

    def __exit__(self, *_about: object) -> None:
        self._stack.close()

    def _connect(self, folder: str, memory: int, threads: int) -> Any:
        options = {
            "memory_limit": f"{memory}MiB",
            "threads": threads,
            "temp_directory": folder,
            "extension_directory": folder,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_persistent_secrets": False,
            "python_enable_replacements": False,
            "preserve_insertion_order": False,
        }
        try:
            return self._duckdb.connect(":memory:", config=options)
        except self._duckdb.Error as error:
            raise UsageError("cannot start DuckDB", first_line(error)) from None

    def _open_remote(self) -> str:
        """Return the dataset's folder as DuckDB knows it.

        DuckDB reads object stores through pyarrow, and also local folders whose names it would take
        apart: at *, ?, [ and =. For it, the folder then has the name _ALIAS.
        """
        dataset = self._dataset
        if dataset.remote is None:
            return dataset.where
        arrow = need("fsspec.implementations.arrow", "cannot read an object store")

        class Remote(arrow.ArrowFSWrapper):  # type: ignore[misc, name-defined, unused-ignore]
            protocol = _REMOTE

            @classmethod
            def _strip_protocol(cls, path: str) -> str:
                return path.replace(_ALIAS, dataset.where, 1) if path.startswith(_ALIAS) else path

            def glob(self, path: str, **_options: Any) -> list[str]:
                """Say which files a name stands for: itself. DuckDB asks, and adds the scheme."""
                return [path.removeprefix(f"{_REMOTE}://")]

        self._connection.register_filesystem(Remote(dataset.remote))
        return _ALIAS

    def _lock(self) -> None:
        self._connection.execute("SET TimeZone = 'UTC'")
        where = _quoted(f"{self._root}/")
        self._connection.execute(f"SET allowed_directories = [{where}]")
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def open_tables(self, tables: Iterable[str] = tuple(schema.TABLES)) -> None:
        """Check the files of some tables, and make their views.

        Raises:
            PhysviewError: A file cannot be read, or has a schema of a later version.
        """
        with self._translated("cannot read the dataset"):
            for table in tables:
                if table not in self._has_view:
                    self._make_view(table)
                    self._has_view.add(table)

    def _make_view(self, table: str) -> None:
        """Make the view of a table: all columns that the schema knows, in its types, and others."""
        known = schema.TABLES[table]
        types = {column.name: DUCKDB_TYPES[column.kind] for column in known}
        files = self._dataset.files(table)
        if not files:
            nothing = ", ".join(
                f'NULL::{kind} AS "{name}"'
                for name, kind in {**types, "host": "VARCHAR", "date": "DATE"}.items()
            )
            self._connection.execute(f"CREATE VIEW {table} AS SELECT {nothing} LIMIT 0")
            return
        named = {self._root + file.removeprefix(self._dataset.where): file for file in files}
        names = f"[{', '.join(map(_quoted, named))}]"
        self._check_versions(named, names)
        source = (
            f"read_parquet({names}, union_by_name = true, hive_partitioning = true,"
            " hive_types = {'host': VARCHAR, 'date': DATE})"
        )
        there = {
            name: kind
            for name, kind, *_ in self._connection.execute(
                f"DESCRIBE SELECT * FROM {source}"
            ).fetchall()
        }
        parts = [
            f'"{name}"'
            if there.get(name) == kind
            else f'{_identifier(name)}::{kind} AS "{name}"'
            if name in there
            else f'NULL::{kind} AS "{name}"'
            for name, kind in types.items()
        ]
        extra = [name for name in there if name not in types]  # host and date are among them
        parts += map(_identifier, extra)
        conditions = self._conditions()
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        columns = ", ".join(parts)
        self._connection.execute(f"CREATE VIEW {table} AS SELECT {columns} FROM {source}{where}")

    def _conditions(self) -> list[str]:
        selection = self._dataset.selection
        return [
            f"time {sign} TIMESTAMPTZ {_quoted(moment.isoformat())}"
            for sign, moment in ((">=", selection.since), ("<", selection.until))
            if moment is not None
        ]

    def _check_versions(self, named: dict[str, str], names: str) -> None:
        """Refuse files of a later version. Find out which hosts are several machines.

        Args:
            named: The files by their names for DuckDB.
            names: These names in SQL.
        """
        rows = self._connection.execute(
            "SELECT file_name, decode(key), decode(value) FROM parquet_kv_metadata("
            f"{names}) WHERE decode(key) IN ('{_VERSION_KEY}', 'host', 'machine')"
        ).fetchall()
        about: dict[str, dict[str, str]] = {}
        for file, key, value in rows:
            about.setdefault(file, {})[key] = value
        for name, path in named.items():
            version = about.get(name, {}).get(_VERSION_KEY, "")
            if not (version.isascii() and version.isdigit()):
                why = f"it has no {_VERSION_KEY}: record did not write it"
                raise PhysviewError(f"cannot read {path}", why, "move it away", path=path)
            if int(version) > schema.VERSION:
                why = f"its schema is version {version}, and this physview knows {schema.VERSION}"
                raise PhysviewError(f"cannot read {path}", why, "update physview", path=path)
        machines: dict[str, set[str]] = {}
        for words in about.values():
            machines.setdefault(words.get("host", ""), set()).add(words.get("machine", ""))
        self.twins.update(host for host, found in machines.items() if len(found) > 1)

    def run(self, columns: Sequence[AnswerColumn], expression: Any) -> Answer:
        """Answer a question, an Ibis expression over expressions.open_tables()."""
        ibis = need("ibis", "cannot ask the fleet")
        self.open_tables(tables_of(expression))
        sql = str(ibis.to_sql(expression, dialect="duckdb"))
        return Answer(columns, self._iter_rows(sql, "cannot answer the question"))

    def sql(self, text: str) -> Answer:
        """Answer a SELECT of the user.

        Raises:
            UsageError: It is no SELECT, or more than one.
        """
        self.open_tables()
        with self._translated("cannot run the SQL"):
            statements = self._connection.extract_statements(text)
        if len(statements) != 1 or statements[0].type.name != "SELECT":
            raise UsageError("cannot run the SQL", "it is not one SELECT", "give one SELECT")
        with self._translated("cannot run the SQL"):
            relation = self._work(self._connection.execute, text)
        names = unique_names([name for name, *_ in relation.description])
        columns = [AnswerColumn(name, "text", "") for name in names]
        return Answer(columns, self._iter_fetched("cannot run the SQL"))

    def _iter_rows(self, sql: str, what: str) -> Iterator[tuple[Any, ...]]:
        with self._translated(what):
            self._work(self._connection.execute, sql)
        yield from self._iter_fetched(what)

    def _iter_fetched(self, what: str) -> Iterator[tuple[Any, ...]]:
        while True:
            with self._translated(what):
                rows = self._work(self._connection.fetchmany, _ROWS_AT_ONCE)
            if not rows:
                return
            for row in rows:
                yield tuple(map(plain, row))

    def _work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that may take long. Ctrl-C ends it."""
        called = self._worker.submit(function, *arguments)
        try:
            return called.result()
        except BaseException:
            while not called.done():  # an interrupt that comes before the query begins is lost
                self._connection.interrupt()
                wait([called], timeout=0.05)
            raise

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._duckdb.OutOfMemoryException as error:
            remedy = "give more with --memory, or ask about fewer hosts or days"
            raise PhysviewError(what, first_line(error), remedy) from None
        except self._duckdb.PermissionException as error:
            remedy = "SQL reads the tables groups, zones and machine only"
            raise UsageError(what, first_line(error), remedy) from None
        except (
            self._duckdb.ParserException,
            self._duckdb.BinderException,
            self._duckdb.CatalogException,
            self._duckdb.SyntaxException,
        ) as error:
            raise UsageError(what, first_line(error)) from None
        except self._duckdb.IOException as error:
            self._dataset.check_files()
            raise PhysviewError(what, first_line(error)) from None
        except self._duckdb.Error as error:
            raise PhysviewError(what, first_line(error)) from None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
