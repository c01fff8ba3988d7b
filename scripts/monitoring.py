# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes what `physview exporter --print` prints: alert rules, a configuration, a dashboard.

generate.py writes the files, and tests/test_exporter.py has a Prometheus read them. The graphs are
here, and dashboard.py makes the dashboard of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "physview" / "exporter" / "monitoring"
UNIT = "physview-exporter.service"
ALERT_TESTS = ROOT / "tests" / "support" / "alerts_test.yml"
HEAD = "# Made by scripts/monitoring.py of physview.\n"

MIB, GIB = 1 << 20, 1 << 30


class Alert(NamedTuple):
    """An alert rule, and the series with which it is tested.

    Args:
        name: Its name.
        expr: The query that has a series if something is wrong.
        wait: How long it must be wrong, such as "1h".
        summary: A sentence, with Prometheus' templates.
        advice: What to look at.
        fires: Series by selector, with values each 5 minutes in promtool's notation, for which it
            fires after 4 hours.
        quiet: Series for which it does not.
    """

    name: str
    expr: str
    wait: str
    summary: str
    advice: str
    fires: dict[str, str]
    quiet: dict[str, str]


ALERTS = (
    Alert(
        "PhysviewDown",
        'up{job="physview"} == 0',
        "5m",
        "{{ $labels.instance }}: the exporter does not answer.",
        "systemctl status physview-exporter",
        {'up{job="physview",instance="a"}': "0x48"},
        {'up{job="physview",instance="a"}': "1x48"},
    ),
    Alert(
        "PhysviewExpensive",
        "avg_over_time(physview_exporter_scrape_cpu_seconds[15m]) > 1",
        "15m",
        "{{ $labels.instance }}: a scrape takes {{ $value | humanizeDuration }} of processor time.",
        "Scrape less often.",
        {'physview_exporter_scrape_cpu_seconds{instance="a"}': "2x48"},
        {'physview_exporter_scrape_cpu_seconds{instance="a"}': "0.05x48"},
    ),
    Alert(
        "PhysviewProcessesLeftOut",
        'physview_exporter_processes{result="denied"} > 0',
        "15m",
        "{{ $labels.instance }}: {{ $value }} processes are left out, as the exporter may not"
        " examine them.",
        "Run the exporter as root.",
        {'physview_exporter_processes{instance="a",result="denied"}': "7x48"},
        {'physview_exporter_processes{instance="a",result="denied"}': "0x48"},
    ),
    Alert(
        "MemoryFragmented",
        'sum by (instance) (physview_zone_usable_bytes{size="2MiB"})'
        " < 0.05 * sum by (instance) (physview_zone_free_bytes)",
        "1h",
        "{{ $labels.instance }}: less than 5 % of the free memory is in blocks of 2 MiB.",
        "physview frames shows the free blocks by size.",
        {
            'physview_zone_usable_bytes{instance="a",zone="Normal",size="2MiB"}': f"{MIB}x48",
            'physview_zone_free_bytes{instance="a",zone="Normal"}': f"{GIB}x48",
        },
        {
            'physview_zone_usable_bytes{instance="a",zone="Normal",size="2MiB"}': f"{GIB // 2}x48",
            'physview_zone_free_bytes{instance="a",zone="Normal"}': f"{GIB}x48",
        },
    ),
    Alert(
        "HugePagesNotHad",
        "rate(physview_vmstat_thp_fault_fallback_total[15m]) > 1 and"
        " rate(physview_vmstat_thp_fault_fallback_total[15m])"
        " > rate(physview_vmstat_thp_fault_alloc_total[15m])",
        "30m",
        "{{ $labels.instance }}: more than half of the page faults that want a huge page get small"
        " ones ({{ $value | humanize }} a second).",
        "physview frames shows whether free memory is fragmented.",
        {
            'physview_vmstat_thp_fault_fallback_total{instance="a"}': "0+600x48",
            'physview_vmstat_thp_fault_alloc_total{instance="a"}': "0+60x48",
        },
        {
            'physview_vmstat_thp_fault_fallback_total{instance="a"}': "0+600x48",
            'physview_vmstat_thp_fault_alloc_total{instance="a"}': "0+6000x48",
        },
    ),
    Alert(
        "CompactionFails",
        "rate(physview_vmstat_compact_fail_total[15m]) > 1 and"
        " rate(physview_vmstat_compact_fail_total[15m])"
        " > 4 * rate(physview_vmstat_compact_success_total[15m])",
        "30m",
        "{{ $labels.instance }}: allocations wait for compaction, and four of five fail.",
        "physview frames shows what the frames are used for.",
        {
            'physview_vmstat_compact_fail_total{instance="a"}': "0+600x48",
            'physview_vmstat_compact_success_total{instance="a"}': "0+6x48",
        },
        {
            'physview_vmstat_compact_fail_total{instance="a"}': "0+600x48",
            'physview_vmstat_compact_success_total{instance="a"}': "0+600x48",
        },
    ),
    Alert(
        "PageTablesLarge",
        "sum without (pid) (physview_group_page_tables_bytes)"
        f" > {256 * MIB} and sum without (pid) (physview_group_page_tables_bytes)"
        " > 0.1 * sum without (pid) (physview_group_resident_bytes)",
        "1h",
        "{{ $labels.instance }}: the page tables of {{ $labels.group }} take"
        " {{ $value | humanize1024 }}B, over a tenth of its memory.",
        "physview tables PID shows how full they are.",
        {
            'physview_group_page_tables_bytes{instance="a",group="p"}': f"{GIB}x48",
            'physview_group_resident_bytes{instance="a",group="p"}': f"{2 * GIB}x48",
        },
        {
            'physview_group_page_tables_bytes{instance="a",group="p"}': f"{GIB}x48",
            'physview_group_resident_bytes{instance="a",group="p"}': f"{100 * GIB}x48",
        },
    ),
    Alert(
        "GroupWaitsForSwap",
        'sum without (pid, kind) (rate(physview_group_faults_total{kind="major"}[15m])) > 50'
        " and sum without (pid) (physview_group_swapped_bytes)"
        f" > {64 * MIB}",
        "15m",
        "{{ $labels.instance }}: {{ $labels.group }} reads {{ $value | humanize }} pages a second"
        " back from disk.",
        "physview maps PID shows which mappings are swapped.",
        {
            'physview_group_faults_total{instance="a",group="p",kind="major"}': "0+60000x48",
            'physview_group_swapped_bytes{instance="a",group="p"}': f"{GIB}x48",
        },
        {
            'physview_group_faults_total{instance="a",group="p",kind="major"}': "0+60000x48",
            'physview_group_swapped_bytes{instance="a",group="p"}': "0x48",
        },
    ),
    Alert(
        "MemoryRunsOut",
        "predict_linear(physview_memory_available_bytes[6h], 86400) < 0",
        "1h",
        "{{ $labels.instance }}: if it goes on like this, no memory is available within a day.",
        "The dashboard shows which group grows.",
        {'physview_memory_available_bytes{instance="a"}': f"{32 * GIB}-{256 * MIB}x48"},
        {'physview_memory_available_bytes{instance="a"}': f"{32 * GIB}+{MIB}x48"},
    ),
)
"""The alert rules."""


class Graph(NamedTuple):
    """A panel of the dashboard.

    Args:
        title: Its title.
        unit: Grafana's name of the unit.
        help: What it shows.
        queries: Names of the lines, by query. Queries may use Grafana's variables.
    """

    title: str
    unit: str
    help: str
    queries: dict[str, str]


ON = 'instance=~"$instance"'
OF = f'{ON},group=~"$group"'
RATE = "[$__rate_interval]"


def _of_groups(metric: str, labels: str = "") -> str:
    return f"sum by (instance, group) (physview_group_{metric}{{{OF}{labels}}})"


def _rate_of(name: str) -> str:
    return f"rate(physview_vmstat_{name}_total{{{ON}}}{RATE})"


_RESIDENT = _of_groups("resident_bytes")
ROWS = {
    "Groups": (
        Graph("Resident memory", "bytes", "", {_RESIDENT: "{{group}}"}),
        Graph("Swapped memory", "bytes", "", {_of_groups("swapped_bytes"): "{{group}}"}),
        Graph(
            "THP coverage", "percentunit", "Share of anonymous memory mapped as huge pages.",
            {
                f"{_of_groups('anonymous_huge_bytes')} / ({_of_groups('anonymous_bytes')} > 0)":
                    "{{group}}"
            },
        ),
        Graph(
            "Physically contiguous by 2 MiB", "percentunit",
            "Share of resident memory in contiguous, aligned blocks of 2 MiB.",
            {
                _of_groups("contiguous_bytes", ',size="2MiB"') + f" / ({_RESIDENT} > 0)":
                    "{{group}}"
            },
        ),
        Graph(
            "Physically contiguous by 1 GiB", "bytes",
            "Memory in contiguous, aligned blocks of 1 GiB.",
            {_of_groups("contiguous_bytes", ',size="1GiB"'): "{{group}}"},
        ),
        Graph(
            "Mean extent", "bytes",
            "Mean size of a piece that is contiguous in both address spaces.",
            {f"{_RESIDENT} / ({_of_groups('extents')} > 0)": "{{group}}"},
        ),
        Graph("Page tables", "bytes", "", {_of_groups("page_tables_bytes"): "{{group}}"}),
        Graph(
            "Page faults", "ops", "Faults a second; major ones read from a disk.",
            {
                f"sum by (instance, group, kind) (rate(physview_group_faults_total{{{OF}}}{RATE}))":
                    "{{group}} {{kind}}"
            },
        ),
    ),
    "Free memory": (
        Graph(
            "Free, and usable for 2 MiB", "bytes", "By node and zone.",
            {
                f"physview_zone_free_bytes{{{ON}}}": "free {{node}} {{zone}}",
                f'physview_zone_usable_bytes{{{ON},size="2MiB"}}': "2 MiB {{node}} {{zone}}",
            },
        ),
        Graph(
            "Unusable for 2 MiB", "percentunit",
            "Unusable free index of order 9: the share of free memory that no huge page can use.",
            {f'physview_zone_unusable_free_ratio{{{ON},order="9"}}': "{{node}} {{zone}}"},
        ),
        Graph(
            "Free blocks by order", "short", "Blocks of 2 to the power of the order pages.",
            {f"sum by (instance, order) (physview_zone_free_blocks{{{ON}}})": "order {{order}}"},
        ),
        Graph(
            "Available memory", "bytes", "",
            {
                f"physview_memory_available_bytes{{{ON}}}": "available",
                f"physview_memory_total_bytes{{{ON}}}": "total",
            },
        ),
    ),
    "Huge pages and compaction": (
        Graph(
            "Huge pages", "ops", "What page faults and khugepaged get, and what is split.",
            {
                _rate_of("thp_fault_alloc"): "fault",
                _rate_of("thp_fault_fallback"): "fault got small pages",
                _rate_of("thp_collapse_alloc"): "khugepaged",
                _rate_of("thp_split_page"): "split",
            },
        ),
        Graph(
            "Compaction", "ops", "Allocations that had to compact memory first.",
            {
                _rate_of("compact_stall"): "waited",
                _rate_of("compact_success"): "got memory",
                _rate_of("compact_fail"): "did not",
            },
        ),
    ),
    "The exporter": (
        Graph(
            "Cost of a scrape", "s", "",
            {
                f"physview_exporter_scrape_cpu_seconds{{{ON}}}": "processor time",
                f"physview_exporter_scrape_duration_seconds{{{ON}}}": "duration",
            },
        ),
        Graph(
            "Processes", "short", "By what the last scrape did with them.",
            {f"physview_exporter_processes{{{ON}}}": "{{result}}"},
        ),
    ),
}  # fmt: skip
"""The panels of the dashboard, by row."""


def queries() -> list[str]:
    """All queries of the dashboard, with Grafana's variables."""
    return [query for row in ROWS.values() for graph in row for query in graph.queries]


def alerts() -> str:
    """The alert rules, as Prometheus reads them."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.wait,
            "labels": {"severity": "warning"},
            "annotations": {"summary": alert.summary, "description": alert.advice},
        }
        for alert in ALERTS
    ]
    return HEAD + yaml({"groups": [{"name": "physview", "rules": rules}]})


def alert_tests() -> str:
    """The tests of the alert rules, for promtool test rules."""
    tests = []
    for alert in ALERTS:
        firing = f'count(ALERTS{{alertname="{alert.name}",alertstate="firing"}})'
        for series, fires in ((alert.fires, True), (alert.quiet, False)):
            tests.append(
                {
                    "name": f"{alert.name} {'fires' if fires else 'is quiet'}",
                    "interval": "5m",
                    "input_series": [
                        {"series": name, "values": values} for name, values in series.items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": firing,
                            "eval_time": "4h",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                        }
                    ],
                }
            )
    rules = "../../physview/exporter/monitoring/alerts.yml"
    return HEAD + yaml({"rule_files": [rules], "evaluation_interval": "5m", "tests": tests})


def configuration() -> str:
    """A configuration of Prometheus that scrapes this machine and has the alert rules."""
    return f"""{HEAD}global:
  scrape_interval: 30s
rule_files:
  - alerts.yml  # physview exporter --print alerts > alerts.yml
scrape_configs:
  - job_name: physview
    static_configs:
      - targets: ["127.0.0.1:23000"]
    # With exporter --cert, --key and --password-file:
    # scheme: https
    # tls_config: {{ca_file: ca.pem}}
    # basic_auth: {{username: prometheus, password_file: password}}
"""


def yaml(value: Any) -> str:
    """Write YAML. Texts are quoted as in JSON, which is YAML, too."""
    return "\n".join(_yaml_lines(value)) + "\n"


def _yaml_lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            lines = list(_yaml_lines(item))
            if isinstance(item, (dict, list)) and item:
                yield f"{key}:"
                yield from (f"  {line}" for line in lines)
            else:
                yield f"{key}: {lines[0]}"
    elif isinstance(value, list) and value:
        for item in value:
            lines = list(_yaml_lines(item))
            yield f"- {lines[0]}"
            yield from (f"  {line}" for line in lines[1:])
    else:
        yield json.dumps(value, ensure_ascii=False)


def installed_unit() -> str:
    """The unit that --print prints, without the lines that say how to install it."""
    _, section, rest = (FOLDER / UNIT).read_text().partition("[Unit]")
    return section + rest


def files() -> dict[Path, str]:
    """All files that this module makes, with their texts."""
    return {
        FOLDER / "alerts.yml": alerts(),
        FOLDER / "prometheus.yml": configuration(),
        ALERT_TESTS: alert_tests(),
        ROOT / "packaging" / "systemd" / UNIT: installed_unit(),
    }
