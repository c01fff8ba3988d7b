# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a fleet as an HTML page: one file without scripts, which loads nothing else.

The page forbids the browser to run or load anything (Content-Security-Policy), because names in it
come from the recorded machines.
"""

from __future__ import annotations

from datetime import datetime

from physview.fleet.report import Report, Section
from physview.model import printable
from physview.pictures.svg import FONT, text
from physview.reporters import documents
from physview.reporters.fleet import cell, shown_columns
from physview.reporters.fleet_charts import draw_plot

_LIGHT = "--paper:#fff;--ink:#1d2129;--muted:#6a7180;--rule:#dfe3ea;--heat:#b3261e;"
_DARK = "--paper:#14171c;--ink:#e4e7ec;--muted:#99a1b0;--rule:#2c323c;--heat:#ff8a7a;"
_LINES = ("#2a6fdb", "#d9730d", "#0f8b6d", "#a23bb5", "#c2352b", "#7a6a00")
_CSS = """
:root { color-scheme: light dark; FONT_RULE LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { DARK } }
body { margin: 0 auto; max-width: 1100px; padding: 16px 20px 60px; background: var(--paper);
	color: var(--ink); font: 14px/1.5 var(--font); font-variant-numeric: tabular-nums; }
h1 { font-size: 22px; margin: 8px 0 0; } h2 { font-size: 17px; margin: 36px 0 2px; }
p { margin: 2px 0 8px; color: var(--muted); } nav { display: flex; flex-wrap: wrap; gap: 4px 14px; }
a { color: inherit; } figure { margin: 8px 0; } figcaption { font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 3px 14px 3px 0; text-align: left; white-space: nowrap; }
th { border-bottom: 1px solid var(--rule); color: var(--muted); font-weight: 600; }
td { border-bottom: 1px solid var(--rule); } .r { text-align: right; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px var(--font); fill: var(--muted); } .end { text-anchor: end; }
.grid { stroke: var(--rule); fill: none; } .line { fill: none; stroke-width: 1.8; }
rect { fill: var(--heat); } .legend { list-style: none; margin: 0; padding: 0 0 0 150px; }
.legend li { display: inline-block; margin-right: 18px; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 14px; height: 4px; margin: 0 6px 3px 0; }
@media print { section { break-inside: avoid; } }
"""
_RIGHT = ("bytes", "count", "share", "change", "number")


def make_page(report: Report) -> str:
    """Write a report as an HTML document."""
    span = f"{_moment(report.since)} to {_moment(report.until)}, UTC"
    hosts = "" if report.hosts == "*" else f", hosts like {report.hosts}"
    machines = _machines(report)
    links = "".join(
        f'<a href="#{section.question.name}">{text(section.question.title)}</a>\n'
        for section in report.sections
    )
    sections = "".join(_section(section, report) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en" data-state="ready">\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Memory of {machines}</title>\n<style>{_style()}</style>\n"
        f"<h1>Memory of {machines}</h1>\n"
        f"<p>{text(report.dataset)}{text(hosts)}; {text(span)}</p>\n"
        f"<nav>\n{links}</nav>\n{sections}"
    )


def _moment(moment: datetime | None) -> str:
    return cell(moment, "time")


def _style() -> str:
    css = _CSS.replace("LIGHT", _LIGHT).replace("DARK", _DARK)
    css = css.replace("FONT_RULE", f"--font:{FONT};")
    for index, colour in enumerate(_LINES):
        css += f".line.s{index} {{ stroke: {colour}; }} i.s{index} {{ background: {colour}; }}\n"
    for shade in range(1, 6):
        css += f".h{shade} {{ fill-opacity: {shade / 5}; }}\n"
    return css


def _section(section: Section, report: Report) -> str:
    question = section.question
    head = f'<section id="{question.name}">\n<h2>{text(question.title)}</h2>\n'
    head += f"<p>{text(section.finding)}</p>\n"
    if not section.answer.rows:
        return f"{head}<p>Nothing found.</p>\n</section>\n"
    plot = ""
    if section.plot is not None:
        caption = f"<figcaption>{text(section.plot.title)}</figcaption>"
        plot = (
            f"<figure>{caption}\n{draw_plot(section.plot, report.since, report.until)}</figure>\n"
        )
    more = "<p>There are more rows: ask the question itself.</p>\n" if section.is_cut else ""
    return f"{head}{plot}{_table(section, report.has_twins)}{more}</section>\n"


def _table(section: Section, has_twins: bool) -> str:
    columns = section.answer.columns
    shown = shown_columns(columns, has_twins)
    heads = "".join(
        f'<th{_side(columns[at].kind)} title="{text(columns[at].meaning)}">'
        f"{text(columns[at].name.replace('_', ' '))}</th>"
        for at in shown
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_side(columns[at].kind)}>{text(cell(row[at], columns[at].kind))}</td>"
            for at in shown
        )
        + "</tr>\n"
        for row in section.answer.rows
    )
    return f'<div class="wide"><table>\n<tr>{heads}</tr>\n{rows}</table></div>\n'


def _side(kind: str) -> str:
    return ' class="r"' if kind in _RIGHT else ""


def print_written(path: str, size_bytes: int, report: Report, *, as_json: bool) -> None:
    """Say what was written, as one line or as the JSON document."""
    found = {section.question.name: len(list(section.answer.rows)) for section in report.sections}
    if as_json:
        about = {"output": path, "size_bytes": size_bytes, "machines": report.nr_machines}
        documents.write({**about, "rows": found})
        return
    print(f"{printable(path)}: {_machines(report)}, {size_bytes} bytes")


def _machines(report: Report) -> str:
    return "1 machine" if report.nr_machines == 1 else f"{report.nr_machines} machines"
