# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the machine, and makes metrics of it for prometheus_client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from physview.errors import PhysviewError
from physview.exporter import metrics
from physview.exporter.frame_readings import FrameReadings
from physview.exporter.groups import GroupRows
from physview.exporter.labels import label_of
from physview.exporter.metrics import Metric
from physview.exporter.single_reading import SingleReading
from physview.files.descriptor import Closable
from physview.recording.groups import GroupReader
from physview.recording.machine import read_counters
from physview.recording.zones import read_zones
from physview.runtime import extras, resource_limits
from physview.runtime.version import __version__

if TYPE_CHECKING:
    from physview.recording.schema import Columns

MAX_GROUPS = 1_000_000
_COUNTS = ("nr_read", "nr_kept", "nr_unread", "nr_denied")


class Families:
    """Metrics with their samples, as prometheus_client takes them.

    Args:
        metric_families: Its module metrics_core.
    """

    def __init__(self, metric_families: Any) -> None:
        self._classes = {
            metrics.GAUGE: metric_families.GaugeMetricFamily,
            metrics.COUNTER: metric_families.CounterMetricFamily,
        }
        self._found: dict[str, Any] = {}

    def add(self, metric: Metric, labels: Mapping[str, str], values: Mapping[str, Any]) -> None:
        """Add the samples of a metric that have these labels. Unknown values have no sample.

        Args:
            metric: The metric.
            labels: Labels by name, besides the metric's own.
            values: Values by column.
        """
        for column, own in metric.columns.items():
            value = values.get(column)
            if isinstance(value, (list, tuple)):
                items = [(str(order), item) for order, item in enumerate(value)]
            else:
                items = [(own, value)]
            for item_label, item in items:
                if item is not None:
                    more = [item_label] if metric.label else []
                    self._family(metric, labels).add_metric([*labels.values(), *more], item)

    def _family(self, metric: Metric, labels: Iterable[str]) -> Any:
        if metric.name not in self._found:
            names = [*labels, *([metric.label] if metric.label else [])]
            family = self._classes[metric.kind](metric.name, metric.help, labels=names)
            self._found[metric.name] = family
        return self._found[metric.name]

    def all(self) -> list[Any]:
        """The metrics that have samples, in the order in which they were first added."""
        return list(self._found.values())


class MachineCollector(Closable):
    """A collector for a registry of prometheus_client. A context manager.

    Args:
        by: One of schema.GROUPINGS.
        top: Number of groups with a label of their own.
        min_interval: Seconds in which a reading is given again.
        max_cpu: Processor seconds for reading processes, in each scrape; None for no limit. Those
            for which no time is left keep their values.
        frames_every: Seconds between two readings of all frames; None does not read them.
        say: Called with a message if a process could not be read, unless it was the last one, too.
        encoding: The encoding of the output.

    Attributes:
        denied: Processes that the last reading left out.
        knows_frames: Whether frame numbers are known.
    """

    def __init__(
        self,
        by: str,
        top: int,
        *,
        min_interval: float,
        max_cpu: float | None,
        frames_every: float | None,
        say: Callable[[str], None],
        encoding: str = "utf-8",
    ) -> None:
        self._core = extras.need("prometheus_client.metrics_core", "cannot export metrics")
        self._max_cpu = max_cpu
        self._frames = FrameReadings(frames_every) if frames_every is not None else None
        self._reader = GroupReader(by, max_groups=MAX_GROUPS)
        self._by_pid = by == "pid"
        self._group_rows = GroupRows(top, encoding)
        self._reading = SingleReading(self._read, min_interval=min_interval)
        self._say, self._said = say, ""
        self.denied: list[int] = []
        self.knows_frames = False

    def close(self) -> None:
        """Close all files. Closing twice is harmless."""
        self._reader.close()

    def collect(self) -> Sequence[Any]:
        """Read the machine. prometheus_client calls this for each scrape."""
        return self._reading.get()

    def describe(self) -> Iterator[Any]:
        """The metrics without samples. prometheus_client calls this to know their names."""
        for metric in metrics.ALL:
            yield self._core.Metric(metric.name, metric.help, metric.kind)

    def _read(self) -> list[Any]:
        try:
            return self._read_all()
        except PhysviewError:
            raise
        except (OSError, MemoryError) as error:
            why = (getattr(error, "strerror", None) or str(error),)
            limit = resource_limits.reached(error)
            raise PhysviewError("cannot read the machine", *(limit or why)) from None

    def _read_all(self) -> list[Any]:
        start, cpu = time.perf_counter(), time.process_time()
        families = Families(self._core)
        own = self._read_groups(families)
        self._read_zones(families)
        counters = _row(read_counters(), 0)
        for metric in metrics.MACHINE:
            families.add(metric, {}, counters)
        own["duration"] = time.perf_counter() - start
        own["cpu"] = time.process_time() - cpu
        for metric in metrics.OWN:
            families.add(metric, {}, own)
        build = self._core.InfoMetricFamily(
            "physview_build", "physview's version, and the kernel's."
        )
        build.add_metric([], {"version": __version__, "kernel": os.uname().release})
        return [*families.all(), build]

    def _read_groups(self, families: Families) -> dict[str, Any]:
        """Read all groups, and return the values of metrics.OWN that come from them."""
        columns = self._reader.read(self._max_cpu)
        for row in self._group_rows.rows(columns):
            labels = {"group": row.label}
            if self._by_pid:
                labels["pid"] = "" if row.pid is None else str(row.pid)
            for metric in metrics.GROUPS:
                families.add(metric, labels, row.values)
        own = {name: sum(columns[name]) for name in _COUNTS}
        self.denied = self._reader.denied()
        trouble, self._reader.trouble = self._reader.trouble, ""
        if trouble and trouble != self._said:
            self._say(f"{trouble}; it keeps its values")
            self._said = trouble
        self.knows_frames = any(value is not None for value in columns["nr_extents"])
        own["nr_gone"], own["groups"] = self._reader.nr_gone, self._reader.nr_groups
        own["nr_unread"] = max(0, own["nr_unread"] - own["nr_gone"])  # the reader counts both
        own["frames_known"] = int(self.knows_frames)
        return own

    def _read_zones(self, families: Families) -> None:
        zones = read_zones()
        frames = self._frames.last() if self._frames else {}
        for index, node in enumerate(zones["node"]):
            row = _row(zones, index)
            row.update(frames.get((node, row["zone"]), {}))
            labels = {"node": str(node), "zone": label_of(row["zone"])}
            for metric in metrics.ZONES:
                families.add(metric, labels, row)


def _row(columns: Columns, index: int) -> dict[str, Any]:
    return {name: values[index] for name, values in columns.items()}
