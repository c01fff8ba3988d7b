# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask the recordings of many machines.

DATASET is what record has written: a folder, or s3://BUCKET/PREFIX. QUESTION is hosts, thp,
thp-loss, no-2m, page-tables, swap, swap-hours, compaction, fragmentation, leaks, or worst COLUMN.
report writes all answers to an HTML page. --sql asks anything else of the tables groups, zones and
machine.

Only files of the hosts and days that are asked about are read. All times are UTC.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from physview.commands import _common
from physview.errors import PhysviewError, UsageError

if TYPE_CHECKING:
    from physview.fleet.answer import Answer
    from physview.fleet.dataset import Dataset
    from physview.fleet.engine import Engine
    from physview.fleet.expressions import Options
    from physview.reporters.fleet import About

NAME = "fleet"
HELP = "questions to the recordings of many machines"
REPORT = "report"
NR_WORST = 10
MANY_UNREAD = 0.05
"""From this share of processes with old values on, leaks says so."""
_NR_TRIES = 3


def prepare_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("dataset", metavar="DATASET", help="a folder that record has written")
    parser.add_argument("question", metavar="QUESTION", nargs="?", help="what to ask, or report")
    parser.add_argument("column", metavar="COLUMN", nargs="?", help="the column of worst")
    parser.add_argument("--sql", metavar="SELECT", help="ask this instead, in the engine's SQL")
    parser.add_argument("--hosts", metavar="GLOB", default="*", help="only hosts of such a name")
    when = "a day, such as 2026-01-31, a moment, such as 2026-01-31T12:00, or 7d or 12h ago"
    parser.add_argument("--since", metavar="TIME", help=f"only samples from then on: {when}")
    parser.add_argument("--until", metavar="TIME", help="only samples before then")
    parser.add_argument(
        "--by",
        choices=("program", "cgroup", "pid"),
        default="program",
        help="which groups: as record --by names them (default: program)",
    )
    parser.add_argument(
        "--step",
        choices=("minute", "5min", "hour", "day"),
        help="the step of time (default: hour, or 5min if the samples are of less than 6 hours);"
        " with thp, a row for each step",
    )
    parser.add_argument("--by-host", action="store_true", help="tell hosts apart")
    parser.add_argument(
        "--approx",
        action="store_true",
        help="with leaks: sizes by the kernel's own counters, which are approximate and always new",
    )
    parser.add_argument("--lowest", action="store_true", help="with worst: the smallest values")
    parser.add_argument(
        "--top",
        type=_common.count(),
        metavar="N",
        help="only the first N rows (worst, compaction: 10)",
    )
    parser.add_argument("--bytes", action="store_true", help="print sizes in bytes")
    parser.add_argument("--format", choices=("csv", "jsonl"), help="write a record per line")
    parser.add_argument("-o", "--output", metavar="FILE", help="the HTML page of report")
    _common.add_force_option(parser)
    parser.add_argument(
        "--engine",
        choices=("duckdb", "spark"),
        default="duckdb",
        help="who computes: DuckDB in this process, or Spark (default: duckdb)",
    )
    parser.add_argument(
        "--master", metavar="URL", help="with --engine spark: where Spark is (default: local[*])"
    )
    parser.add_argument(
        "--memory",
        type=_common.count(),
        metavar="MIB",
        help="the most memory for DuckDB, in MiB (default: 600)",
    )
    parser.add_argument(
        "--threads", type=_common.count(1024), metavar="N", help="threads of DuckDB (default: 2)"
    )
    _common.add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Answer the question."""
    options = _check(args)
    from physview.fleet.engine import FilesChanged

    for _ in range(_NR_TRIES - 1):
        with contextlib.suppress(FilesChanged):  # record removes old files meanwhile
            return _answer(args, options)
    return _answer(args, options)


def _answer(args: argparse.Namespace, options: Options) -> int:
    from physview.fleet import questions
    from physview.fleet.expressions import open_tables
    from physview.reporters import fleet as reporter

    dataset = _open(args)
    with _engine(args, dataset) as engine:
        if args.question == REPORT:
            return _write_report(args, options, dataset, engine)
        if args.sql is not None:
            answer, title, finding = engine.sql(args.sql), "", ""
        else:
            question, tables = questions.find(args.question), open_tables()
            if "step" in question.takes and options.step is None:
                step = questions.usual_step(engine, dataset, tables)
                options = options._replace(usual_step=step)
            title, finding = question.title, questions.finding_of(question, options)
            answer = engine.run(*questions.build(question, tables, options))
        answer = answer.begun()
        _say_damaged(dataset)
        about = reporter.About(
            dataset.shown,
            args.question,
            args.sql,
            engine.name,
            args.hosts,
            dataset.selection.since,
            dataset.selection.until,
            title,
            finding,
            bool(engine.twins),
            args.bytes,
        )
        if _print(args, about, answer) == 0 and args.sql is None:
            _say_other_groups(engine, options)
        if args.question == "leaks" and not args.approx:
            _say_if_stale(engine)
    return 0


def _print(args: argparse.Namespace, about: About, answer: Answer) -> int:
    """Print the answer. Return the number of rows."""
    from physview.reporters import fleet as reporter

    if args.json:
        return reporter.print_document(about, answer)
    if args.format:
        return reporter.print_records(args.format, answer)
    return reporter.print_table(about, answer)


def _check(args: argparse.Namespace) -> Options:
    """Refuse what does not belong together. The dataset is not touched yet."""
    from physview.fleet import questions
    from physview.fleet.expressions import Options

    _check_question(args, [*questions.QUESTIONS, REPORT])
    _check_forms(args)
    is_named = args.question not in (None, REPORT)
    takes = questions.find(args.question).takes if is_named else ()
    for name in ("step", "by_host", "approx", "lowest", "column"):
        if getattr(args, name) and name not in takes:
            word = "COLUMN" if name == "column" else f"--{name.replace('_', '-')}"
            what = f"{word} does not apply to {args.question or '--sql'}"
            raise UsageError(what, "", "leave it out")
    if args.top is not None and not is_named:
        remedy = "use LIMIT" if args.sql is not None else "leave it out"
        raise UsageError(f"--top does not apply to {args.question or '--sql'}", "", remedy)
    top = args.top or (NR_WORST if args.question in ("worst", "compaction") else None)
    return Options(
        of=args.by,
        step=args.step,
        by_host=args.by_host,
        approx=args.approx,
        column=args.column,
        lowest=args.lowest,
        limit=top,
    )


def _check_question(args: argparse.Namespace, known: list[str]) -> None:
    from physview.text.nearest import offer

    if args.sql is None and args.question is None:
        raise UsageError("no question is asked", "", f"give --sql, or one of {', '.join(known)}")
    if args.sql is not None and args.question is not None:
        raise UsageError("a question and --sql exclude each other", "", "leave out one")
    if args.question is not None and args.question not in known:
        raise UsageError(f"there is no question '{args.question}'", "", offer(args.question, known))


def _check_forms(args: argparse.Namespace) -> None:
    """Check the forms of output, and the options of engines."""
    for name in ("sql", "master"):
        try:
            (getattr(args, name) or "").encode()
        except UnicodeEncodeError:
            raise UsageError(f"--{name} is not valid UTF-8", "", "write it anew") from None
    for one, other in (("json", "format"), ("json", "bytes"), ("format", "bytes")):
        if getattr(args, one) and getattr(args, other):
            raise UsageError(f"--{one} and --{other} exclude each other", "", "leave out one")
    is_report = args.question == REPORT
    if is_report != (args.output is not None):
        raise UsageError("report and -o FILE need each other", "", "give both, or none of them")
    if is_report and args.format:
        raise UsageError("--format does not apply to report", "", "leave it out")
    if args.force and not is_report:
        raise UsageError("--force needs report", "", "leave it out")
    if args.engine != "spark" and args.master is not None:
        raise UsageError("--master needs --engine spark", "", "add that, or leave out --master")
    if args.engine == "spark" and (args.memory is not None or args.threads is not None):
        why = "they limit DuckDB"
        raise UsageError("--memory and --threads do not apply to Spark", why, "leave them out")


def _open(args: argparse.Namespace) -> Dataset:
    from physview.fleet.dataset import Dataset, Selection
    from physview.fleet.moments import parse_moment
    from physview.recording.schema import TABLES

    since, until = (
        None if text is None else parse_moment(text, option)
        for text, option in ((args.since, "--since"), (args.until, "--until"))
    )
    if since is not None and until is not None and since >= until:
        raise UsageError("--until is not after --since", "", "give a later one")
    dataset = Dataset(args.dataset, Selection(args.hosts, since, until))
    if not any(dataset.files(table) for table in TABLES):
        _say_damaged(dataset)
        what = "the dataset has no rows of these hosts and this time"
        raise PhysviewError(what, "", "ask without --hosts, --since and --until")
    return dataset


def _engine(args: argparse.Namespace, dataset: Dataset) -> Engine:
    if args.engine == "spark":
        from physview.fleet.spark_engine import SparkEngine

        return SparkEngine(dataset, master=args.master)
    from physview.fleet.duckdb_engine import DEFAULT_MEMORY, DEFAULT_THREADS, DuckDbEngine

    return DuckDbEngine(
        dataset, memory=args.memory or DEFAULT_MEMORY, threads=args.threads or DEFAULT_THREADS
    )


def _say_damaged(dataset: Dataset) -> None:
    """Say which files were left out. The run then ends with 1."""
    for path, why in dataset.damaged.items():
        _common.fail(path, PhysviewError(f"{path} is left out", why, "remove it", path=path))
    dataset.damaged.clear()


def _say_other_groups(engine: Engine, options: Options) -> None:
    """Say if there are groups of another kind only."""
    from physview.fleet.answer import AnswerColumn
    from physview.fleet.expressions import open_tables

    kinds = open_tables().groups.select("by").distinct().order_by("by")
    found = [row[0] for row in engine.run([AnswerColumn("by", "text", "")], kinds).rows]
    if found and options.of not in found:
        there = " and ".join(f"--by {kind}" for kind in found)
        _common.say(f"the dataset has no groups of --by {options.of}; it has {there}")


def _say_if_stale(engine: Engine) -> None:
    """Say if record could not keep up, so that sizes stand still for a while, and then jump."""
    from physview.fleet.answer import AnswerColumn
    from physview.fleet.expressions import open_tables
    from physview.fleet.machine_questions import unread_share

    machine = open_tables().machine
    columns = [AnswerColumn("unread", "share", "")]
    ((found,),) = engine.run(columns, machine.aggregate(unread=unread_share(machine))).rows
    if found and found >= MANY_UNREAD:
        _common.say(
            f"{found:.0%} of the processes had changed and were not read, for the budget of record:"
            " leaks shows growth late; --approx takes the kernel's own counters"
        )


def _write_report(
    args: argparse.Namespace, options: Options, dataset: Dataset, engine: Engine
) -> int:
    from physview.commands._progress import progress_bar
    from physview.files.atomic_file import check_target, whole_file
    from physview.fleet.report import read_report
    from physview.reporters import fleet_page

    check_target(args.output, overwrite=args.force)
    with progress_bar("asking") as show:
        report = read_report(engine, dataset, options, show)
    _say_damaged(dataset)
    page = fleet_page.make_page(report).encode()
    with whole_file(args.output, overwrite=args.force) as file:
        file.write(page)
    _common.say_if_shared(args.output)
    fleet_page.print_written(args.output, len(page), report, as_json=args.json)
    return 0
