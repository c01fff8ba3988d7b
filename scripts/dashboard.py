# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the dashboard that `physview exporter --print dashboard` prints, by Grafana's own library.

The library needs Python 3.11. So nothing else is here, and the older Pythons do without.
"""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from monitoring import FOLDER, ROWS, Graph

PATH = FOLDER / "dashboard.json"


def dashboard() -> str:
    """The dashboard, as Grafana imports it."""
    source = DataSourceRef(type_val="prometheus", uid="$datasource")
    found = (
        Dashboard("Physical memory (physview)")
        .uid("physview")
        .tags(["physview", "memory"])
        .refresh("1m")
        .time("now-6h", "now")
        .with_variable(DatasourceVariable("datasource").type("prometheus"))
    )
    labels = {
        "instance": "physview_build_info",
        "group": 'physview_group_resident_bytes{instance=~"$instance"}',
    }
    for name, of in labels.items():
        variable = QueryVariable(name).query(f"label_values({of}, {name})").datasource(source)
        found.with_variable(variable.multi(True).include_all(True).all_value(".*").refresh(2))
    number = 0
    for title, graphs in ROWS.items():
        found.with_row(Row(title))
        for graph in graphs:
            number += 1
            found.with_panel(_panel(graph, source).id(number))
    return json.dumps(json.loads(JSONEncoder().encode(found.build())), indent=1) + "\n"


def _panel(graph: Graph, source: DataSourceRef) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel = timeseries.Panel().title(graph.title).unit(graph.unit).min(0).legend(legend)
    panel.description(graph.help).datasource(source).span(12).height(8)
    for at, (query, name) in enumerate(graph.queries.items()):
        target = prometheus.Dataquery().expr(query).legend_format(name).ref_id(chr(ord("A") + at))
        panel.with_target(target)
    return panel
