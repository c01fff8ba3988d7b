# SPDX-License-Identifier: GPL-2.0-or-later
"""What the questions share: their options, and parts of Ibis expressions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from physview.fleet.answer import OTHERS, AnswerColumn
from physview.fleet.views import IBIS_TYPES
from physview.recording import schema
from physview.runtime.extras import need

MACHINE = ("host", "machine")
BOOT = (*MACHINE, "boot")
FIVE_MINUTES = "5min"
UNITS = {"minute": "m", "hour": "h", "day": "D"}
"""Steps that Ibis can truncate a time to, and its names of them."""
STEPS = {"minute": "a minute", FIVE_MINUTES: "5 minutes", "hour": "an hour", "day": "a day"}
"""What --step takes, in words."""
SHORT = timedelta(hours=6)
"""Of recordings that are not longer, a step has 5 minutes."""
HOST = AnswerColumn("host", "text", "the host")
MACHINE_ID = AnswerColumn("machine", "machine", "tells machines of one name apart")
PROGRAM = AnswerColumn("name", "text", "the program, or the cgroup")
AT = AnswerColumn("at", "time", "when this step of time began")


class Options(NamedTuple):
    """How a question is asked.

    Args:
        of: Which groups: program, cgroup or pid.
        step: One of STEPS; None: `usual_step`, and for a question with a row for each step: no
            such rows.
        usual_step: One of STEPS.
        by_host: Whether each host is a row of its own.
        approx: Whether `leaks` takes the kernel's own counters.
        column: The column of `worst`.
        lowest: Whether the smallest values are the worst.
        limit: The most rows; None for all.
    """

    of: str = "program"
    step: str | None = None
    usual_step: str = "hour"
    by_host: bool = False
    approx: bool = False
    column: str | None = None
    lowest: bool = False
    limit: int | None = None


class Tables(NamedTuple):
    """The tables of a dataset as Ibis expressions, limited to the rows that were selected.

    Args:
        groups, zones, machine: As in physview.recording.schema, with host and date.
    """

    groups: Any
    zones: Any
    machine: Any

    def groups_of(self, options: Options) -> Any:
        """The groups of one kind, without null in their names."""
        groups = self.groups.filter(self.groups.by == options.of)
        return groups.mutate(name=groups.name.fill_null(OTHERS))


def open_tables() -> Tables:
    """The tables of any dataset, bound to no engine.

    Raises:
        Unsupported: Ibis is missing.
    """
    ibis = need("ibis", "cannot ask the fleet")
    return Tables(
        *(
            ibis.table(
                {
                    **{column.name: IBIS_TYPES[column.kind] for column in schema.TABLES[name]},
                    "host": "string",
                    "date": "date",
                },
                name=name,
            )
            for name in Tables._fields
        )
    )


def tables_of(expression: Any) -> list[str]:
    """The names of the tables that an expression reads."""
    operations = need("ibis.expr.operations", "cannot ask the fleet")
    found = {node.name for node in expression.op().find(operations.UnboundTable)}
    return [name for name in Tables._fields if name in found]


def group_keys(options: Options, *before: str) -> list[str]:
    """The columns that tell groups apart."""
    return [*before, "name", *(["pid"] if options.of == "pid" else [])]


def group_columns(options: Options, *before: AnswerColumn) -> list[AnswerColumn]:
    """The columns of an answer that name a group."""
    pid = [AnswerColumn("pid", "number", "the process")] if options.of == "pid" else []
    return [*before, PROGRAM, *pid]


def step_for(first: datetime | None, last: datetime | None) -> str:
    """The step for recordings of a time: 5 minutes or an hour."""
    is_short = first is not None and last is not None and last - first <= SHORT
    return FIVE_MINUTES if is_short else "hour"


def bucket(table: Any, options: Options) -> Any:
    """The step of time of each row, as the column `at`."""
    import ibis

    step = options.step or options.usual_step
    if step in UNITS:
        return table.time.truncate(UNITS[step]).name("at")
    minutes = ibis.interval(minutes=1) * (table.time.minute() % 5)
    return (table.time.truncate("m") - minutes).name("at")


def share(part: Any, whole: Any) -> Any:
    """A part of a whole, 0 to 1; null if the whole is nothing."""
    return part.cast("float64") / whole.nullif(0).cast("float64")


def rises(table: Any, names: list[str], options: Options) -> Any:
    """How much counters of the machine rose, by machine and step of time.

    A counter that fell began anew: then all of it is new.
    """
    import ibis

    window = ibis.window(group_by=list(BOOT), order_by="since_boot")
    steps = {}
    for name in names:
        step = table[name] - table[name].lag().over(window)
        steps[f"{name}_rise"] = ibis.ifelse(step < 0, table[name], step)
    stepped = table.mutate(**steps)
    return stepped.group_by([*MACHINE, bucket(stepped, options)]).agg(
        **{name: stepped[f"{name}_rise"].sum().fill_null(0) for name in names}
    )
